"""Where predictions come from: which model, data, request and versions, as plain facts in a record."""

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ocpgem import __version__
from ocpgem.checkpoint import find_model_file
from ocpgem.config import dump_config
from ocpgem.data.dataset import Dataset
from ocpgem.errors import OcpgemError
from ocpgem.evaluate.open_model import Model, fingerprint
from ocpgem.evaluate.parts import fingerprint_of_data
from ocpgem.models.combined import Combined
from ocpgem.models.potential import Potential

PACKAGES = ("torch", "torch-geometric", "torch-scatter", "numpy", "ase", "lmdb")


def record_of(model: Model, sources: Sequence[Path], dataset: Dataset, task: str) -> dict[str, Any]:
    """The record of a prediction; sources: what the model was loaded from, files with their SHA-256."""
    members = [each for each in model.modules() if isinstance(each, Potential)]
    return {
        "task": task,
        "model": {
            "weights_sha256": fingerprint(model),
            "combination": model.description if isinstance(model, Combined) else "one model",
            "sources": [_file(source) for source in sources],
            "configurations": [
                {"model": dump_config(each.config), "normalization": dump_config(each.normalization)}
                for each in members
            ],
        },
        "data": {
            "path": str(dataset.path),
            "n": len(dataset),
            "systems_sha256": fingerprint_of_data(dataset),
        },
        **environment(),
    }


def environment() -> dict[str, Any]:
    """When, by what command and with which versions something is made."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": {
            "ocpgem": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_text(record: dict[str, Any]) -> str:
    """A record as JSON."""
    return json.dumps(record, indent=2) + "\n"


def _file(source: Path) -> dict[str, str | None]:
    if not source.exists():
        return {"name": str(source), "sha256": None}
    try:
        file = find_model_file(source)
    except OcpgemError:  # a folder of released files: the weights' own hash has to do
        return {"name": str(source), "sha256": None}
    return {"name": str(file), "sha256": sha256_of(file)}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
