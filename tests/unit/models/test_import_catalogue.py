"""The catalogue names every released GemNet with a model of the published size."""

from pathlib import Path

import pytest
import torch

from ocpgem.config import load_config
from ocpgem.errors import RequestError
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.model import GemNet
from ocpgem.models.import_weights.catalogue import CATALOGUE, Released, describe, find
from ocpgem.models.import_weights.export import family_of, released_kwargs
from ocpgem.models.import_weights.released import FAMILIES
from ocpgem.models.potential import n_parameters
from ocpgem.train.config import TrainConfig

SIZES = {  # trainable parameters, scale factors and keys of the released state dicts (spec 6.1 to 6.3)
    "GemNet-dT": (31_671_808, 17, 197),
    "GemNet-OC": (38_864_384, 54, 432),
    "GemNet-OC-Large": (216_408_064, 80, 652),
    "GemNet-OC-S2EF-ODAC": (38_868_736, 54, 432),
    "GemNet-OC-IS2RE-ODAC": (28_603_648, 49, 386),
    "GemNet-Q": (2_158_470, None, 373),
    "GemNet-T": (1_892_294, None, 304),
}


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_each_model_has_the_published_size(entry: Released) -> None:
    fitting = [name for name in SIZES if entry.name == name or entry.name.startswith(f"{name}-")]
    parameters, scales, n_keys = SIZES[max(fitting, key=len)]
    config = GemNetConfig.model_validate(entry.model)
    with torch.device("meta"):
        model = GemNet(config)
    keys = FAMILIES[family_of(config)].key_map(config)
    assert n_parameters(model) == parameters
    assert scales in (None, len(keys.scale_names))
    assert len(keys.to_released(model.state_dict())) == n_keys


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_each_model_has_settings_that_the_released_code_understands(entry: Released) -> None:
    config = GemNetConfig.model_validate(entry.model)
    kwargs = released_kwargs(config)
    if entry.kwargs is not None:
        assert entry.kwargs == kwargs
        assert FAMILIES["tum"].config_from_kwargs(entry.kwargs) == config


def test_names_and_addresses_are_each_given_once() -> None:
    assert len({entry.name.lower() for entry in CATALOGUE}) == len(CATALOGUE) == 15
    assert len({entry.url for entry in CATALOGUE}) == len(CATALOGUE)
    assert all(entry.url.startswith("https://") for entry in CATALOGUE)


def test_everything_that_is_known_is_shown() -> None:
    text = describe(find("gemnet-oc-s2ef-oc20-2m"))
    for part in (
        "OC20 S2EF 2M",
        "force MAE 0.0225 eV/A",
        "energy MAE 0.2299 eV",
        "EFwT 2.12 %",
        "gemnet-oc.pt",
    ):
        assert part in text
    assert "sha256: none published" in text
    assert "no metrics published" in describe(find("GemNet-Q"))


def test_a_name_may_be_written_as_released_and_a_wrong_one_gets_near_ones() -> None:
    assert find("GemNet-OC-S2EFS-OC20->OC22").name == "GemNet-OC-S2EFS-OC20-to-OC22"
    with pytest.raises(RequestError, match=r"did you mean .*GemNet-dT-S2EF-OC20-2M"):
        find("GemNet-dT-OC20-2M")
    with pytest.raises(RequestError, match="--list"):
        find("xyz")


def test_every_entry_names_a_configuration_with_its_model() -> None:
    root = Path(__file__).resolve().parents[3]
    for entry in CATALOGUE:
        configured = load_config(root / entry.config, [], TrainConfig).model
        released = GemNetConfig.model_validate(entry.model)
        assert configured.model_dump() == released.model_dump(), entry.name
