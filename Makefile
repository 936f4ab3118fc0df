# Every target prepares .venv where that is needed; a second run reuses it.
PYTHON_IN_VENV := .venv/bin/python
TEST_WORKERS ?= auto
PYTEST := $(PYTHON_IN_VENV) -m pytest -n $(TEST_WORKERS) --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup setup-full demo slurm test quick lint format clean

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv from requirements.lock, compile ours if there is gcc (1 to 3 minutes)
	@sh tools/setup.sh

setup-full: ## the same and torch-scatter, compiled once per machine (3 to 8 minutes)
	@sh tools/setup.sh --full

demo: setup ## build a small data set, train a GemNet on it, evaluate it and draw the result
	@$(PYTHON_IN_VENV) tools/demo.py

slurm: ## as root on Debian: install SLURM (15 s), for the tests on a real cluster and slurm/local_cluster.sh
	@if [ "$$(id -u)" = 0 ]; then slurm/local_cluster.sh install || echo "without SLURM: its tests will say so"; fi

test: setup-full lint slurm ## everything that CI runs: lint, types, import order and all tests
	@$(PYTEST)

quick: setup ## the tests that take seconds
	@$(PYTEST) -m "not slow"

lint: setup ## ruff, mypy and the import contract
	@$(PYTHON_IN_VENV) -m ruff check .
	@$(PYTHON_IN_VENV) -m ruff format --check .
	@$(PYTHON_IN_VENV) -m mypy
	@.venv/bin/lint-imports

format: setup ## let ruff rewrite what it can
	@$(PYTHON_IN_VENV) -m ruff check --fix .
	@$(PYTHON_IN_VENV) -m ruff format .

clean: ## remove .venv, compiled kernels and caches (kept: torch-scatter wheels, data, runs)
	rm -rf .venv ocpgem/kernels/_native*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
