"""Fine-tuning from the command line: on some twenty frames, with groups of parameters, resumable without its source."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ocpgem.checkpoint import load_potential
from ocpgem.data.lmdb_store import write_dataset
from tests.tiny_runs import ROOT, random_systems, run_main, tiny_settings, write_settings, write_tiny_data


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.mark.slow  # three runs of the command line
def test_twenty_frames_are_learned_from_a_trained_model(tmp_path: Path) -> None:
    train, val = write_tiny_data(tmp_path)
    base: dict[str, Any] = tiny_settings(train, val, steps=20, log_every_steps=1, optim={"lr": 0.01})
    done = run_main("train", write_settings(tmp_path / "base.yml", base), "--run-dir", tmp_path / "base")
    assert done.returncode == 0, done.stderr

    write_dataset(tmp_path / "frames", random_systems(20, seed=7))
    published = yaml.safe_load((ROOT / "configs" / "quickstart_finetune.yml").read_text())["optim"]
    settings = tiny_settings(
        tmp_path / "frames",
        val,
        steps=8,
        log_every_steps=1,
        checkpoint={"every_steps": 4},
        start_from={"checkpoint": str(tmp_path / "base")},
        optim=published | {"lr": 2e-3, "schedule": {"name": "plateau", "plateau": {"patience": 0}}},
        validation={"every_steps": 2},
        histograms_every_steps=4,
    )
    own, run = write_settings(tmp_path / "own.yml", settings), tmp_path / "run"
    done = run_main("train", own, "steps=4", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert "starting from" in done.stdout
    assert load_potential(run).normalization == load_potential(tmp_path / "base").normalization

    source = load_potential(tmp_path / "base").state_dict()
    shutil.rmtree(tmp_path / "base")  # a run that goes on does not need what it began with
    done = run_main("train", own, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert len(losses(run)) == 8
    tuned = load_potential(run / "checkpoints" / "8").state_dict()
    frozen, moved = "model.atom_embedding.weight", "model.blocks.0.dense.weight"
    assert torch.equal(tuned[frozen], source[frozen])
    assert 0 < float((tuned[moved] - source[moved]).abs().max()) < 0.05
    assert "finished after step 8 of 8" in (run / "summary.txt").read_text()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "train":
            assert {"gradient_norm", "data_wait_share", "memory_gb", "lr", "systems_per_second"} <= set(
                record
            )
