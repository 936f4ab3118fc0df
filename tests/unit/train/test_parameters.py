"""Groups of parameters: without decay, with another rate, frozen."""

from typing import Any

import pytest
import torch

from ocpgem.config import parse_config
from ocpgem.errors import ConfigError
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.config import OptimSection, TrainConfig
from ocpgem.train.parameters import Treatment, freeze, torch_groups, treatments
from tests.tiny_runs import TINY_MODEL, tiny_settings


def potential(**changes: Any) -> Potential:
    model = TINY_MODEL | {"n_blocks": 3, "radial_basis": {"name": "spherical_bessel", "n_radial": 6}}
    return Potential(GemNetConfig.model_validate(model | changes), Normalization())


def optim(**settings: Any) -> OptimSection:
    return OptimSection.model_validate({"lr": 0.1, "weight_decay": 0.3} | settings)


def test_no_decay_on_chosen_parameters_and_decay_on_the_rest() -> None:
    found = treatments(potential(), optim(no_decay=["atom_embedding", "*.frequencies"]))
    without = {name for name, treatment in found.items() if treatment == Treatment(1.0, 0.0)}
    frequencies = {f"bases.{basis}.functions.frequencies" for basis in ("radial", "angular")}
    assert without == {"atom_embedding.weight"} | frequencies
    assert set(found.values()) == {Treatment(1.0, 0.0), Treatment(1.0, 0.3)}


def test_the_rate_falls_from_block_to_block_towards_the_input() -> None:
    found = treatments(potential(), optim(layer_lr_decay=0.5))
    rates = {name: treatment.lr_factor for name, treatment in found.items() if treatment is not None}
    assert rates["energy_head.outputs.0.dense.weight"] == 1
    assert [rates[f"blocks.{block}.dense.weight"] for block in range(3)] == [0.25, 0.5, 1]
    assert rates["atom_embedding.weight"] == rates["bases.radial_atom.weight"] == 0.125


def test_the_first_group_that_names_a_parameter_counts_and_frozen_ones_want_no_gradient() -> None:
    settings = optim(
        groups=[
            {"parameters": ["blocks.1.dense"], "lr_factor": 2, "weight_decay": 0},
            {"parameters": ["blocks"], "frozen": True},
        ]
    )
    model = potential()
    freeze(model, settings)
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if name.startswith("blocks")} == {"blocks.1.dense.weight"}
    groups, factors = torch_groups(model, settings)
    assert sorted(zip(factors, [group["weight_decay"] for group in groups], strict=True)) == [
        (1.0, 0.3),
        (2.0, 0.0),
    ]
    assert sum(len(group["params"]) for group in groups) == len(trained)  # type: ignore[arg-type]
    torch.optim.AdamW(groups, lr=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_decay": ["atom_embeding"]}, "optim.no_decay names 'atom_embeding', which is no parameter"),
        ({"groups": [{"parameters": ["blocks.7"]}]}, r"optim.groups.0.parameters names 'blocks.7'"),
        ({"groups": [{"parameters": ["*"], "frozen": True}]}, "nothing is left to train"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        treatments(potential(), optim(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, "float16 is refused: beyond 65,504 it overflows"),
        ({"parallel": {"zero_stage": 3}, "model": {"variant": "gemnet_T"}}, "only with direct forces"),
        ({"optim": {"schedule": {"name": "plateau"}}}, "plateau needs a validation set"),
    ],
)
def test_forbidden_combinations_are_refused_when_the_configuration_is_read(
    settings: dict[str, Any], message: str
) -> None:
    import yaml

    with pytest.raises(ConfigError, match=message):
        parse_config(yaml.safe_dump(tiny_settings("train", **settings)), TrainConfig, "config.yml")
