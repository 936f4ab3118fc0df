"""Translating a training configuration of fairchem v1 / OCP into ours.

Every setting of the old file ends in one of three places: the new configuration, a note that says how its meaning
changed or why it has no counterpart, or the list of settings that are not known. Nothing is dropped without a word.
"""

import logging
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ocpgem.config import parse_config
from ocpgem.config.tree import dump_yaml
from ocpgem.data.open import open_dataset
from ocpgem.errors import CheckpointError, ConfigError, OcpgemError
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights.containers import model_settings
from ocpgem.models.import_weights.released import FAMILIES
from ocpgem.train.config import TrainConfig
from ocpgem.train.import_targets import TRAIN, VALIDATION, as_section, data_set, translate_targets
from ocpgem.train.v1_settings import WITHOUT_COUNTERPART, Settings, read_v1

_FRAMES = {"200k": 200_000, "2M": 2_000_000, "20M": 20_000_000, "all": 133_934_018}
"""Frames of the OC20 S2EF training sets, for a file that is read where its data is not."""
_NO_CLIPPING = 1e6
_V1_FORCES_WEIGHT = 30.0
_V1_WEIGHT_DECAY = 0.01


@dataclass
class ImportedConfig:
    """A translated configuration."""

    text: str
    """YAML; what could not be carried over stands in comments at its top."""
    n_notes: int
    mistakes: str | None
    """What is missing or wrong before it can be used; None if it is complete."""


def import_config(file: Path, gpus: int = 1) -> ImportedConfig:
    """Translate a configuration file of fairchem v1 / OCP with what it includes.

    gpus: on how many the old run was made; its batch size was per GPU. Raises ConfigError for a file that cannot be
    read, or whose model is not a GemNet that can be built here.
    """
    translation = _Translation(Settings(read_v1(file)), gpus)
    translation.translate()
    sections = [section for section in TrainConfig.model_fields if section in translation.new]
    text = dump_yaml({section: translation.new[section] for section in sections})
    try:
        parse_config(text, TrainConfig, "the translation")
        mistakes = None
    except ConfigError as error:
        mistakes = str(error)
    n_notes = len(translation.notes) + len(translation.unknown)
    return ImportedConfig(_comments(file, translation) + text, n_notes, mistakes)


@dataclass
class _Translation:
    """Fills `new` from `old`, section by section."""

    old: Settings
    gpus: int
    new: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    steps_per_epoch: int | None = None

    def translate(self) -> None:
        """Do all of it."""
        self._data()
        model = self._model()
        translate_targets(self.old, self.set, self.note)
        self._length()
        self._loss(model)
        self._optimizer()
        self._schedule()
        self._validation(model)
        self._rest()

    def note(self, key: str, text: str) -> None:
        """Tell the user something about an old setting."""
        self.notes.append((key, text))

    def set(self, path: str, value: Any) -> None:
        """Give a new setting its value; None leaves it at its default."""
        if value is None:
            return
        here = self.new
        *sections, key = path.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        here[key] = value

    def _data(self) -> None:
        self.set("data.train", data_set(self.old, TRAIN))
        val = data_set(self.old, VALIDATION)
        self.set("data.val", None if val is None else {"val": val})
        per_gpu = self.old.take_number("optim.batch_size")
        if per_gpu is not None:
            self.set("data.batch_size", int(per_gpu) * self.gpus)
            self.note(
                "optim.batch_size",
                f"was {per_gpu} per GPU; data.batch_size is over all ranks, here for --gpus {self.gpus}",
            )
        self.set("data.eval_batch_size", self.old.take_number("optim.eval_batch_size"))
        self.set("data.workers", self.old.take_number("optim.num_workers"))
        self.set("seed", self.old.take_number("seed", "cmd.seed"))
        self.set("log_every_steps", self.old.take_number("print_every", "cmd.print_every"))
        if self.old.take_flag("amp"):
            self.set("precision", "bf16")
            self.note("amp", "was float16 with a loss scale; precision: bf16 needs none")

    def _model(self) -> GemNetConfig | None:
        if not self.old.take_all(r"(model|model_attributes)(\..*)?"):
            self.note("model", "the file names no model; add one, as model: {variant: gemnet_dT}")
            return None
        try:
            family, kwargs = model_settings(self.old.plain, "this configuration")
            self._note_model_arguments(kwargs)
            with _warnings_of("ocpgem") as warnings:
                model = FAMILIES[family].config_from_kwargs(kwargs)
        except KeyError as error:
            raise ConfigError(f"model.{error.args[0]} is missing; the released model needs it") from error
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigError(f"the model cannot be built here: {wrong}") from error
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
        except (TypeError, AttributeError) as error:  # a value of another kind than the released class takes
            raise ConfigError(
                f"the arguments of the model have another form than released ones ({error})"
            ) from error
        for warning in warnings:
            self.note("model", warning)
        default = GemNetConfig.model_validate({"variant": model.variant})
        self.set("model", {"variant": model.variant} | _changed(model.model_dump(), default.model_dump()))
        return model

    def _note_model_arguments(self, kwargs: dict[str, Any]) -> None:
        """Say which of the model's arguments play no part."""
        if "scale_file" in kwargs:
            self.note(
                "model.scale_file",
                "is not read; the factors are fitted before the first step, unless scale_factors.file names some that "
                "the released code or fit-scales has written",
            )
        graph = [f"model.{name}" for name in ("otf_graph", "use_pbc", "use_pbc_single") if name in kwargs]
        if graph:
            self.note(", ".join(graph), "edges are always computed; each system says in what it is periodic")
        model = self.old.plain["model"]
        given = {
            **(model if isinstance(model, dict) else {}),
            **(self.old.plain.get("model_attributes") or {}),
        }
        unused = [f"model.{name}" for name in given if name not in {*kwargs, "name", "backbone", "heads"}]
        if unused:
            self.note(", ".join(unused), "has no counterpart")

    def _length(self) -> None:
        """Epochs become steps, which needs the size of the training set."""
        data = self.new.get("data", {})
        train = data.get("train")
        size = self._training_systems(train["path"] if isinstance(train, dict) else train)
        if size is not None and data.get("batch_size"):
            self.steps_per_epoch = -(-size // data["batch_size"])
        steps, epochs = self.old.take_number("optim.max_steps"), self.old.take_number("optim.max_epochs")
        if steps is not None:
            self.set("steps", steps)
            if epochs is not None:
                self.note("optim.max_epochs", f"{epochs} is not used, because there is optim.max_steps")
        elif epochs is not None and self.steps_per_epoch is None:
            self.note(
                "optim.max_epochs",
                f"{epochs} epochs are {epochs} x (training systems / data.batch_size) steps, but the training set is "
                "not here to be counted; add steps yourself",
            )
        elif epochs is not None and self.steps_per_epoch is not None:
            self.set("steps", max(1, int(epochs * self.steps_per_epoch)))
            self.note("optim.max_epochs", f"{epochs} epochs of {size:,} systems are counted as steps")

    def _training_systems(self, path: Any) -> int | None:
        try:
            if isinstance(path, str) and Path(path).exists():
                return len(open_dataset(path))
        except OcpgemError as error:
            self.note("dataset", f"the training set cannot be counted: {error}")
        split = re.search(r"s2ef/(200k|2M|20M|all)/train/?$", str(path))
        if split is None:
            return None
        self.note("dataset", f"{path} is taken for the {_FRAMES[split[1]]:,} frames of OC20; it is not here")
        return _FRAMES[split[1]]

    def _loss(self, model: GemNetConfig | None) -> None:
        energy = self._loss_term("energy", "optim.energy_coefficient", "optim.loss_energy", "mae")
        forces = self._loss_term("forces", "optim.force_coefficient", "optim.loss_force", "l2mae")
        self.set("loss.energy", 1.0 if energy is None else energy)
        free = self.old.take_flag("task.train_on_free_atoms", "outputs.forces.train_on_free_atoms")
        if model is not None and model.forces == "none":
            self.set("loss.forces", 0.0)
            self._train_on_relaxed_energies()
            return
        if forces is None:
            self.note("optim.force_coefficient", "was not given; v1 then took 30")
        self.set("loss.forces", _V1_FORCES_WEIGHT if forces is None else forces)
        if not free:
            self.note("task.train_on_free_atoms", "was not set; here fixed atoms never count in the loss")

    def _train_on_relaxed_energies(self) -> None:
        """Models without forces are those of IS2RE."""
        data = self.new.get("data", {})
        if "train" in data:
            data["train"] = as_section(data["train"]) | {"energy": "relaxed"}
        if "val" in data:
            data["val"] = {
                name: as_section(entry) | {"energy": "relaxed"} for name, entry in data["val"].items()
            }
        self.note(
            "model",
            "predicts no forces, so the target is the relaxed energy (IS2RE); remove energy: relaxed otherwise",
        )

    def _loss_term(self, target: str, coefficient: str, function: str, ours: str) -> Any:
        new = [f"loss_functions.{place}{target}" for place in ("", "0.", "1.", "2.")]
        weight = self.old.take_number(coefficient, *(f"{path}.coefficient" for path in new))
        name = self.old.take(function, *(f"{path}.fn" for path in new))
        if name is not None and str(name).lower() != ours:
            self.note(function, f"was {name}; here it is always {ours}, so its weight may have to change")
        return weight

    def _optimizer(self) -> None:
        name = self.old.take("optim.optimizer")
        if name not in (None, "AdamW"):
            self.note("optim.optimizer", f"was {name}; here it is always AdamW")
        self.set("optim.lr", self.old.take_number("optim.lr_initial", "optim.optimizer_params.lr"))
        self.set("optim.betas", self.old.take("optim.optimizer_params.betas"))
        self.set("optim.eps", self.old.take_number("optim.optimizer_params.eps"))
        self.set("optim.amsgrad", self.old.take_flag("optim.optimizer_params.amsgrad"))
        inner = self.old.take_number("optim.optimizer_params.weight_decay")
        outer = self.old.take_number("optim.weight_decay")
        self.set("optim.weight_decay", outer or (_V1_WEIGHT_DECAY if inner is None else inner))
        if inner is None and not outer:
            self.note(
                "optim.weight_decay",
                "is 0.01, on which v1 acted unless optimizer_params named it; set 0 if none was meant",
            )
        clip = self.old.take_number("optim.clip_grad_norm")
        self.set("optim.clip_norm", clip or _NO_CLIPPING)
        if not clip:
            self.note(
                "optim.clip_grad_norm", f"was not set; a clip_norm of {_NO_CLIPPING:g} hardly ever acts"
            )
        self.set("optim.ema_decay", self.old.take_number("optim.ema_decay") or 0.0)

    def _schedule(self) -> None:
        name = self.old.take("optim.scheduler")
        kind = f"{name} {self.old.take('optim.scheduler_params.lambda_type')}".lower()
        milestones = self.old.take(*_places("lr_milestones", "milestones")) or self._epochs("decay_epochs")
        gamma = self.old.take_number(*_places("lr_gamma", "gamma", "decay_rate"))
        warmup = self.old.take_number(*_places("warmup_steps")) or self._epochs("warmup_epochs")
        lowest = self.old.take_number(*_places("lr_min_factor"))
        if "plateau" in kind:
            schedule: dict[str, Any] = {"name": "plateau", "plateau": self._plateau()}
            if not self.new.get("data", {}).get("val"):
                schedule = {"name": "cosine", "final_factor": 0.01}
                self.note(
                    "optim.scheduler", f"{name} needs a validation set; without one, a cosine over all steps"
                )
        elif "cosine" in kind:
            schedule = {"name": "cosine", "final_factor": self._floor() if lowest is None else lowest}
            period = self.old.take_number(*_places("T_max"))
            if period is not None and period != self.new.get("steps"):
                self.note("optim.scheduler_params.T_max", f"was {period}; here a cosine always ends at steps")
        elif milestones:
            schedule = {"name": "step", "milestones": milestones} | (
                {} if gamma is None else {"gamma": gamma}
            )
            self.note("optim.lr_milestones", "are taken as optimiser steps, unless the file says epochs")
        else:
            schedule = {"name": "constant"}
            if kind not in ("none none", "null none", "lambdalr none"):
                self.note("optim.scheduler", f"{name} does not exist here; the rate stays constant")
        self.set("optim.schedule", schedule | ({"warmup_steps": int(warmup)} if warmup else {}))

    def _plateau(self) -> dict[str, Any]:
        """The settings of torch's ReduceLROnPlateau; those that were not given have torch's defaults."""
        defaults = {"factor": 0.1, "patience": 10, "threshold": 1e-4, "cooldown": 0}
        given = {key: self.old.take_number(*_places(key)) for key in defaults}
        found = {key: defaults[key] if value is None else value for key, value in given.items()}
        lowest = self.old.take_number(*_places("min_lr"))
        if lowest:
            found["lowest"] = lowest / self.new["optim"].get("lr", 1.0)
        mode = self.old.take(*_places("mode"))
        if mode is not None:
            self.note(
                "optim.mode", f"was {mode}; of validation.metric the smaller value is always the better one"
            )
        return found

    def _floor(self) -> float:
        lowest: float = self.old.take_number(*_places("eta_min")) or 0.0
        return lowest / self.new["optim"].get("lr", 1.0)

    def _epochs(self, name: str) -> Any:
        """A number of epochs, or a list of them, in steps."""
        value = self.old.take(*_places(name))
        if value is None:
            return None
        if self.steps_per_epoch is None:
            self.note(f"optim.{name}", f"{value} epochs cannot be counted in steps without the training set")
            return None
        if isinstance(value, list):
            return [round(each * self.steps_per_epoch) for each in value]
        return round(value * self.steps_per_epoch)

    def _validation(self, model: GemNetConfig | None) -> None:
        every = self.old.take_number("optim.eval_every")
        if every is None:
            every = self.steps_per_epoch
            self.note("optim.eval_every", "was not given; v1 then validated once an epoch")
        self.set("validation.every_steps", every)
        saved = self.old.take_number("optim.checkpoint_every")
        self.set("checkpoint.every_steps", saved if saved and saved > 0 else every)
        metric = self.old.take("task.primary_metric", "evaluation_metrics.primary_metric")
        ours = "energy_mae" if model is not None and model.forces == "none" else "forces_mae"
        if metric in ("energy_mae", "forces_mae"):
            ours = metric
        elif metric is not None:
            self.note("primary_metric", f"was {metric}; the best model is chosen by {ours}")
        self.set("validation.metric", ours)

    def _rest(self) -> None:
        for pattern, text in WITHOUT_COUNTERPART:
            found = self.old.take_all(pattern)
            if found:
                self.note(", ".join(found), text)
        self.unknown = [f"{path}: {leaf.content!r} ({leaf.origin})" for path, leaf in self.old.left().items()]


def _places(*names: str) -> list[str]:
    """Where v1 had a setting of the schedule."""
    return [f"optim.{section}{name}" for name in names for section in ("", "scheduler_params.")]


def _changed(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from the default, sections merged."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        base = default[key]
        if isinstance(value, dict) and isinstance(base, dict):
            inner = _changed(value, base)
            changed |= {key: inner} if inner else {}
        elif value != base:
            changed[key] = value
    return changed


@contextmanager
def _warnings_of(logger: str) -> Iterator[list[str]]:
    """What is logged meanwhile; it does not reach the terminal."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(logger).addHandler(handler)
    try:
        yield heard
    finally:
        logging.getLogger(logger).removeHandler(handler)


def _comments(file: Path, translation: _Translation) -> str:
    lines = [f"Translated from {file} (fairchem v1 / OCP) by main.py config import."]
    if translation.notes:
        lines.append("What is not as it was:")
        lines += [f"- {key}: {text}" for key, text in translation.notes]
    if translation.unknown:
        lines.append("Not known, and so not translated:")
        lines += [f"- {item}" for item in translation.unknown]
    return "".join(f"# {piece}\n" for line in lines for piece in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    indent = "  " if line.startswith("-") else ""
    return textwrap.wrap(line, 108, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
