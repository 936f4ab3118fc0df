"""Models from wherever they are: run directories, model files, released checkpoints, the catalogue; one or several."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ocpgem.checkpoint import load_potential
from ocpgem.download import Progress, download
from ocpgem.errors import CheckpointError, OcpgemError, RequestError
from ocpgem.graph.topology import GraphSpec, Topology
from ocpgem.models.combined import Combined
from ocpgem.models.import_weights.catalogue import CATALOGUE, Released, fetch, find
from ocpgem.models.import_weights.released import import_released
from ocpgem.models.potential import Potential, Predictions
from ocpgem.parallel import group
from ocpgem.parallel.device import choose_device, find_device

Model = Potential | Combined
Source = str | Path


def load(
    source: Source | Sequence[Source],
    *,
    forces_from: Source | Sequence[Source] | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """Load a model, ready to predict.

    source: a run directory, a model file, a released checkpoint, or the name of one in the catalogue (downloaded once
        to the cache). Several make an ensemble: mean and spread of their predictions.
    forces_from: where the forces come from, if not from `source`.
    device: the GPU where there is one, unless said otherwise.

    Raises RequestError where there is no such model or device, CheckpointError for a file that cannot be used.
    """
    place = choose_device() if device is None else find_device(device)
    energy = [_load_one(each) for each in _listed(source)]
    forces = None if forces_from is None else [_load_one(each) for each in _listed(forces_from)]
    model: Model = energy[0] if len(energy) == 1 and forces is None else Combined(energy, forces)
    return model.to(place).eval()


def check_models(source: Sequence[Source], forces_from: Sequence[Source] | None = None) -> None:
    """Raise what `load` would raise, without downloading: models of the catalogue are taken as they are published."""
    named = [*source, *(forces_from or [])]
    if not any(_is_in_catalogue(each) for each in named):
        load(source, forces_from=forces_from, device="cpu")
        return
    for each in named:
        if not _is_in_catalogue(each):
            _load_one(each)


def load_together(
    source: Source | Sequence[Source],
    *,
    forces_from: Source | Sequence[Source] | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """`load` on every rank: rank 0 first, so that nothing is downloaded twice; its error is everybody's error."""
    error: OcpgemError | None = None
    model: Model | None = None
    if group.is_main():
        try:
            model = load(source, forces_from=forces_from, device=device)
        except OcpgemError as caught:
            error = caught
    group.raise_together(error)
    return model if model is not None else load(source, forces_from=forces_from, device=device)


def require_model(model: object) -> Model:
    """The model; raises RequestError for anything else, such as the path of one."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        name = repr(str(model))
        raise RequestError(
            f"{name} is a name, not a loaded model; load it first: model = ocpgem.load({name})"
        )
    raise RequestError(f"a {type(model).__name__} is no model; ocpgem.load gives one")


def graphs_of(model: Model) -> tuple[GraphSpec, ...]:
    """The kinds of graph that a model needs a topology of."""
    return model.graph_specs if isinstance(model, Combined) else (model.graph_spec,)


def heaviest_element(model: Model) -> int:
    """The largest atomic number that a model can take."""
    return model.n_elements if isinstance(model, Combined) else model.config.n_elements


def referenced_elements(model: Model) -> tuple[int, ...] | None:
    """The elements that a model, or every member of it, has reference energies for; None where it uses none."""
    members = [each for each in model.modules() if isinstance(each, Potential)]
    sets = [each.normalization.elements for each in members]
    used = [set(elements) for elements in sets if elements is not None]
    return tuple(sorted(set.intersection(*used))) if used else None


def has_forces(model: Model) -> bool:
    """Whether a model predicts forces."""
    return model.has_forces if isinstance(model, Combined) else model.config.forces != "none"


def device_of(model: Model) -> torch.device:
    """Where a model computes."""
    return next(model.parameters()).device


def apply(model: Model, batch: object, topologies: Sequence[Topology]) -> Predictions:
    """What a model predicts for a batch with a topology for each of `graphs_of`; gradients are not recorded."""
    with torch.no_grad():  # gradient forces switch recording on inside forward
        predictions: Predictions = model(batch, topologies if isinstance(model, Combined) else topologies[0])
    return predictions


def fingerprint(model: Model) -> str:
    """SHA-256 of all weights and settings of a model."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(key.encode() + flat.view(torch.uint8).numpy().tobytes())
    for part in model.modules():
        if isinstance(part, Potential):
            digest.update(f"{part.config!r} {part.normalization!r}".encode())
    if isinstance(model, Combined):
        digest.update(model.description.encode())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where models of the catalogue are kept: `ocpgem/models` below $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ocpgem" / "models"


def _listed(source: Source | Sequence[Source]) -> list[Source]:
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise RequestError("no model is named; give a run directory, a checkpoint or a name of the catalogue")
    return sources


def _load_one(source: Source) -> Potential:
    path = Path(source)
    if path.exists():
        return _load_path(path)
    name = _catalogue_name(source)
    if _is_in_catalogue(source):
        return load_released(find(name))
    if len(path.parts) == 1 and "gemnet" in name and not path.suffix:
        find(name)  # says which names are near
    raise RequestError(
        f"{path} does not exist; give a run directory, a checkpoint file or a name from import-checkpoint --list"
    )


def _catalogue_name(source: Source) -> str:
    return str(source).lower().replace("->", "-to-")


def _is_in_catalogue(source: Source) -> bool:
    """Whether a source is the name of a released model and no path."""
    names = {entry.name.lower() for entry in CATALOGUE}
    return _catalogue_name(source) in names and not Path(source).exists()


def _load_path(path: Path) -> Potential:
    """A potential of ours, else a released one."""
    try:
        return load_potential(path)
    except (CheckpointError, RequestError) as error:
        own = error
    if path.is_dir() and not _looks_released(path):
        raise own
    try:
        return import_released(path).potential
    except OcpgemError as error:
        if str(error) == str(own):
            raise own from None
        raise type(error)(f"{own}; read as a released checkpoint: {error}") from None


def _looks_released(folder: Path) -> bool:
    return any([*folder.glob("*kwargs.json"), *folder.glob("state_dict.pt"), *folder.glob("model.pth")])


def load_released(entry: Released, progress: Progress = lambda done, total: None) -> Potential:
    """A model of the catalogue, from the cache or, the first time, from where it is published."""
    folder = cache_folder() / entry.name
    file = folder / Path(entry.url).name
    folder.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        fetch(entry, file, progress)
    try:
        return import_released(file).potential
    except CheckpointError:
        if entry.scale_file is None:
            raise
    scales = folder / Path(entry.scale_file).name
    if not scales.is_file():
        download(entry.scale_file, scales, None, progress)
    return import_released(file, scale_file=str(scales)).potential
