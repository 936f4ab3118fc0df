"""The callbacks that keep the numbers of a run: metrics.jsonl, figures, TensorBoard, Weights & Biases."""

import io
import json
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from ocpgem.errors import ConfigError, TrainingError, one_line
from ocpgem.files import write_text
from ocpgem.train.callbacks import Callback, Numbers
from ocpgem.train.logger_section import LoggerSection, WandbSection
from ocpgem.train.run_directory import RunDirectory

WANDB_FILE = "wandb.json"


def loggers_of(section: LoggerSection) -> list[Callback]:
    """The loggers that a configuration asks for; metrics.jsonl and figures always."""
    found: list[Callback] = [JsonLines(), FigureFiles()]
    if section.tensorboard:
        found.append(TensorBoard())
    if section.wandb is not None:
        found.append(WeightsAndBiases(section.wandb))
    return found


def require_packages(section: LoggerSection) -> None:
    """Raise ConfigError where a logger needs a package that is not installed."""
    if section.wandb is not None and find_spec("wandb") is None:
        raise ConfigError(
            "loggers.wandb: the package wandb is not installed; install it (pip install wandb) or remove loggers.wandb"
        )


class JsonLines(Callback):
    """One line of metrics.jsonl for each record."""

    what = "the metrics"
    _file: IO[str] | None = None

    def started(self, run_path: Path, step: int, settings: dict[str, Any]) -> None:
        """Drop the lines of steps that will be done again."""
        run = RunDirectory(run_path)
        run.forget_metrics_after(step)
        self._file = run.metrics_file.open("a")

    def numbers(self, numbers: Numbers) -> None:
        """Append a line."""
        assert self._file is not None, "started comes first"
        record = {"kind": numbers.kind, "step": numbers.step, **numbers.labels, **numbers.values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def ended(self, step: int) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class FigureFiles(Callback):
    """The latest figure of each name as a PNG below `figures/` of the run directory."""

    what = "the figures"

    def started(self, run_path: Path, step: int, settings: dict[str, Any]) -> None:
        """Remember the folder."""
        self._folder = run_path / "figures"

    def figure(self, step: int, name: str, png: bytes) -> None:
        """Write the file, in place of that of an earlier step."""
        file = self._folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png)


class TensorBoard(Callback):
    """Event files in `tensorboard/` of the run directory."""

    what = "the metrics"

    def __init__(self) -> None:
        self._writer: Any = None

    def started(self, run_path: Path, step: int, settings: dict[str, Any]) -> None:
        """Go on after `step`; what an earlier process wrote of later steps is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_path / "tensorboard"), purge_step=step + 1)

    def numbers(self, numbers: Numbers) -> None:
        """One point for each number."""
        for name, value in numbers.values.items():
            self._writer.add_scalar(f"{numbers.prefix}/{name}", value, numbers.step)

    def histograms(self, step: int, weights: dict[str, Tensor]) -> None:
        """The distribution of the values of each parameter."""
        for name, values in weights.items():
            self._writer.add_histogram(name.removeprefix("model.").replace(".", "/"), values, step)

    def figure(self, step: int, name: str, png: bytes) -> None:
        """One image."""
        self._writer.add_image(name, _pixels(png), step, dataformats="HWC")

    def ended(self, step: int) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases(Callback):
    """A run of Weights & Biases; one that is resumed goes on as the same run there.

    Raises TrainingError where wandb refuses to begin (no key, no connection).
    """

    what = "what Weights & Biases keeps"

    def __init__(self, section: WandbSection) -> None:
        self._section = section
        self._run: Any = None

    def started(self, run_path: Path, step: int, settings: dict[str, Any]) -> None:
        """Begin or go on; the identity of the run is kept in `wandb.json`."""
        import wandb

        file = run_path / WANDB_FILE
        identity = json.loads(file.read_text())["id"] if file.is_file() else uuid.uuid4().hex[:12]
        section = self._section
        try:
            self._run = wandb.init(
                project=section.project,
                entity=section.entity,
                group=section.group,
                name=section.name or run_path.name,
                tags=section.tags or None,
                mode=section.mode,
                id=identity,
                resume="allow",
                dir=str(run_path),
                config=settings,
            )
        except wandb.errors.Error as error:
            raise TrainingError(
                f"loggers.wandb: a run of Weights & Biases cannot begin ({one_line(error)}); "
                "log in with `wandb login`, choose mode: offline, or remove loggers.wandb"
            ) from error
        # Their own counter refuses steps that are done again after a kill.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        write_text(file, json.dumps({"id": identity, "project": section.project}) + "\n")

    def numbers(self, numbers: Numbers) -> None:
        """One record."""
        values = {f"{numbers.prefix}/{name}": value for name, value in numbers.values.items()}
        self._run.log(values | {"step": numbers.step})

    def histograms(self, step: int, weights: dict[str, Tensor]) -> None:
        """The distribution of the values of each parameter."""
        import wandb

        found = {
            f"weights/{name.removeprefix('model.')}": wandb.Histogram(values.float().cpu().numpy().ravel())
            for name, values in weights.items()
        }
        self._run.log(found | {"step": step})

    def figure(self, step: int, name: str, png: bytes) -> None:
        """One image."""
        import wandb

        self._run.log({name: wandb.Image(_pixels(png)), "step": step})

    def ended(self, step: int) -> None:
        """Hand over what is left."""
        if self._run is not None:
            self._run.finish()


def _pixels(png: bytes) -> np.ndarray:
    """Height, width and colour [h, w, 3], uint8."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
