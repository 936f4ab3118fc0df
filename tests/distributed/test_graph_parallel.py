"""Ranks that share the edges of a batch compute what one rank computes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
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
    expected |= {f"{case}, 3 atoms" for case in TRIED}
    expected |= {f"{case}, no edges" for case in TRIED if case.startswith("gemnet_OC")}
    assert set(found) == expected | {"random"}
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

    def training(name: str, nproc: int, overrides: str) -> str:
        return f"train {tmp_path / 'config.yml'} {overrides} --run-dir {tmp_path / name} --nproc {nproc}"

    run_commands(
        tmp_path,
        training("four-ranks", 4, "steps=6"),
        training("groups", 4, "steps=6 parallel.graph=2"),
        training("moved", 4, "steps=3 parallel.graph=2"),
        training("moved", 2, "steps=5 parallel.graph=1 parallel.zero_stage=0"),
        training("moved", 3, "steps=6 parallel.graph=3"),
    )
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


@pytest.mark.timeout(900)
@pytest.mark.slow  # eight commands of real ranks
def test_what_follows_training_in_groups_equals_that_of_one_rank(tmp_path: Path) -> None:
    data, val = write_tiny_data(tmp_path, 8, 5)
    settings = tiny_settings(
        data, val, model={"variant": "gemnet_OC"}, steps=2, validation={"every_steps": 1}
    )
    config = write_settings(tmp_path / "config.yml", settings)
    run = tmp_path / "groups"
    scales = f"fit-scales {config} --out {tmp_path}"
    run_commands(
        tmp_path,
        f"train {config} --run-dir {tmp_path / 'alone'}",
        f"train {config} parallel.graph=2 --run-dir {run} --nproc 4",
        f"{scales}/alone.json",
        f"{scales}/groups.json parallel.graph=2",
        *(
            f"{command} {run} --data {val} --workers 0 --nproc {nproc} {out} {tmp_path}/{nproc}.{kind}"
            for nproc in (1, 4)
            for command, out, kind in (
                ("predict --dialect raw", "--out", "npz"),
                ("evaluate", "--json", "json"),
            )
        ),
        *(
            f"relax {run} --data {val} --steps 3 --nproc {nproc} --out {tmp_path}/relaxed-{nproc}"
            for nproc in (1, 4)
        ),
    )
    fitted = [
        json.loads((tmp_path / name / "preparation.json").read_text())["scale_factors"]
        for name in ("alone", "groups")
    ]
    files = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "groups")]
    for each in (fitted[1], *files):
        assert each == pytest.approx(fitted[0], rel=1e-6)
    one, groups = (validations(tmp_path / name) for name in ("alone", "groups"))
    assert len(one) == 2
    assert "forces_mae" in one[0]
    for expected, found in zip(one, groups, strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for name in ("{}.npz", "relaxed-{}/relaxed.npz"):
        with np.load(tmp_path / name.format(1)) as alone, np.load(tmp_path / name.format(4)) as together:
            assert set(alone) == set(together)
            for key, value in alone.items():
                if value.dtype.kind == "f":
                    np.testing.assert_allclose(together[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    metrics = [json.loads((tmp_path / f"{nproc}.json").read_text())["splits"]["val"] for nproc in (1, 4)]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4)


def run_commands(folder: Path, *commands: str) -> None:
    """Run `main.py` with the words of each command, one after another."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("graph_training.py")), str(folder), *commands],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def validations(run: Path) -> list[dict[str, float]]:
    """The metrics of every validation of a run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name.endswith("_mae")}
        for record in records
        if record["kind"] != "train"
    ]


def test_ranks_that_cannot_form_groups_are_refused(tmp_path: Path) -> None:
    data, _ = write_tiny_data(tmp_path)
    config = write_settings(tmp_path / "config.yml", tiny_settings(data, parallel={"graph": 2}))
    done = run_main("train", config, "--run-dir", tmp_path / "run", "--nproc", 1)
    assert done.returncode == 2
    assert "parallel.graph is 2, but there are 1 ranks" in done.stderr
    assert not (tmp_path / "run").exists()
