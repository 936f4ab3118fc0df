"""From a released file to a potential: every source tensor used once, every target filled."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pydantic import ValidationError

from ocpgem.errors import CheckpointError, RequestError, one_line
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights import fairchem_gemnet_oc, fairchem_gemnet_t, tum_gemnet
from ocpgem.models.import_weights.containers import Container, read_container
from ocpgem.models.import_weights.mapping import KeyMap
from ocpgem.models.import_weights.scales import NO_SCALE_FILE, fill_scales, leave_unfitted, read_scale_file
from ocpgem.models.potential import Normalization, Potential
from ocpgem.models.target_files import read_element_energies

Weights = Literal["ema", "raw"]
log = logging.getLogger("ocpgem")

_NOT_PERIODIC = (
    "periodicity: the settings say use_pbc: false, so the released model sees no periodic images; here each system "
    "says in what it is periodic, so for the same energies give it systems whose pbc is false"
)


class Family(Protocol):
    """What a module for one family of released models offers."""

    def config_from_kwargs(self, kwargs: Any) -> GemNetConfig:
        """Our configuration for the arguments of the released constructor."""

    def key_map(self, config: GemNetConfig) -> KeyMap:
        """Which released tensor is which of ours."""


FAMILIES: dict[str, Family] = {
    "gemnet_t": cast("Family", fairchem_gemnet_t),
    "gemnet_oc": cast("Family", fairchem_gemnet_oc),
    "tum": cast("Family", tum_gemnet),
}


@dataclass
class Imported:
    """A released model as a potential."""

    potential: Potential
    notes: list[str]
    """What was found and decided, one sentence each, to be shown."""
    facts: dict[str, Any]
    """Plain facts to store with the model."""


def import_released(
    path: Path,
    *,
    scale_file: str | None = None,
    config_file: Path | None = None,
    weights: Weights | None = None,
    element_references: Path | None = None,
) -> Imported:
    """The potential of a released file, or of a folder with a state dict and the constructor's arguments.

    scale_file: a .json or .pt file with scale factors, or "none" for a model that was trained without.
    config_file: the settings of a file that lacks them.
    weights: "ema" for the moving averages, "raw" for the last weights; by default the averages where the file keeps
        both.
    element_references: energies of elements of a file that lacks them (ocpgem.models.target_files).

    Raises RequestError for wrong requests, DataError for wrong references, CheckpointError for a file that is hostile,
    damaged or does not fit.
    """
    container = read_container(path, config_file)
    family = FAMILIES[container.family]
    config = _config(family, container)
    keys = family.key_map(config)
    if element_references is None and container.normalization.absent_references is not None:
        container.notes.append(
            "element references: the energies are relative to those of "
            f"{container.normalization.absent_references}, which the file does not hold; name them with "
            "--element-references"
        )
    if not container.kwargs.get("use_pbc", True):
        container.notes.append(_NOT_PERIODIC)
        log.warning("%s: %s", container.origin, _NOT_PERIODIC)  # also where a released file is used as it is
    notes = [*container.notes, _choose_weights(container, keys, weights)]
    notes += _complete_scales(container, keys, scale_file)
    normalization = _normalization(container, config)
    notes.append(
        f"normalisation: energy mean {normalization.energy_mean:.6g} eV, std {normalization.energy_std:.6g} eV, "
        f"forces std {normalization.forces_std:.6g} eV/A ({container.normalization.source})"
    )
    if element_references is not None:
        normalization = _with_references(normalization, element_references, container.origin)
    if normalization.element_energies:
        source = "the file's elementrefs" if element_references is None else str(element_references)
        notes.append(f"element references: {len(normalization.element_energies)} elements, from {source}")
    potential = Potential(config, normalization)
    tensors = keys.to_ours(container.state_dict, potential.model.state_dict(), container.origin)
    broken = sorted(key for key, value in tensors.items() if not bool(value.isfinite().all()))
    if broken:
        raise CheckpointError(f"{container.origin}: weights that are not finite: {', '.join(broken)}")
    potential.model.load_state_dict(tensors)
    facts = {"imported_from": container.origin, "released_family": container.family, "notes": notes}
    if path.is_file():
        facts["sha256"] = _sha256(path)
    return Imported(potential.eval(), notes, facts)


def _config(family: Family, container: Container) -> GemNetConfig:
    try:
        return family.config_from_kwargs(container.kwargs)
    except KeyError as error:
        raise CheckpointError(
            f"{container.origin}: the settings of its model lack {error.args[0]}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{container.origin}: the settings of its model are wrong: {place} {first['msg']}"
        ) from error
    except (TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{container.origin}: the settings of its model have another form than released ones ({one_line(error)})"
        ) from error


def _choose_weights(container: Container, keys: KeyMap, weights: Weights | None) -> str:
    """Put the averages in the place of the raw weights if they are wanted; says which were taken."""
    if container.averages is None:
        if weights == "ema":
            raise RequestError(
                f"{container.origin} keeps no moving averages apart from its weights, so --weights ema cannot be done"
            )
        return "weights: those of the state dict; the file keeps no moving averages apart from them"
    if weights == "raw":
        return "weights: the last ones of the training (raw), not their moving averages"
    names = keys.trainable(container.state_dict)
    if len(names) != len(container.averages):
        raise CheckpointError(
            f"{container.origin}: its ema holds {len(container.averages)} tensors, but its state dict "
            f"{len(names)} trainable parameters; take --weights raw"
        )
    for name, average in zip(names, container.averages, strict=True):
        if average.shape != container.state_dict[name].shape:
            raise CheckpointError(
                f"{container.origin}: the moving average of {name} is {list(average.shape)} but the weight "
                f"{list(container.state_dict[name].shape)}; take --weights raw"
            )
    container.state_dict = keys.without_second_names(container.state_dict) | dict(
        zip(names, container.averages, strict=True)
    )
    return "weights: the moving averages (ema); --weights raw takes the last ones of the training"


def _complete_scales(container: Container, keys: KeyMap, scale_file: str | None) -> list[str]:
    sources = dict(container.scales)
    if scale_file is not None and scale_file != NO_SCALE_FILE:
        sources[scale_file] = read_scale_file(Path(scale_file))
    notes = fill_scales(container.state_dict, keys, sources, container.origin)
    if scale_file == NO_SCALE_FILE:
        return [*notes, *leave_unfitted(container.state_dict, keys)]
    factors = keys.unfitted_scales()
    if factors and not any(name in container.state_dict for name in factors):
        hint = f", which its settings call {container.named_scale_file}" if container.named_scale_file else ""
        raise CheckpointError(
            f"{container.origin} has none of its {len(factors)} scale factors ({next(iter(factors))}, ...); name "
            f"the published file{hint} with --scale-file, or --scale-file {NO_SCALE_FILE} if training used none"
        )
    return notes


def _normalization(container: Container, config: GemNetConfig) -> Normalization:
    found = container.normalization
    if config.forces == "gradient" and abs(found.forces_std / found.energy_std - 1) > 1e-6:
        raise CheckpointError(
            f"{container.origin}: forces that are gradients of the energy are scaled by {found.forces_std} but the "
            f"energy by {found.energy_std}; such forces do not belong to the energy"
        )
    return Normalization(
        energy_mean=found.energy_mean,
        energy_std=found.energy_std,
        forces_std=found.forces_std,
        element_energies=found.element_energies,
    )


def _with_references(normalization: Normalization, file: Path, origin: str) -> Normalization:
    if normalization.element_energies:
        raise RequestError(f"{origin} has element references of its own; leave out those of {file}")
    return normalization.model_copy(update={"element_energies": read_element_energies(file)})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
