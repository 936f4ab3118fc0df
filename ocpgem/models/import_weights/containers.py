"""What a released file holds, whatever its age: weights, settings, normalisation, scale factors (spec/gemnet.md 6.5).

A container of fairchem v1 / OCP is a dictionary with `state_dict`, `config` and more; the TUM release is a bare state
dict with the constructor's arguments in a JSON file beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ocpgem.errors import CheckpointError, RequestError, one_line
from ocpgem.models.import_weights.normalizers import ReleasedNormalization, read_normalization
from ocpgem.models.import_weights.safe_load import load_values

_FAMILIES = {
    "gemnet_t": "gemnet_t",
    "gemnett": "gemnet_t",
    "gemnet_xl": "gemnet_t",
    "gp_gemnet_t": "gemnet_t",
    "graphparallelgemnett": "gemnet_t",
    "gemnet_oc": "gemnet_oc",
    "gemnetoc": "gemnet_oc",
    "gemnet_tum": "tum",
}
"""Names of released models, registered or of classes, in lower case. GemNet-XL is GemNet-T on several devices."""

_WRAPPERS = ("module.", "_orig_mod.", "backbone.")
_OUTPUT_HEADS = "output_heads."


@dataclass
class Container:
    """One released model as it is stored."""

    origin: str
    family: str
    """gemnet_t, gemnet_oc or tum: which module of this package knows its names."""
    kwargs: dict[str, Any]
    """Arguments of the released constructor."""
    state_dict: dict[str, Tensor]
    """In the order of the file, without the prefixes that wrappers leave."""
    averages: list[Tensor] | None
    """Exponential moving averages of the trainable parameters, in their order, where the file keeps them apart."""
    normalization: ReleasedNormalization
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Dictionaries of scale factors beside the weights: where each is from -> released name -> value."""
    named_scale_file: str | None = None
    """Where the settings say that the scale factors are: a path on the machine that trained the model."""
    notes: list[str] = field(default_factory=list)


def read_container(path: Path, config_file: Path | None = None) -> Container:
    """Read a released file, or a folder with a state dict and the constructor's arguments.

    config_file: a configuration of fairchem v1 / OCP (YAML) or arguments (JSON) that the file itself lacks; where it
        has its own, this one is used. Raises RequestError, CheckpointError.
    """
    weights_file, arguments_file = _locate(path)
    content = load_values(weights_file)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{weights_file} holds no weights: it is a {type(content).__name__}, not a dictionary"
        )
    if "state_dict" not in content:
        content = {"state_dict": content}
    settings = _settings(content, config_file, arguments_file, weights_file)
    container = Container(
        origin=str(path),
        family=settings.family,
        kwargs=settings.kwargs,
        state_dict=_strip_prefixes(content["state_dict"], str(weights_file)),
        averages=_averages(content.get("ema"), str(weights_file)),
        normalization=read_normalization(content, settings.config, str(weights_file)),
    )
    if config_file is not None:
        container.notes.append(f"settings: those of {config_file}")
    named = container.kwargs.pop("scale_file", None)
    container.named_scale_file = named if isinstance(named, str) else None
    for place, scales in (
        (f"scale_dict of {weights_file}", content.get("scale_dict")),
        ("the scale_file of its settings", named),
        (f"scale_factors of {arguments_file}", settings.scales),
    ):
        if isinstance(scales, Mapping) and scales:
            container.scales[place] = dict(scales)
    return container


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The file with the weights and, where there is one, that with the constructor's arguments."""
    if path.is_dir():
        named = [path / name for name in ("state_dict.pt", "model.pth") if (path / name).is_file()]
        found = named or sorted([*path.glob("*.pt"), *path.glob("*.pth")])
        if len(found) != 1:
            raise RequestError(
                f"{path} should hold one file with weights (state_dict.pt or model.pth), but has {len(found)}; "
                "name the file itself"
            )
        path = found[0]
    names = (f"{path.stem}_kwargs.json", "kwargs.json", "model_kwargs.json")
    return path, next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


@dataclass
class _Settings:
    family: str
    kwargs: dict[str, Any]
    config: Mapping[str, Any]
    scales: Mapping[str, Any] | None = None


def _settings(
    content: Mapping[str, Any], config_file: Path | None, arguments_file: Path | None, weights_file: Path
) -> _Settings:
    stored = content.get("config")
    if isinstance(stored, Mapping) and config_file is None:
        return _from_config(stored, str(weights_file))
    file = config_file or arguments_file
    if file is None:
        raise RequestError(
            f"{weights_file} holds weights without their settings; name the model's configuration with --config "
            "(YAML of fairchem v1 / OCP), or put the constructor's arguments beside it as kwargs.json"
        )
    settings = _read_settings_file(file)
    if "kwargs" not in settings and ("model" in settings or "model_attributes" in settings):
        return _from_config(settings, str(file))
    kwargs = dict(settings.get("kwargs", settings))
    name = settings.get("model")
    if settings.get("peer") == "tum" or "triplets_only" in kwargs:
        name = "gemnet_tum"
    elif name is None:
        name = "gemnet_oc" if "emb_size_trip_in" in kwargs else "gemnet_t"
    return _Settings(_family(name, str(file)), kwargs, {}, settings.get("scale_factors"))


def _read_settings_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text()
        settings = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read as settings: {one_line(error)}") from error
    except FileNotFoundError as error:
        raise RequestError(f"{file}: there is no such file") from error
    if not isinstance(settings, dict):
        raise RequestError(f"{file} should hold the settings of a model as a map")
    return settings


def model_settings(config: Mapping[str, Any], origin: str) -> tuple[str, dict[str, Any]]:
    """The family of the model that a configuration of fairchem v1 / OCP describes, and its constructor's arguments."""
    settings = _from_config(config, origin)
    return settings.family, settings.kwargs


def _from_config(config: Mapping[str, Any], origin: str) -> _Settings:
    """Old layout: `model` is a name beside `model_attributes`; new layout: `model` is a map with `name`."""
    model, attributes = config.get("model"), config.get("model_attributes") or {}
    kwargs: dict[str, Any] = dict(attributes)
    if isinstance(model, Mapping):
        kwargs |= model
    elif isinstance(model, str):
        kwargs["name"] = model
    name = kwargs.pop("name", None)
    if name == "hydra":
        name, kwargs = _from_backbone_and_heads(kwargs, origin)
    if not isinstance(name, str):
        raise CheckpointError(f"{origin}: its configuration names no model (config.model)")
    return _Settings(_family(name, origin), kwargs, config)


def _from_backbone_and_heads(kwargs: Mapping[str, Any], origin: str) -> tuple[Any, dict[str, Any]]:
    """The late layout splits a model into a backbone and heads, each with arguments of its own."""
    backbone = kwargs.get("backbone")
    if not isinstance(backbone, Mapping):
        raise CheckpointError(f"{origin}: a model made of a backbone and heads has no config.model.backbone")
    merged = dict(backbone)
    for head in (kwargs.get("heads") or {}).values():
        arguments = {key: value for key, value in head.items() if key != "module"}
        clashing = [key for key in arguments if merged.get(key, arguments[key]) != arguments[key]]
        if clashing:
            raise CheckpointError(
                f"{origin}: backbone and heads disagree about {', '.join(sorted(clashing))}"
            )
        merged |= arguments
    return merged.pop("model", None), merged


def _family(name: str, origin: str) -> str:
    plain = name.rsplit(".", 1)[-1].lower().removesuffix("_backbone")
    if plain not in _FAMILIES:
        raise CheckpointError(
            f"{origin} is a {name!r}, which is no GemNet that can be read; known are {', '.join(sorted(_FAMILIES))}"
        )
    return _FAMILIES[plain]


def _strip_prefixes(state_dict: Any, origin: str) -> dict[str, Tensor]:
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise CheckpointError(f"{origin} holds no weights: its state_dict is not a filled dictionary")
    stripped: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{origin}: {key!r} of its state dict is a {type(value).__name__}, not a tensor"
            )
        name = _plain_name(key)
        if name in stripped:
            raise CheckpointError(f"{origin}: two keys of its state dict mean {name}")
        stripped[name] = value.detach()
    return stripped


def _plain_name(key: str) -> str:
    """The name without what wrappers put in front: module., _orig_mod., backbone., output_heads.<name>."""
    shortened = True
    while shortened:
        shortened = False
        for wrapper in _WRAPPERS:
            if key.startswith(wrapper):
                key, shortened = key.removeprefix(wrapper), True
    if key.startswith(_OUTPUT_HEADS):
        key = key.removeprefix(_OUTPUT_HEADS).partition(".")[2]
    return key


def _averages(ema: Any, origin: str) -> list[Tensor] | None:
    if not ema:
        return None
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(shadow, list) or not all(isinstance(value, Tensor) for value in shadow):
        raise CheckpointError(
            f"{origin}: its ema holds no list of tensors (shadow_params); use --weights raw"
        )
    return [value.detach() for value in shadow]
