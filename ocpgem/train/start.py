"""Fine-tuning: the weights and scale factors of a run that begins with another model."""

from pathlib import Path

import torch
from torch import Tensor

from ocpgem.checkpoint import load_potential
from ocpgem.errors import CheckpointError, ConfigError, RequestError
from ocpgem.models.potential import Potential
from ocpgem.train.config import StartSection
from ocpgem.train.scale_fitting import scale_factors

_HEADS = ("energy_branches.", "energy_head.", "force_branches.", "force_head.")
_EMBEDDING = "atom_embedding.weight"
_PAIRS = "element_pairs.known"


def check_start(potential: Potential, start: StartSection, factors: bool) -> None:
    """Raise ConfigError where `start_weights` or, if `factors` are wanted, `start_factors` would.

    potential: need not have values, it may be on the meta device.
    """
    source = _source(start)
    _require_fit(potential, source, start)
    if factors:
        _require_factors(potential, source, start)


def start_factors(potential: Potential, start: StartSection) -> dict[str, float]:
    """The scale factors of the checkpoint; raises ConfigError where it lacks one that the model has."""
    source = _source(start)
    _require_factors(potential, source, start)
    found = scale_factors(source)
    return {name: float(found[name].factor) for name in scale_factors(potential)}


@torch.no_grad()
def start_weights(potential: Potential, start: StartSection) -> list[str]:
    """Give `potential` the weights of the checkpoint; returns what was done, in lines.

    Embeddings go element by element, so the largest atomic number may differ. Heads that are kept speak eV as before:
    where the standard deviations of the targets have changed, their last layers are multiplied accordingly. Raises
    ConfigError for a part that differs in size or is missing, other than new heads.
    """
    source = _source(start)
    _require_fit(potential, source, start)
    own, given = potential.model.state_dict(), source.model.state_dict()
    for name in _taken_over(own, start):
        own[name].copy_(given[name])
    lines = [f"starting from {start.checkpoint}" + (" with new heads" if start.new_heads else "")]
    lines += _embed(own[_EMBEDDING], given[_EMBEDDING], start)
    if _PAIRS in own and _PAIRS in given:  # what the source has met is not forgotten
        shared = min(len(own[_PAIRS]), len(given[_PAIRS]))
        own[_PAIRS][:shared, :shared] |= given[_PAIRS][:shared, :shared]
    if not start.new_heads:
        _keep_units(own, source, potential)
    return lines


def _taken_over(own: dict[str, Tensor], start: StartSection) -> list[str]:
    """The tensors that begin as they are in the checkpoint: all but embeddings, scale factors and new heads."""
    apart = (_EMBEDDING, _PAIRS)
    return [
        name
        for name in own
        if name not in apart
        and not name.endswith((".factor", ".fitted"))
        and not (start.new_heads and name.startswith(_HEADS))
    ]


def _require_fit(potential: Potential, source: Potential, start: StartSection) -> None:
    own, given = potential.model.state_dict(), source.model.state_dict()
    for name in _taken_over(own, start):
        if name not in given or given[name].shape != own[name].shape:
            there = "is missing" if name not in given else f"has the shape {tuple(given[name].shape)}"
            raise ConfigError(
                f"start_from.checkpoint: model.{name} has the shape {tuple(own[name].shape)} here and {there} in "
                f"{start.checkpoint}; make the model section alike"
                + (", or set start_from.new_heads" if name.startswith(_HEADS) else "")
            )
    ours, theirs = own[_EMBEDDING], given[_EMBEDDING]
    if ours.shape[1] != theirs.shape[1]:
        raise ConfigError(
            f"start_from.checkpoint: model.atom_dim is {ours.shape[1]} here and {theirs.shape[1]} in {start.checkpoint}"
        )
    for element, model in start.elements.items():
        if not (1 <= element <= len(ours) and 1 <= model <= len(theirs)):
            raise ConfigError(
                f"start_from.elements: {element}: {model} names an element beyond model.n_elements ({len(ours)} here, "
                f"{len(theirs)} in the checkpoint)"
            )


def _require_factors(potential: Potential, source: Potential, start: StartSection) -> None:
    missing = sorted(set(scale_factors(potential)) - set(scale_factors(source)))
    if missing:
        raise ConfigError(
            f"start_from.checkpoint: {start.checkpoint} lacks the scale factor {missing[0]} (of {len(missing)}); "
            "give them all with scale_factors.file (fit-scales writes it)"
        )


def _embed(own: Tensor, given: Tensor, start: StartSection) -> list[str]:
    shared = min(len(own), len(given))
    own[:shared].copy_(given[:shared])
    for element, model in start.elements.items():
        own[element - 1].copy_(given[model - 1])
    more = len(own) - shared
    return [f"{more} heavier elements than the checkpoint knows begin at random"] if more > 0 else []


def _keep_units(own: dict[str, Tensor], source: Potential, potential: Potential) -> None:
    before, now = source.normalization, potential.normalization
    for name, tensor in own.items():
        if name.startswith(("energy_head.", "force_head.")) and tensor.ndim == 2 and tensor.shape[0] == 1:
            of_energy = name.startswith("energy_head.")
            old, new = (
                (before.energy_std, now.energy_std) if of_energy else (before.forces_std, now.forces_std)
            )
            tensor.mul_(old / new)


def _source(start: StartSection) -> Potential:
    try:
        return load_potential(Path(start.checkpoint))
    except (RequestError, CheckpointError) as error:
        raise ConfigError(f"start_from.checkpoint: {error}") from error
