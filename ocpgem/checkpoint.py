"""Model files: what a potential is (configuration, normalisation) and its weights, in one file that cannot run code."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocpgem.config import dump_config, parse_config
from ocpgem.errors import CheckpointError, RequestError
from ocpgem.files import written_whole
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights.safe_load import refuse_text, why_not_read
from ocpgem.models.potential import Normalization, Potential

MODEL_FILE = "model.pt"
_FORMAT, _VERSION = "ocpgem-model", 1
_SHOWN = 3


def save_potential(potential: Potential, path: Path, extra: dict[str, Any] | None = None) -> None:
    """Write `potential` to `path`; the file is complete or absent. `extra` holds plain facts (step, metrics)."""
    with written_whole(path) as file:
        torch.save(model_content(potential, potential.state_dict(), extra), file)


def model_content(
    potential: Potential, state_dict: Mapping[str, Tensor], extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a model file holds: `potential` with the weights of `state_dict`."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "model": dump_config(potential.config),
        "normalization": dump_config(potential.normalization),
        "state_dict": {key: value.detach().cpu() for key, value in state_dict.items()},
        "extra": extra or {},
    }


def load_potential(path: str | Path) -> Potential:
    """The potential of a run directory (its best, else its latest), a checkpoint or a model file, in eval mode.

    Raises RequestError if there is none at `path`, or text, CheckpointError if the file is damaged or of another kind.
    """
    file = find_model_file(Path(path))
    content = read_model_file(file)
    model = parse_config(content["model"], GemNetConfig, f"{file} (model)")
    normalization = parse_config(content["normalization"], Normalization, f"{file} (normalization)")
    potential = Potential(model, normalization)
    misfits = _misfits(potential.state_dict(), content["state_dict"])
    if misfits:
        raise CheckpointError(f"{file} does not fit its own configuration: {'; '.join(misfits)}")
    potential.load_state_dict(content["state_dict"])
    return potential.eval()


def _misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What is missing, unknown or of another shape: how many tensors of each kind, and the first few."""
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "unknown to the model": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted
            if name in found and found[name].shape != wanted[name].shape
        ],
    }
    return [
        f"{len(names)} tensors are {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in kinds.items()
        if names
    ]


def find_model_file(path: Path) -> Path:
    """The model file that `path` stands for."""
    if path.is_file():
        return path
    if not path.exists():
        raise RequestError(f"{path} does not exist; give a run directory or a checkpoint file")
    candidates = [path / MODEL_FILE, path / "best" / MODEL_FILE]
    latest = path / "checkpoints" / "latest"
    if latest.is_file():
        candidates.append(path / "checkpoints" / latest.read_text().strip() / MODEL_FILE)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise RequestError(
        f"{path} holds no model: neither {MODEL_FILE} nor best/{MODEL_FILE} nor a checkpoint is there"
    )


def read_model_file(file: Path) -> dict[str, Any]:
    """The content of a model file; only tensors and plain values are ever constructed."""
    refuse_text(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # of foreign files, which end in an error anyway
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise CheckpointError(f"{file} {why_not_read(error, 'model file')}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{file} is not a model file of ocpgem")
    if content.get("version") != _VERSION:
        raise CheckpointError(
            f"{file} has version {content.get('version')}, but this program reads version {_VERSION}"
        )
    missing = [key for key in ("model", "normalization", "state_dict") if key not in content]
    if missing:
        raise CheckpointError(f"{file} is incomplete: it lacks {', '.join(missing)}")
    return content
