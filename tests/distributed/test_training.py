"""Training with real processes: exact on any number of ranks, stoppable, resumable, honest about bad data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.checkpoint import load_potential
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.open import open_dataset
from ocpgem.errors import INTERRUPTED
from ocpgem.evaluate.predict import Effort, evaluate
from ocpgem.launch.local import run_local
from tests.tiny_runs import (
    ROOT,
    clean_environment,
    command,
    listing,
    random_systems,
    run_main,
    tiny_settings,
    write_settings,
    write_tiny_data,
)

N_STEPS = 40
RESUME_FROM = 36


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nproc", "words"), [(1, []), (2, []), (4, []), (2, ["small buckets"])], ids=["1", "2", "4", "2, overlap"]
)
def test_the_engine_takes_the_steps_of_plain_torch(
    nproc: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = [sys.executable, str(Path(__file__).with_name("engine_against_torch.py"))]
    assert run_local([str(tmp_path / "found.json"), *words], nproc, program=program) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 7
    for case, numbers in found.items():
        assert numbers["difference"] < 1e-6, case
        assert numbers["ranks_equal"], case
        # It would be no test without accumulation, padding, clipping and a visible change.
        assert numbers["micro_batches"] > 1, case
        assert (numbers["padding"] > 0) == (nproc > 1), case
        assert numbers["norm"] > 1, case
        assert numbers["moved"] > 0.01, case


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    train, val = write_tiny_data(folder)
    settings = tiny_settings(
        train,
        val,
        steps=N_STEPS,
        log_every_steps=1,
        data={"max_edges": int(open_dataset(train).n_edges.max())},
        validation={"every_steps": 15},
        checkpoint={"every_steps": 12, "keep_every_steps": RESUME_FROM},
        parallel={"zero_stage": 1},
        optim={"lr": 5e-3, "schedule": {"name": "cosine", "warmup_steps": 5}},
    )
    return write_settings(folder / "config.yml", settings)


@pytest.fixture(scope="module")
def finished(config: Path) -> dict[int, Path]:
    """Runs on 1 and on 2 ranks that nothing interrupted."""
    runs = {}
    for nproc in (1, 2):
        runs[nproc] = config.parent / f"finished-{nproc}"
        done = run_main("train", config, "--run-dir", runs[nproc], "--nproc", nproc)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    return runs


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def final_state(run: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint but the time it took."""
    content = torch.load(run / "checkpoints" / str(N_STEPS) / "state.pt", weights_only=True)
    content["train_state"].pop("seconds")
    found: dict[str, torch.Tensor] = {}

    def collect(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}/{key}", inner)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                collect(f"{prefix}/{number}", inner)
        elif isinstance(value, int | float | torch.Tensor):
            found[prefix] = torch.as_tensor(value)

    collect("", content)
    return found


@pytest.mark.slow
def test_two_ranks_train_and_validate_as_one_does(finished: dict[int, Path], config: Path) -> None:
    val = open_dataset(config.parent / "val")
    for nproc, run in finished.items():
        last = records(run, "val")[-1]
        alone = evaluate(load_potential(run / "checkpoints" / str(N_STEPS)), val, Effort(progress=False))
        assert last["step"] == N_STEPS
        for name, value in alone.items():
            assert last[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (nproc, name)
    losses = [[record["loss"] for record in records(finished[nproc], "train")] for nproc in (1, 2)]
    assert len(losses[0]) == N_STEPS
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def interrupt(words: list[object], run: Path) -> subprocess.CompletedProcess[str]:
    """Start a run and press Ctrl-C, which reaches the whole group, once it has reported a step."""
    process = subprocess.Popen(
        command(*words),
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        limit = time.monotonic() + 200
        while not ((run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize(("nproc", "workers"), [(1, 1), (2, 0)])
def test_an_interrupted_run_goes_on_to_the_weights_of_an_uninterrupted_one(
    finished: dict[int, Path], config: Path, tmp_path: Path, nproc: int, workers: int
) -> None:
    run = tmp_path / "run"
    own = write_settings(tmp_path / "config.yml", {"includes": str(config), "data": {"workers": workers}})
    words: list[object] = ["train", own, "--run-dir", run, "--nproc", nproc]
    stopped = interrupt(words, run)
    assert stopped.returncode == INTERRUPTED
    assert stopped.stderr == "\nstopping after this step; a checkpoint will be written\n"
    step = int((run / "checkpoints" / "latest").read_text())
    assert 1 <= step < N_STEPS
    assert stopped.stdout.splitlines()[-1] == (
        f"stopped after step {step} of {N_STEPS} by SIGINT; the state is saved in {run}/checkpoints/{step}; "
        "start the same command again to go on from there"
    )
    assert not [name for name in listing(run) if "partial" in name]
    load_potential(run)  # what it left can be used

    resumed = run_main(*words)
    assert resumed.returncode == 0
    assert resumed.stderr == ""
    assert f"(step {step})" in resumed.stdout
    assert f"finished after step {N_STEPS}" in resumed.stdout
    expected, found = final_state(finished[nproc]), final_state(run)
    assert set(found) == set(expected)
    assert len(found) > 100
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert [record["step"] for record in records(run, "train")] == list(range(1, N_STEPS + 1))
    assert [record["loss"] for record in records(run, "train")] == [
        record["loss"] for record in records(finished[nproc], "train")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_resumed_on_another_number_of_ranks_sees_the_same_systems_and_loses_the_same(
    finished: dict[int, Path], tmp_path: Path, config: Path, first: int, then: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[first], run)
    for folder in (run / "checkpoints").iterdir():
        if folder.name.isdecimal() and int(folder.name) > RESUME_FROM:
            shutil.rmtree(folder)
    done = run_main("train", config, "--run-dir", run, "--nproc", then)
    assert done.returncode == 0, done.stderr
    assert f"(step {RESUME_FROM})" in done.stdout
    expected = [record["loss"] for record in records(finished[first], "train")]
    found = [record["loss"] for record in records(run, "train")]
    assert found[:RESUME_FROM] == expected[:RESUME_FROM]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_on_a_gpu_goes_on_as_if_it_had_not_been_interrupted(
    config: Path, tmp_path: Path, stage: int
) -> None:
    words = [config, f"parallel.zero_stage={stage}", "optim.schedule={name: constant}", "steps=8"]
    for name, parts in (("whole", [[]]), ("resumed", [["steps=4"], []])):
        for part in parts:
            done = run_main("train", *words, *part, "--run-dir", tmp_path / name)
            assert done.returncode == 0, done.stderr
            assert "1 rank(s) on cuda" in done.stdout
    assert "(step 4)" in done.stdout
    whole, resumed = (
        [record["loss"] for record in records(tmp_path / name, "train")] for name in ("whole", "resumed")
    )
    assert len(whole) == 8
    assert resumed == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_a_bad_label_that_one_rank_meets_ends_both_with_its_name(
    finished: dict[int, Path], config: Path, tmp_path: Path
) -> None:
    from ase.io import write

    atoms = [system.to_atoms() for system in random_systems(11)]
    atoms[6].calc.results["forces"][1, 2] = float("nan")
    write(tmp_path / "bad.extxyz", atoms)
    preparation = json.loads((finished[1] / "preparation.json").read_text())
    (tmp_path / "factors.json").write_text(json.dumps(preparation["scale_factors"]))
    settings = {
        "includes": str(config),
        "data": {"train": str(tmp_path / "bad.extxyz")},
        "normalization": preparation["normalization"],
        "scale_factors": {"file": str(tmp_path / "factors.json")},
    }
    own = write_settings(tmp_path / "config.yml", settings)
    begin = time.monotonic()
    done = run_main("train", own, "--run-dir", tmp_path / "run", "--nproc", 2)
    assert done.returncode == 1
    assert "sid 6, frame 0" in done.stderr
    assert "bad.extxyz, record 6" in done.stderr
    assert "forces holds a value that is not finite" in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "forces holds a value that is not finite" in (tmp_path / "run" / "log.txt").read_text()
    assert time.monotonic() - begin < 200


@pytest.mark.slow  # three runs of two ranks
def test_a_run_that_skips_records_is_the_run_without_them(tmp_path: Path) -> None:
    """The same losses, scores and order, also when it is interrupted; the records are listed and counted."""
    systems, others = list(random_systems(14, 0)), list(random_systems(9, 1))
    write_dataset(tmp_path / "clean", [system for system in systems if system.sid not in (3, 11)])
    write_dataset(tmp_path / "clean_val", [system for system in others if system.sid != 5])
    systems[3].energy = systems[11].forces = others[5].forces = None
    write_dataset(tmp_path / "spoilt", systems)
    write_dataset(tmp_path / "spoilt_val", others)
    runs = {}
    plain: dict[str, Any] = {"steps": 8, "optim": {"schedule": {"name": "constant"}}}
    for name in ("clean", "spoilt"):
        settings = tiny_settings(
            tmp_path / name,
            tmp_path / f"{name}_val",
            log_every_steps=1,
            validation={"parity_systems": 5},
            **plain,
        )
        config = write_settings(tmp_path / f"{name}.yml", settings)
        runs[name] = tmp_path / f"run-{name}"
        words = ["train", config, "--run-dir", runs[name], "--nproc", 2]
        if name == "spoilt":
            words += ["data.skip={allow: true, at_most: 0.2}"]
            assert run_main(*words, "steps=4").returncode == 0
        done = run_main(*words)
        assert done.returncode == 0, done.stderr
    assert "left out: 2 of 14 in train, 1 of 9 in val.val, listed in" in done.stdout
    figure = runs["spoilt"] / "figures" / "parity" / "val.png"
    assert figure.read_bytes().startswith(b"\x89PNG"), "drawn from what both ranks predicted"
    listed = [json.loads(line) for line in (runs["spoilt"] / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["sid"], entry["reason"]) for entry in listed] == [
        (3, "no energy"),
        (11, "no forces"),
        (5, "no forces"),
    ]
    for kind, name in (("train", "loss"), ("val", "energy_mae")):
        clean, spoilt = (
            {record["step"]: record[name] for record in records(run, kind)} for run in runs.values()
        )
        for step, value in clean.items():
            assert spoilt[step] == pytest.approx(value, rel=1e-5), (kind, step)
