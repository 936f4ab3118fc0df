"""Ours and the released code side by side: the same weights, the same systems, each in a process of its own."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.costs import MODELS, systems_of
from benchmarks.speed.process import NotMeasuredError
from benchmarks.speed.ready import potential_of
from benchmarks.speed.structures import prepared
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights.export import export_released, family_of

SCRIPT = Path(__file__).with_name("released.py")


def has_released(name: str) -> bool:
    """Whether fairchem has the model of that name in `MODELS`; the original code's GemNet-Q is none of fairchem's."""
    return family_of(GemNetConfig.model_validate(MODELS[name])) != "tum"


def export(model: str, sizes: list[int], folder: str, device: str, predict: bool) -> None:
    """Write weights and systems for `released`, and, if asked to, our energies and forces of them."""
    potential = potential_of(model, device)
    export_released(potential, Path(folder) / "model.pt")
    batch, topology = prepared(systems_of(model, tuple(sizes)), potential.graph_spec)
    keys = ("pos", "cell", "pbc", "natoms", "atomic_numbers", "tags", "fixed", "batch")
    np.savez(Path(folder) / "input.npz", **{key: batch[key].numpy() for key in keys})
    if predict:
        with torch.no_grad():
            predictions = potential(batch.to(device), topology.to(device))
        assert predictions.forces is not None
        ours = {"energy": predictions.energy.cpu().numpy(), "forces": predictions.forces.cpu().numpy()}
        np.savez(Path(folder) / "predicted.npz", **ours)


@contextmanager
def exported(
    run: Callable[..., Any], model: str, sizes: tuple[int, ...], device: str, predict: bool
) -> Iterator[str]:
    """A folder that `export` wrote in a process of its own, whose memory is free again.

    run: calls a function of `run.PARTS` with its arguments in a process of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        run("export", model=model, sizes=sizes, folder=folder, device=device, predict=predict)
        yield folder


def released(python: str, folder: str, part: str, repeats: int, *options: str) -> dict[str, Any]:
    """What `released.py` measures of a part of the model in the folder; raises NotMeasuredError if it fails."""
    command = [python, str(SCRIPT), folder, part, str(repeats), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # by Linux, most likely
        raise NotMeasuredError(
            f"{python} was killed by signal {-done.returncode}, probably for want of memory"
        )
    if done.returncode:
        raise NotMeasuredError(f"{python} could not run the released code:\n{done.stderr}".strip())
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(folder: str) -> dict[str, float]:
    """The largest difference of our and the released energies and forces, relative to the largest of them."""
    found = {}
    with np.load(Path(folder) / "predicted.npz") as ours, np.load(Path(folder) / "output.npz") as theirs:
        for key in ("energy", "forces"):
            # the released energies are [n_systems, 1] or [n_systems]
            difference = np.abs(ours[key] - theirs[key].reshape(ours[key].shape)).max()
            found[f"{key}_relative_difference"] = float(difference / np.abs(theirs[key]).max())
    return found
