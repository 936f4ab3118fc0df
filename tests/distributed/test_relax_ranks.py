"""Relaxed structures do not depend on how many ranks share the work, nor on a kill in between."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ocpgem.checkpoint import save_potential
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.launch.local import run_local
from tests.structures import small_potential
from tests.tiny_runs import ROOT, clean_environment, command, random_systems, run_main

PROGRAM = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/unit/evaluate/relax"]
from datetime import timedelta
from pathlib import Path
from ocpgem.parallel import group
from ocpgem.evaluate.relax.dataset import relax_dataset
from test_dataset import MODEL, TASK, Counting, dataset
out = Path(sys.argv[2])
group.init_from_environment("cpu", timedelta(seconds=60))
surface = Counting()
report = relax_dataset(MODEL, dataset(), out / "relaxed", TASK, surface)
gathered = group.gather_objects((surface.computed, report is not None))
if group.is_main():
    (out / "answers.json").write_text(json.dumps([[list(each), wrote] for each, wrote in gathered]))
group.shutdown()
"""


def run(folder: Path, nproc: int) -> tuple[list, dict[str, np.ndarray]]:
    folder.mkdir()
    assert run_local([str(ROOT), str(folder)], nproc, [sys.executable, "-c", PROGRAM]) == 0
    with np.load(folder / "relaxed" / "relaxed.npz") as file:
        return json.loads((folder / "answers.json").read_text()), dict(file)


@pytest.mark.slow  # three processes that import torch
def test_two_ranks_relax_every_system_once_and_write_what_one_writes(tmp_path: Path) -> None:
    (((everything, _),), alone) = run(tmp_path / "1", 1)
    answers, together = run(tmp_path / "2", 2)
    shares = [set(map(int, share)) for share, _ in answers]
    assert [wrote for _, wrote in answers] == [True, False]
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(map(int, everything)) == set(range(7))
    assert set(alone) == set(together)
    for name, value in alone.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(together[name], value, atol=1e-7)
        else:
            np.testing.assert_array_equal(together[name], value)


@pytest.mark.slow  # the command line twice
def test_after_a_kill_the_same_command_goes_on(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", random_systems(120, 0))
    save_potential(small_potential("gemnet_T").float(), tmp_path / "model.pt")
    words = ("relax", tmp_path / "model.pt", "--data", tmp_path / "data", "--out", tmp_path / "out")
    words = (*words, "--steps", 30, "--batch-size", 4, "--trajectories", "extxyz")
    with subprocess.Popen(command(*words), env=clean_environment(), stderr=subprocess.PIPE) as first:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out/parts/*.npz")):
            assert first.poll() is None, "it was done before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/trajectories/[!.]*.extxyz")}
    assert 0 < len(done) < 120
    finished = run_main(*words)
    assert finished.returncode == 0, finished.stderr
    assert "120 systems relaxed, " in finished.stdout
    n_earlier = int(finished.stdout.split("120 systems relaxed, ")[1].split()[0])
    assert 0 < n_earlier <= len(done)
    untouched = [path for path, when in done.items() if path.stat().st_mtime_ns == when]
    assert len(untouched) == n_earlier
    assert len(list(tmp_path.glob("out/trajectories/*"))) == 120
    with np.load(tmp_path / "out" / "relaxed.npz") as file:
        assert len(set(file["ids"].tolist())) == 120
