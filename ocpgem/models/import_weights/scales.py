"""Scale factors that are stored beside the weights, under the names of every age (spec/gemnet.md 6.4)."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocpgem.errors import CheckpointError, RequestError, one_line
from ocpgem.models.import_weights.mapping import SCALE_SUFFIX, KeyMap
from ocpgem.models.import_weights.safe_load import load_values

NO_SCALE_FILE = "none"
"""Says, in place of a file, that a model was trained without fitted factors."""

_OLD_NAME = re.compile(
    r"(TripInteraction|QuadInteraction|AtomUpdate|IntBlock|OutBlock)_(\d+)_(had|sum)(?:_(\w+))?"
)
_PREFIXES = ("module.", "_orig_mod.", "backbone.")


def read_scale_file(path: Path, otherwise_json: bool = False) -> dict[str, Any]:
    """Released name -> value, from a .json or .pt file; raises RequestError, CheckpointError.

    otherwise_json: a file with any other ending is JSON as well, not one of torch's.
    """
    is_json = path.suffix not in (".pt", ".pth") if otherwise_json else path.suffix == ".json"
    scales = _json(path) if is_json else load_values(path)
    if not isinstance(scales, Mapping):
        raise RequestError(f"{path} should hold scale factors as a dictionary of names and numbers")
    return dict(scales)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RequestError(f"{path}: there is no such file") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as scale factors: {one_line(error)}") from error


def fill_scales(
    state: dict[str, Tensor], keys: KeyMap, sources: Mapping[str, Mapping[str, Any]], origin: str
) -> list[str]:
    """Put the factors of `sources` into `state` where it lacks them or has them unfitted.

    sources: where each dictionary is from -> released name -> value. Returns what was done, to be shown. Raises
    CheckpointError where two sources give one factor different values; one that none gives is left out of `state`.
    """
    names = keys.scale_names
    stored = {name: state[name + SCALE_SUFFIX] for name in names if name + SCALE_SUFFIX in state}
    values = {name: value for name, value in stored.items() if not keys.is_unfitted(name, value)}
    origins = dict.fromkeys(values, "its state dict")
    notes = []
    for place, scales in sources.items():
        found, foreign = _by_module_name(scales, names, place)
        for name, value in found.items():
            if name not in values:
                values[name], origins[name] = value, place
            elif not torch.allclose(value, values[name].float()):
                raise CheckpointError(
                    f"{origin}: the scale factor {name} is {float(values[name])} in {origins[name]} but "
                    f"{float(value)} in {place}"
                )
        if foreign:
            notes.append(f"{place} also has factors for parts that this model lacks: {', '.join(foreign)}")
    for name, value in values.items():
        state[name + SCALE_SUFFIX] = value
    counts = Counter(origins.values())
    notes += [f"scale factors: {count} from {place}" for place, count in counts.items()]
    unfitted = [name for name in stored if name not in values]
    if unfitted:
        notes.append(f"scale factors: {len(unfitted)} are not fitted and act as 1")
    return notes


def ours_of_released(
    scales: Mapping[str, Any], keys: KeyMap, place: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Our module name -> value, and released names of what the model lacks; raises CheckpointError as `fill_scales`."""
    found, foreign = _by_module_name(scales, keys.scale_names, place)
    return {keys.our_scale(name): value for name, value in found.items()}, foreign


def leave_unfitted(state: dict[str, Tensor], keys: KeyMap) -> list[str]:
    """Mark every factor that `state` lacks as not fitted, because the user says that it never was."""
    absent = {key: value for key, value in keys.unfitted_scales().items() if key not in state}
    state |= absent
    return [f"scale factors: {len(absent)} are taken as never fitted and act as 1"] if absent else []


def _by_module_name(
    scales: Mapping[str, Any], names: Collection[str], place: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Those of `scales` that belong to modules of the model, and the names of those that do not."""
    found: dict[str, Tensor] = {}
    foreign = []
    for key, value in scales.items():
        if key == "comment":
            continue
        name = next((name for name in _module_names(key) if name in names), None)
        if name is None:
            foreign.append(key)
            continue
        if name in found:
            raise CheckpointError(f"{place} has two values of the scale factor {name}")
        found[name] = _scalar(value, key, place)
    return found, foreign


def _scalar(value: Any, key: str, place: str) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().float().reshape(())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value))
    raise CheckpointError(f"{place}: the scale factor {key} is a {type(value).__name__}, not a number")


def _module_names(key: str) -> list[str]:
    """The released modules that `key` may mean: itself without prefixes, or the translation of an old name."""
    old = _OLD_NAME.fullmatch(key)
    if old is None:
        while key.startswith(_PREFIXES):
            key = key.partition(".")[2]
        return [key.removesuffix(SCALE_SUFFIX)]
    part, number, kind, of = old.group(1), int(old.group(2)), old.group(3), old.group(4)
    if part == "OutBlock":
        modules = ["scale_sum"] if kind == "sum" else ["scale_rbf_F", "scale_rbf"]
        return [f"out_blocks.{number}.{module}" for module in modules]
    block = f"int_blocks.{number - 1}"  # interaction blocks were counted from one
    if part in ("AtomUpdate", "IntBlock"):  # GemNet-XL's file says IntBlock
        return [f"{block}.atom_update.scale_sum"]
    interaction = "trip_interaction" if part == "TripInteraction" else "quad_interaction"
    return [f"{block}.{interaction}.scale_{of}" + ("_sum" if kind == "sum" else "")]
