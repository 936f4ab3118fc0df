"""Evaluations and predictions that are interrupted go on where they were, and leave nothing behind."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from stub import Linear, make_dataset

from ocpgem.errors import DataError, RequestError
from ocpgem.evaluate import parts as module
from ocpgem.evaluate.parts import Parts
from ocpgem.evaluate.predict import Effort, evaluate, evaluate_sets, predict, remove_parts
from ocpgem.parallel.signals import StoppedError, StopRequest

QUIET = Effort(batch_size=2, progress=False)


class Dying(Linear):
    """Ends like a killed process after some batches, and counts the systems it has computed."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches, self.seen = batches, 0

    def forward(self, batch, topology):
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        self.seen += len(batch.natoms)
        return super().forward(batch, topology)


class Signalled(Dying):
    """Gets a signal from outside while it computes its last batch."""

    def forward(self, batch, topology):
        if self.batches == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        return super().forward(batch, topology)


@pytest.fixture(autouse=True)
def _every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parts, "due", lambda self: True)


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_an_interrupted_prediction_goes_on(tmp_path: Path) -> None:
    whole = predict(Linear(), make_dataset(11), tmp_path / "whole.npz", "raw", QUIET)
    with pytest.raises(KeyboardInterrupt):
        predict(Dying(3), make_dataset(11), tmp_path / "a.npz", "raw", QUIET)
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole.npz"] == [".a.npz.parts"]
    second = Dying(99)
    report = predict(second, make_dataset(11), tmp_path / "a.npz", "raw", QUIET)
    assert (second.seen, report.n_resumed) == (5, 6)
    assert report.metrics == pytest.approx(whole.metrics, rel=1e-12)
    found, expected = load(tmp_path / "a.npz"), load(tmp_path / "whole.npz")
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "whole.npz"]


def test_an_interrupted_evaluation_goes_on_also_in_its_second_set(tmp_path: Path) -> None:
    sets = {"one": make_dataset(7), "two": make_dataset(9, seed=1)}
    keep = tmp_path / "metrics.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate_sets(Dying(6), sets, QUIET, keep)
    second = Dying(99)
    scores = evaluate_sets(second, sets, QUIET, keep)
    assert second.seen == 5
    for name, dataset in sets.items():
        assert scores[name].values == pytest.approx(evaluate(Linear(), dataset, QUIET), rel=1e-12)
        assert scores[name].n_frames == len(dataset)
    remove_parts(keep, sets)
    assert not list(tmp_path.iterdir())


def test_a_signal_keeps_what_is_done_and_asks_for_another_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parts, "due", lambda self: False)  # what is kept is kept because of the signal
    stop = StopRequest()
    effort = Effort(batch_size=2, progress=False, stop=stop)
    with (
        stop.listening(),
        pytest.raises(StoppedError, match="SIGUSR2 arrived; what is done is kept") as stopped,
    ):
        predict(Signalled(3), make_dataset(11), tmp_path / "a.npz", "raw", effort)
    assert stopped.value.exit_code == 75
    assert not (tmp_path / "a.npz").exists()
    second = Dying(99)
    assert predict(second, make_dataset(11), tmp_path / "a.npz", "raw", QUIET).n_resumed == 6
    assert second.seen == 5

    sets, keep, stop = {"one": make_dataset(11)}, tmp_path / "metrics.json", StopRequest()
    effort = Effort(batch_size=2, progress=False, stop=stop)
    with stop.listening(), pytest.raises(StoppedError, match=r"kept in .*\.metrics\.json\.one\.parts"):
        evaluate_sets(Signalled(3), sets, effort, keep)
    second = Dying(99)
    scores = evaluate_sets(second, sets, QUIET, keep)
    assert second.seen == 5
    assert scores["one"].values == pytest.approx(evaluate(Linear(), make_dataset(11), QUIET), rel=1e-12)


def test_parts_of_another_request_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(Dying(2), make_dataset(11), tmp_path / "a.npz", "raw", QUIET)
    for model, dataset in ((Linear(), make_dataset(12)), (Linear().double(), make_dataset(11))):
        with pytest.raises(
            RequestError, match=r"\.a\.npz\.parts holds the unfinished work of another request"
        ):
            predict(model, dataset, tmp_path / "a.npz", "raw", QUIET)
    assert not (tmp_path / "a.npz").exists()


def test_two_requests_for_one_file_are_refused(tmp_path: Path) -> None:
    with (
        Parts(tmp_path / "a.npz", {}).claimed(),
        pytest.raises(RequestError, match="another process is writing"),
        Parts(tmp_path / "a.npz", {}).claimed(),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(Dying(2), make_dataset(11), tmp_path / "a.npz", "raw", QUIET)
    part = next((tmp_path / ".a.npz.parts").glob("*.npz"))
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(DataError, match=f"{part.name} is damaged"):
        predict(Linear(), make_dataset(11), tmp_path / "a.npz", "raw", QUIET)
    part.unlink()
    assert predict(Linear(), make_dataset(11), tmp_path / "a.npz", "raw", QUIET).n_resumed == 2


def test_the_plan_says_what_was_asked(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(Dying(2), make_dataset(11), tmp_path / "a.npz", "raw", QUIET)
    plan = json.loads((tmp_path / ".a.npz.parts" / module._PLAN).read_text())
    assert (plan["n"], plan["task"]) == (11, "s2ef")


def test_ranks_that_keep_their_first_parts_at_once_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, together = threading.local(), threading.Barrier(2, timeout=60)
    monkeypatch.setattr(module.group, "rank", lambda: own.rank)

    def keep(rank: int) -> None:
        own.rank = rank
        for number in range(50):
            parts = Parts(tmp_path / str(number), {"n": number})
            parts.folder.mkdir(exist_ok=True)
            together.wait()
            parts.keep(np.array([rank]), {"energy": np.zeros(1)})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(keep, range(2)))
    for number in range(50):
        folder = Parts(tmp_path / str(number), {}).folder
        assert json.loads((folder / "plan.json").read_text()) == {"n": number}
        assert len(list(folder.iterdir())) == 3  # and nothing else
