"""Predictions and errors do not depend on how many ranks share the work."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ocpgem.evaluate.predict import Effort, predict
from ocpgem.launch.local import run_local

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "evaluate"))
from stub import Linear, make_dataset

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/unit/evaluate"]
from datetime import timedelta
from pathlib import Path
from ocpgem.errors import OcpgemError
from ocpgem.evaluate.predict import Effort, evaluate, predict
from ocpgem.parallel import group
from stub import Linear, make_dataset
out, n, bad = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
group.init_from_environment("cpu", timedelta(seconds=120))
try:
    effort = Effort(batch_size=2, progress=False)
    report = predict(Linear(bad=bad), make_dataset(n), out / "a.npz", "raw", effort)
    answer = [report.metrics, evaluate(Linear(bad=bad), make_dataset(n), effort)]
except OcpgemError as error:
    answer = str(error)
answers = group.gather_objects(answer)
if group.is_main():
    (out / "answers.json").write_text(json.dumps(answers))
group.shutdown()
"""


STOPPED = """
import json, os, signal, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/unit/evaluate"]
from datetime import timedelta
from pathlib import Path
from ocpgem.evaluate.predict import Effort, predict
from ocpgem.parallel import group, signals
from stub import Linear, make_dataset

class Signalled(Linear):
    # The second batch of rank 1 gets a signal once rank 0 is at its own, which takes until it can know.
    count = 0

    def forward(self, batch, topology):
        self.count += 1
        if self.count == 2 and group.rank() == 1:
            store.wait(["rank 0 is at its second batch"])
            os.kill(os.getpid(), signal.SIGUSR1)
        if self.count == 2 and group.rank() == 0:
            store.set("rank 0 is at its second batch", "yes")
        while self.count == 2 and group.rank() == 0 and not store.check([signals._STORE_KEY]):
            time.sleep(0.01)
        return super().forward(batch, topology)

out = Path(sys.argv[2])
group.init_from_environment("cpu", timedelta(seconds=120))
store = group.connect_to_store()
stop = signals.StopRequest()
with stop.listening():
    try:
        predict(Signalled(), make_dataset(21), out / "a.npz", "raw", Effort(2, progress=False, stop=stop))
        answer = "it went on"
    except signals.StoppedError as error:
        answer = f"{error.exit_code}: {error}"
answers = group.gather_objects(answer)
if group.is_main():
    (out / "answers.json").write_text(json.dumps(answers))
group.shutdown()
"""


def run(folder: Path, nproc: int, n: int, bad: int = -1) -> list:
    folder.mkdir()
    assert run_local([str(ROOT), str(folder), str(n), str(bad)], nproc, [sys.executable, "-c", PROGRAM]) == 0
    return json.loads((folder / "answers.json").read_text())


def test_two_and_three_ranks_write_what_one_writes(tmp_path: Path) -> None:
    alone = run(tmp_path / "1", 1, n=11)[0]
    with np.load(tmp_path / "1" / "a.npz") as file:
        first = dict(file)
    for nproc in (2, 3):
        answers = run(tmp_path / str(nproc), nproc, n=11)
        assert len(answers) == nproc
        for answer in answers:
            assert answer[0] == pytest.approx(alone[0], rel=1e-12)
            assert answer[1] == pytest.approx(alone[1], rel=1e-12)
        with np.load(tmp_path / str(nproc) / "a.npz") as file:
            assert set(file) == set(first)
            for name, value in first.items():
                np.testing.assert_array_equal(file[name], value)


def test_a_signal_to_one_rank_stops_all_and_any_number_of_ranks_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run_local([str(ROOT), str(out)], 2, [sys.executable, "-c", STOPPED]) == 0
    said = f"75: SIGUSR1 arrived; what is done is kept in {out}/.a.npz.parts, and the same command goes on from there"
    assert json.loads((out / "answers.json").read_text()) == [said, said]
    quiet = Effort(2, progress=False)
    report = predict(Linear(), make_dataset(21), out / "a.npz", "raw", quiet)
    assert report.n_resumed == 8
    predict(Linear(), make_dataset(21), tmp_path / "whole.npz", "raw", quiet)
    with np.load(out / "a.npz") as found, np.load(tmp_path / "whole.npz") as expected:
        assert set(found) == set(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_more_ranks_than_systems_are_fine(tmp_path: Path) -> None:
    answers = run(tmp_path / "3", 3, n=2)
    assert answers[0] == answers[1] == answers[2]


def test_one_bad_system_gives_every_rank_the_same_error(tmp_path: Path) -> None:
    answers = run(tmp_path / "2", 2, n=11, bad=97)
    assert answers[0] == answers[1]
    assert "sid 97, frame" in answers[0]
    assert not (tmp_path / "2" / "a.npz").exists()
