"""Budgets of a configuration become batches; costs are estimated once per run."""

import numpy as np
import pytest

from ocpgem.config import parse_config
from ocpgem.data.cost import SYSTEMS
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe
from ocpgem.errors import ConfigError, RequestError
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.activation_memory import fit_memory_cost, kept_for_gradient
from ocpgem.train.batching import (
    COSTS_FILE,
    Costs,
    eval_batching,
    prepare_costs,
    require_work_for_all,
    train_batching,
)
from ocpgem.train.config import DataSection
from ocpgem.train.run_directory import RunDirectory
from tests.tiny_runs import TINY_MODEL, random_systems


@pytest.fixture(scope="module")
def potential():
    return Potential(GemNetConfig.model_validate(TINY_MODEL), Normalization())


@pytest.fixture(scope="module")
def recipe(potential):
    return Recipe(InMemoryDataset(list(random_systems(20))), potential.graph_spec)


def section(**values):
    return DataSection.model_validate({"train": "train"} | values)


def test_memory_is_estimated_within_a_few_per_cent(potential, recipe):
    """Of batches, although it is measured on single systems."""
    cost = fit_memory_cost(potential, recipe)
    for indices in (np.array([3]), np.arange(8), np.arange(20)):
        measured = kept_for_gradient(potential, *recipe.prepare(indices))
        assert cost.of(recipe.dataset.rows(indices)).sum() == pytest.approx(measured, rel=0.15)


def test_a_budget_of_memory_fills_batches(potential, recipe, tmp_path):
    data = section(batch_size={"memory_gb": 0.002}, eval_batch_size={"edges": 300}, max_edges=500)
    costs = prepare_costs(RunDirectory(tmp_path), potential, recipe, data)
    batching = train_batching(data, costs)
    assert (batching.size.cost.unit, batching.size.amount) == ("bytes", 2_000_000)
    assert (batching.limit.cost, batching.limit.amount) == (costs.edges, 500)
    assert (eval_batching(data, costs).size.cost, batching.work) == (costs.edges, costs.edges)
    require_work_for_all(data, batching, recipe.dataset, 2)


def test_costs_are_estimated_once(potential, recipe, tmp_path):
    run, data = RunDirectory(tmp_path), section(batch_size={"memory_gb": 0.1})
    first = prepare_costs(run, potential, recipe, data)
    other = Recipe(InMemoryDataset(list(random_systems(3, seed=9))), recipe.graph)
    assert prepare_costs(run, potential, other, data) == first
    (tmp_path / COSTS_FILE).write_text('{"edges": {"per_mile": 3}}')
    with pytest.raises(RequestError, match=r"costs\.json cannot be read .* choose another --run-dir"):
        prepare_costs(run, potential, recipe, data)


def test_steps_with_fewer_systems_than_ranks_are_refused(potential, recipe, tmp_path):
    data = section(batch_size={"edges": 60})
    costs = prepare_costs(RunDirectory(tmp_path), potential, recipe, data)
    with pytest.raises(RequestError, match=r"data\.batch_size is 60 edges .*about .* fewer than the 8 ranks"):
        require_work_for_all(data, train_batching(data, costs), recipe.dataset, 8)


def test_a_number_is_so_many_systems():
    data = section(batch_size=7)
    batching = train_batching(data, Costs(edges=SYSTEMS))
    assert (batching.size.cost, batching.size.amount, batching.limit) == (SYSTEMS, 7, None)


@pytest.mark.parametrize("budget", ["{edges: 5, atoms: 3}", "{}", "{memory_gb: 0}", "{edges: many}", "[3]"])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ConfigError, match=r"data\.batch_size|train.*batch_size|batch_size"):
        parse_config(f"train: x\nbatch_size: {budget}\n", DataSection, "config.yml")
