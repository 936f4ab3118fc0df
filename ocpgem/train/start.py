"""Fine-tuning: the weights and scale factors of a run that begins with another model."""

from pathlib import Path

import torch
from torch import Tensor

from ocpgem.checkpoint import load_potential
from ocpgem.errors import ConfigError
from ocpgem.models.potential import Potential
from ocpgem.train.config import StartSection
from ocpgem.train.scale_fitting import scale_factors

_HEADS = ("energy_branches.", "energy_head.", "force_branches.", "force_head.")
_EMBEDDING = "atom_embedding.weight"
_PAIRS = "element_pairs.known"


def start_factors(potential: Potential, start: StartSection) -> dict[str, float]:
    """The scale factors of the checkpoint; raises ConfigError where it lacks one that the model has."""
    found = {name: float(scale.factor) for name, scale in scale_factors(_source(start)).items()}
    missing = sorted(set(scale_factors(potential)) - set(found))
    if missing:
        raise ConfigError(
            f"start_from.checkpoint: {start.checkpoint} lacks the scale factor {missing[0]} (of {len(missing)}); "
            "give them all with scale_factors.file (fit-scales writes it)"
        )
    return {name: found[name] for name in scale_factors(potential)}


@torch.no_grad()
def start_weights(potential: Potential, start: StartSection) -> list[str]:
    """Give `potential` the weights of the checkpoint; returns what was done, in lines.

    Embeddings go element by element, so the largest atomic number may differ. Heads that are kept speak eV as before:
    where the standard deviations of the targets have changed, their last layers are multiplied accordingly. Raises
    ConfigError for a part that differs in size or is missing, other than new heads.
    """
    source = _source(start)
    own, given = potential.model.state_dict(), source.model.state_dict()
    heads = [name for name in own if name.startswith(_HEADS)]
    kept = [
        name for name in own if name not in (_EMBEDDING, _PAIRS) and not (start.new_heads and name in heads)
    ]
    for name in kept:
        if name.endswith((".factor", ".fitted")):
            continue
        if name not in given or given[name].shape != own[name].shape:
            there = "is missing" if name not in given else f"has the shape {tuple(given[name].shape)}"
            raise ConfigError(
                f"start_from.checkpoint: model.{name} has the shape {tuple(own[name].shape)} here and {there} in "
                f"{start.checkpoint}; make the model section alike"
                + (", or set start_from.new_heads" if name in heads else "")
            )
        own[name].copy_(given[name])
    lines = [f"starting from {start.checkpoint}" + (" with new heads" if start.new_heads else "")]
    lines += _embed(own[_EMBEDDING], given[_EMBEDDING], start)
    if _PAIRS in own and _PAIRS in given:  # what the source has met is not forgotten
        shared = min(len(own[_PAIRS]), len(given[_PAIRS]))
        own[_PAIRS][:shared, :shared] |= given[_PAIRS][:shared, :shared]
    if not start.new_heads:
        _keep_units(own, source, potential)
    return lines


def _embed(own: Tensor, given: Tensor, start: StartSection) -> list[str]:
    if own.shape[1] != given.shape[1]:
        raise ConfigError(
            f"start_from.checkpoint: model.atom_dim is {own.shape[1]} here and {given.shape[1]} in {start.checkpoint}"
        )
    shared = min(len(own), len(given))
    own[:shared].copy_(given[:shared])
    for element, model in start.elements.items():
        if not (1 <= element <= len(own) and 1 <= model <= len(given)):
            raise ConfigError(
                f"start_from.elements: {element}: {model} names an element beyond model.n_elements ({len(own)} here, "
                f"{len(given)} in the checkpoint)"
            )
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
    return load_potential(Path(start.checkpoint))
