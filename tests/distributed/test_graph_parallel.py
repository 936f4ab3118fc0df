"""Ranks that share the edges of a batch compute what one rank computes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ocpgem.checkpoint import load_potential
from ocpgem.launch.local import run_local
from tests.distributed.graph_ranks import TRIED
from tests.distributed.states import train_records
from tests.tiny_runs import ROOT, clean_environment, run_main, tiny_settings, write_settings, write_tiny_data


@pytest.mark.timeout(900)
@pytest.mark.slow  # four ranks, every variant in groups of 2, 3 and 4
def test_groups_of_ranks_give_the_outputs_and_gradients_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = [sys.executable, str(Path(__file__).with_name("graph_ranks.py"))]
    assert run_local([str(tmp_path / "found.json")], 4, program=program) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    expected = {f"{case}, {n} ranks" for case in TRIED for n in (2, 3, 4)}
    assert set(found) == expected | {f"{case}, 3 atoms" for case in TRIED} | {"random"}
    assert {name: value for name, value in found.items() if value > 1e-10} == {}
    assert any(value > 0 for value in found.values())  # it would be no test if both had taken one path


@pytest.mark.timeout(900)
@pytest.mark.slow  # five runs of real ranks
def test_two_groups_of_two_train_as_four_ranks_and_checkpoints_move_between_layouts(tmp_path: Path) -> None:
    data, val = write_tiny_data(tmp_path)
    settings = tiny_settings(
        data,
        val,
        model={"variant": "gemnet_T"},
        log_every_steps=1,
        parallel={"zero_stage": 1},
        optim={"lr": 2e-3, "schedule": {"name": "constant", "warmup_steps": 0}},
    )
    write_settings(tmp_path / "config.yml", settings)
    calls = [
        "four-ranks 4 steps=6",
        "groups 4 steps=6 parallel.graph=2",
        "moved 4 steps=3 parallel.graph=2",
        "moved 2 steps=5 parallel.graph=1 parallel.zero_stage=0",
        "moved 3 steps=6 parallel.graph=3",
    ]
    program = [sys.executable, str(Path(__file__).with_name("graph_training.py"))]
    done = subprocess.run(
        [*program, str(tmp_path / "config.yml"), str(tmp_path), *calls],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected, groups, moved = (tmp_path / name for name in ("four-ranks", "groups", "moved"))
    losses = [loss for _, loss in train_records(expected)]
    assert len(losses) == 6
    assert len({round(loss, 4) for loss in losses}) == 6
    weights = load_potential(expected).state_dict()
    for run in (groups, moved):
        assert [loss for _, loss in train_records(run)] == pytest.approx(losses, rel=1e-4)
        for name, value in load_potential(run).state_dict().items():
            assert torch.allclose(value.double(), weights[name].double(), rtol=1e-3, atol=1e-4), (
                run.name,
                name,
            )


def test_ranks_that_cannot_form_groups_are_refused(tmp_path: Path) -> None:
    data, _ = write_tiny_data(tmp_path)
    config = write_settings(tmp_path / "config.yml", tiny_settings(data, parallel={"graph": 2}))
    done = run_main("train", config, "--run-dir", tmp_path / "run", "--nproc", 1)
    assert done.returncode == 2
    assert "parallel.graph is 2, but there are 1 ranks" in done.stderr
    assert not (tmp_path / "run").exists()
