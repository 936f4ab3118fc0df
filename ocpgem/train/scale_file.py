"""Scale factors from a file: of `fit-scales`, or a released one (spec/gemnet.md 6.4), with the names of either."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from ocpgem.errors import CheckpointError, ConfigError, RequestError
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.import_weights.export import family_of
from ocpgem.models.import_weights.released import FAMILIES
from ocpgem.models.import_weights.scales import ours_of_released, read_scale_file
from ocpgem.models.potential import Potential
from ocpgem.train.scale_fitting import scale_factors

_OURS = "model."
"""Begins our names of factors and no released one."""


def read_scale_factors(file: Path, config: GemNetConfig) -> tuple[dict[str, float], list[str]]:
    """Our name -> factor, and what there is to say of the file.

    file: JSON of `fit-scales`, or JSON or .pt as the released models have them, GemNet-XL's own names included. Raises
    ConfigError for a file that holds anything but positive numbers, RequestError where there is none.
    """
    try:
        content = read_scale_file(file, otherwise_json=True)
        ours = {name: value for name, value in content.items() if name.startswith(_OURS)}
        if ours or not content:
            return {name: _factor(name, value, file) for name, value in content.items()}, []
        keys = FAMILIES[family_of(config)].key_map(config)
        translated, foreign = ours_of_released(content, keys, str(file))
    except (RequestError, CheckpointError) as error:
        raise ConfigError(f"scale_factors.file: {error}") from error
    factors = {_OURS + name: _factor(name, value, file) for name, value in translated.items()}
    if not factors:
        raise ConfigError(
            f"scale_factors.file: {file} holds none of the model's scale factors but {', '.join(foreign[:3])}; "
            "give a file that fit-scales wrote for this model or the one published with it"
        )
    said = [f"{len(factors)} scale factors read from {file}, by their released names"]
    if foreign:
        said.append(f"{file} also has factors for parts that this model lacks: {', '.join(foreign)}")
    return factors, said


def _factor(name: str, value: Any, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise ConfigError(f"scale_factors.file: in {file} {name} is {value!r}, not a number")
    number = float(value)
    if not 0 < number < math.inf:
        meaning = ", which released files write where a factor was never fitted" if number == 0 else ""
        raise ConfigError(
            f"scale_factors.file: in {file} {name} is {number:g}{meaning}; it must be a positive number"
        )
    return number


def check_scale_file(potential: Potential, file: Path) -> None:
    """Raise ConfigError where the file cannot give all scale factors of `potential`, which needs no values."""
    factors, _ = read_scale_factors(file, potential.config)
    _require_all(potential, factors, origin_of(file))


def origin_of(file: Path) -> str:
    """How messages name a file of scale factors."""
    return f"scale_factors.file: {file}"


def apply_factors(potential: Potential, values: dict[str, float], origin: str) -> None:
    """Set every scale factor of `potential`; raises ConfigError unless `values` names exactly those."""
    _require_all(potential, values, origin)
    for name, scale in scale_factors(potential).items():
        scale.set(values[name])


def _require_all(potential: Potential, values: dict[str, float], origin: str) -> None:
    factors = scale_factors(potential)
    missing, unknown = sorted(set(factors) - set(values)), sorted(set(values) - set(factors))
    if missing or unknown:
        raise ConfigError(
            f"{origin} does not fit the model: factors missing {missing or 'none'}, unknown {unknown or 'none'}; "
            "fit them again with fit-scales"
        )
