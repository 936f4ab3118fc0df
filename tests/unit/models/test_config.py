"""The configuration of a GemNet: variants give defaults, and parts that do not fit are refused when it is read."""

import json
from typing import Any

import pytest

from ocpgem.config import dump_config, parse_config
from ocpgem.errors import ConfigError
from ocpgem.models.gemnet.config import DEFAULTS, GemNetConfig


@pytest.mark.parametrize("variant", DEFAULTS)
def test_every_variant_stands_alone_and_survives_being_written_out(variant: str) -> None:
    config = GemNetConfig.model_validate({"variant": variant})
    assert parse_config(dump_config(config), GemNetConfig, "written") == config


def test_what_is_given_is_laid_over_the_defaults_of_the_variant() -> None:
    config = GemNetConfig.model_validate(
        {"variant": "gemnet_OC", "quadruplets": {"in_dim": 7}, "atom_atom": None}
    )
    assert config.quadruplets is not None
    assert (config.quadruplets.in_dim, config.quadruplets.tags, config.quadruplets.max_neighbors) == (
        7,
        [1, 2],
        8,
    )
    assert config.atom_atom is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "gemnet_T", "forces": "direct"}, "gemnet_T allows only gradient or none"),
        ({"variant": "gemnet_Q", "quadruplets": None}, "gemnet_Q needs quadruplets"),
        ({"variant": "gemnet_dT", "quadruplets": {}}, "gemnet_dT has no quadruplets"),
        ({"variant": "gemnet_OC", "atom_edge": {"to_edges": False, "to_atoms": False}}, "atom_edge: null"),
        ({"variant": "gemnet_OC", "atom_atom": {"cutoff": 8.0}}, "may exceed those of the atom_atom graph"),
        ({"variant": "gemnet_OC", "quadruplets": {"tags": []}}, "at least one tag"),
        ({"variant": "gemnet_OC", "force_radial": "before_layers"}, "cannot be combined with global_head"),
        (
            {"variant": "gemnet_Q", "angular_basis": {"two_angle": "legendre_outer"}},
            "use spherical_harmonics",
        ),
        ({"variant": "gemnet_X"}, "gemnet_X"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(json.dumps(changes), GemNetConfig, "test")
