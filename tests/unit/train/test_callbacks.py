"""What a run measures reaches every callback: own ones, metrics.jsonl, figures, TensorBoard, Weights & Biases."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ocpgem.errors import ConfigError, TrainingError
from ocpgem.evaluate.parity import ParitySample
from ocpgem.evaluate.predict import Effort, evaluate
from ocpgem.train.callbacks import Callback, Callbacks, Numbers
from ocpgem.train.ending import DiskGuard
from ocpgem.train.logger_section import LoggerSection, WandbSection
from ocpgem.train.loggers import (
    FigureFiles,
    JsonLines,
    TensorBoard,
    WeightsAndBiases,
    loggers_of,
    require_packages,
)
from ocpgem.train.run import train
from tests.tiny_runs import ROOT, clean_environment, tiny_config, write_tiny_data


class Run(NamedTuple):
    """A run and what its callbacks were told."""

    path: Path
    told: list[tuple[Any, ...]]
    no_room: list[tuple[Any, ...]]


WANDB = importlib.util.find_spec("wandb") is not None
PNG_START = b"\x89PNG"


class Recorder(Callback):
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def started(self, run_path: Path, step: int, settings: dict[str, Any]) -> None:
        self.told.append(("started", step, settings["steps"]))

    def numbers(self, numbers: Numbers) -> None:
        self.told.append((numbers.prefix, numbers.step))

    def histograms(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        self.told.append(("histograms", step, len(weights) > 10))

    def figure(self, step: int, name: str, png: bytes) -> None:
        self.told.append((name, step, png[:4] == PNG_START))

    def ended(self, step: int) -> None:
        self.told.append(("ended", step))


class NoRoom(Recorder):
    what = "the other file"

    def numbers(self, numbers: Numbers) -> None:
        raise OSError(28, "No space left on device")


def train_with_callbacks(folder: Path) -> None:
    """A run with two callbacks of its own, the first of which can never write its numbers."""
    config = tiny_config(
        *write_tiny_data(folder),
        histograms_every_steps=5,
        validation={"every_steps": 3, "parity_systems": 100},
    )
    recorder, no_room = Recorder(), NoRoom()
    train(config, folder / "run", callbacks=[no_room, recorder])
    (folder / "told.json").write_text(json.dumps([recorder.told, no_room.told]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """That run, in a process of its own: DeepSpeed forms one group in the life of a process."""
    folder = tmp_path_factory.mktemp("callbacks")
    program = [sys.executable, "-m", "tests.unit.train.test_callbacks", str(folder)]
    done = subprocess.run(
        program, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told, no_room = (
        [tuple(each) for each in part] for part in json.loads((folder / "told.json").read_text())
    )
    return Run(folder / "run", told, no_room)


def test_a_callback_is_told_everything_in_order(run: Run) -> None:
    assert run.told == [
        ("started", 0, 6),
        ("train", 2),
        ("val/val", 3),
        ("parity/val", 3, True),
        ("train", 4),
        ("histograms", 5, True),
        ("train", 6),
        ("val/val", 6),
        ("parity/val", 6, True),
        ("ended", 6),
    ]


def test_a_callback_that_cannot_write_is_told_once_and_stops_nothing(
    run: Run,
) -> None:
    log = (run.path / "log.txt").read_text()
    assert log.count("the other file could not be written (No space left on device); the run goes on") == 1
    assert run.no_room[-1] == ("ended", 6)
    assert (run.path / "checkpoints" / "latest").read_text() == "6"


def test_metrics_figures_and_tensorboard_hold_what_was_told(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2), ("val", 3), ("train", 4), ("train", 6), ("val", 6)
    ]  # fmt: skip
    assert (run.path / "figures" / "parity" / "val.png").read_bytes().startswith(PNG_START)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert [image.step for image in events.Images("parity/val")] == [3, 6]
    assert [point.value for point in events.Scalars("train/loss")] == pytest.approx(
        [line["loss"] for line in lines if line["kind"] == "train"]
    )
    assert {"train/lr", "train/systems_per_second", "train/gradient_norm", "val/val/forces_mae"} <= set(
        tags["scalars"]
    )
    assert "blocks/0/dense/weight" in tags["histograms"]


def test_a_callback_that_cannot_begin_is_told_nothing_more() -> None:
    class Late(Recorder):
        def started(self, run_path: Path, step: int, settings: dict[str, Any]) -> None:
            raise OSError(30, "Read-only file system")

    said: list[str] = []
    late, other = Late(), Recorder()
    callbacks = Callbacks([late, other], DiskGuard(said.append).guarded)
    callbacks.start(Path("run"), 3, {"steps": 9})
    callbacks.tell(lambda callback: callback.ended(4))
    assert (late.told, other.told) == ([], [("started", 3, 9), ("ended", 4)])
    assert said == [
        "warning: the output of a callback could not be written (Read-only file system); the run goes on"
    ]


def test_parity_shows_what_the_metrics_count(run: Run) -> None:
    from ocpgem.checkpoint import load_potential
    from ocpgem.data.open import open_dataset

    dataset = open_dataset(run.path.parent / "val")
    everything, some, nothing = (ParitySample(len(dataset), n) for n in (100, 3, 0))

    def watch(*batch: Any) -> None:
        for sample in (everything, some, nothing):
            sample.take(*batch)

    metrics = evaluate(load_potential(run.path), dataset, Effort(3, progress=False), watch=watch)
    whole, part = everything.gathered(), some.gathered()
    assert whole is not None
    assert part is not None
    assert np.abs(whole.energy - whole.energy_true).mean() == pytest.approx(metrics["energy_mae"])
    assert whole.forces is not None
    assert whole.forces_true is not None
    free = ~whole.fixed
    assert np.abs(whole.forces[free] - whole.forces_true[free]).mean() == pytest.approx(metrics["forces_mae"])
    assert len(part) == 3
    assert set(part.sid) < set(whole.sid)
    assert nothing.png("nothing") is None


def test_the_loggers_are_those_of_the_configuration() -> None:
    def kinds(**settings: Any) -> list[type]:
        return [type(each) for each in loggers_of(LoggerSection.model_validate(settings))]

    assert kinds() == [JsonLines, FigureFiles, TensorBoard]
    assert kinds(tensorboard=False, wandb={"project": "p"}) == [JsonLines, FigureFiles, WeightsAndBiases]


@pytest.mark.skipif(WANDB, reason="wandb is installed")
def test_a_missing_package_is_a_wrong_request() -> None:
    with pytest.raises(ConfigError, match=r"loggers\.wandb: the package wandb is not installed; install it"):
        require_packages(LoggerSection(wandb=WandbSection(project="p")))
    require_packages(LoggerSection())


class Stand(ModuleType):
    """The calls of wandb that a run makes, recorded; for machines without the package."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple[str, Any]] = []
        self.errors = SimpleNamespace(Error=RuntimeError)
        self.Histogram = self.Image = np.shape

    def init(self, **options: Any) -> "Stand":
        self.calls.append(("init", options))
        if options["project"] == "refused":
            raise RuntimeError("no key\nmore")
        return self

    def log(self, values: dict[str, Any]) -> None:
        self.calls.append(("log", values))

    def define_metric(self, name: str, **options: Any) -> None:
        self.calls.append(("define", name))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def one_session(folder: Path, step: int) -> None:
    logger = WeightsAndBiases(WandbSection(project="tests", mode="offline", tags=["a"]))
    logger.started(folder, step, {"steps": 6})
    logger.numbers(Numbers("val", step + 1, {"energy_mae": 0.5}, {"split": "val_id"}))
    logger.histograms(step + 1, {"model.block.weight": torch.ones(3, 4)})
    from ocpgem.evaluate.figures import LIGHT, activation_variances

    logger.figure(step + 1, "parity/val_id", activation_variances(LIGHT, ["a"], [1.0], [2.0]))
    logger.ended(step + 1)


@pytest.mark.skipif(WANDB, reason="the real package is tested instead")
def test_wandb_is_asked_for_one_run_however_often_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand()
    monkeypatch.setitem(sys.modules, "wandb", stand)
    one_session(tmp_path, 0)
    one_session(tmp_path, 4)
    begun = [options for name, options in stand.calls if name == "init"]
    assert begun[0]["id"] == begun[1]["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert {
        "project": "tests",
        "mode": "offline",
        "resume": "allow",
        "config": {"steps": 6},
    }.items() <= begun[0].items()
    logged = [values for name, values in stand.calls if name == "log"]
    assert logged[0] == {"val/val_id/energy_mae": 0.5, "step": 1}
    assert logged[1] == {"weights/block.weight": (12,), "step": 1}
    assert logged[2]["parity/val_id"][2] == 3
    assert logged[3]["step"] == 5
    with pytest.raises(
        TrainingError, match=r"cannot begin \(RuntimeError: no key\); log in with `wandb login`"
    ):
        WeightsAndBiases(WandbSection(project="refused")).started(tmp_path, 0, {})


@pytest.mark.skipif(not WANDB, reason="needs wandb")
def test_wandb_keeps_a_run_without_a_network(tmp_path: Path) -> None:
    """The real package, offline: what it writes holds the numbers, figures and identity of the run."""
    one_session(tmp_path, 0)
    one_session(tmp_path, 4)
    identity = json.loads((tmp_path / "wandb.json").read_text())["id"]
    folders = sorted((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(folders) >= 1
    content = b"".join(file.read_bytes() for folder in folders for file in folder.glob("*.wandb"))
    for name in (b"val/val_id/energy_mae", b"weights/block.weight", b"parity/val_id", identity.encode()):
        assert name in content
    assert [file for folder in folders for file in folder.rglob("*.png")]


if __name__ == "__main__":
    train_with_callbacks(Path(sys.argv[1]))
    os._exit(0)  # as ocpgem.cli.run: the interpreter's own shutdown may abort after communication
