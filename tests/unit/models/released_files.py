"""Small models written as released files, for tests that make older or broken ones out of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocpgem.models.import_weights.export import export_released, family_of
from ocpgem.models.import_weights.released import FAMILIES
from ocpgem.models.potential import Normalization, Potential
from tests.structures import small_config

_SMALL_OC: dict[str, Any] = {
    "quadruplets": {"cutoff": 4.0, "max_neighbors": 0, "in_dim": 4, "out_dim": 3, "circular_dim": 4},
    "atom_edge": {"cutoff": 4.5, "max_neighbors": 0, "in_dim": 5, "out_dim": 7, "circular_dim": 4},
    "atom_atom": {"cutoff": 6.0, "max_neighbors": 0, "in_dim": 6, "out_dim": 5},
    "neighbors": {"cutoff": 5.0, "max_neighbors": 0},
    "triplets": {"in_dim": 5, "out_dim": 7, "circular_dim": 4},
}
_SMALL_ORIGINAL: dict[str, Any] = {
    "radial_basis": {"name": "spherical_bessel", "n_radial": 4},
    "angular_basis": {"radial": "bessel_by_degree", "two_angle": "spherical_harmonics"},
    "neighbors": {"cutoff": 4.0, "max_neighbors": 0},
    "force_radial": "before_layers",
    "n_elements": 93,
}
_SMALL_QUADRUPLETS = {"cutoff": 6.0, "max_neighbors": 0, "in_dim": 4, "out_dim": 3, "circular_dim": 4}

MODELS: dict[str, dict[str, Any]] = {
    "T": {"variant": "gemnet_T"},
    "T without forces": {"variant": "gemnet_T", "forces": "none"},
    "T with a mean of atoms": {"variant": "gemnet_T", "extensive": False},
    "dT": {"variant": "gemnet_dT", "n_elements": 100, "output_init": "zeros"},
    "dT with Bessel functions": {
        "variant": "gemnet_dT",
        "radial_basis": {"name": "spherical_bessel", "n_radial": 8, "envelope": {"name": "exponential"}},
    },
    "dT with Bernstein polynomials": {
        "variant": "gemnet_dT",
        "radial_basis": {"name": "bernstein", "n_radial": 8},
    },
    "XL": {"variant": "gemnet_XL"},
    "OC": {"variant": "gemnet_OC", **_SMALL_OC},
    "OC with coupled forces": {"variant": "gemnet_OC", **_SMALL_OC, "forces": "direct_coupled"},
    "OC with gradient forces": {"variant": "gemnet_OC", **_SMALL_OC, "forces": "gradient"},
    "OC without forces, not strict": {
        "variant": "gemnet_OC",
        **_SMALL_OC,
        "forces": "none",
        "neighbors": {"cutoff": 5.0, "max_neighbors": 10, "strict": False},
        "quadruplets": _SMALL_OC["quadruplets"] | {"max_neighbors": 5, "tags": [1, 2]},
        "atom_edge": _SMALL_OC["atom_edge"] | {"max_neighbors": 8},
        "atom_atom": _SMALL_OC["atom_atom"] | {"max_neighbors": 1000},
    },
    "OC with few paths": {
        "variant": "gemnet_OC",
        **_SMALL_OC,
        "quadruplets": None,
        "atom_atom": None,
        "atom_edge": _SMALL_OC["atom_edge"] | {"to_edges": False},
    },
    "OC with scaled bases": {"variant": "gemnet_OC", **_SMALL_OC, "scaled_bases": True},
    "OC with scaled trainable bases": {
        "variant": "gemnet_OC",
        **_SMALL_OC,
        "scaled_bases": True,
        "radial_basis": {"name": "spherical_bessel", "n_radial": 8},
        "angular_basis": {"radial": "bernstein", "two_angle": "spherical_harmonics"},
    },
    "OC of equal widths": {"variant": "gemnet_OC", **_SMALL_OC, "edge_dim": 12},
    "original Q": {"variant": "gemnet_Q", **_SMALL_ORIGINAL, "quadruplets": _SMALL_QUADRUPLETS},
    "original dQ": {
        "variant": "gemnet_dQ",
        **_SMALL_ORIGINAL,
        "quadruplets": _SMALL_QUADRUPLETS,
        "forces": "direct_coupled",
    },
    "original T": {"variant": "gemnet_T", **_SMALL_ORIGINAL},
    "original dT": {"variant": "gemnet_dT", **_SMALL_ORIGINAL},
}
"""Every kind of model that some released code can hold."""


def random_potential(model: dict[str, Any], normalization: Normalization | None = None) -> Potential:
    """Random weights and fitted random scale factors, the same every time."""
    torch.manual_seed(0)
    potential = Potential(small_config(**model), normalization or Normalization())
    state = potential.state_dict()
    for key, value in state.items():
        if key.endswith(".factor"):
            value.copy_(0.5 + torch.rand(()))
            state[key.removesuffix("factor") + "fitted"].fill_(True)
    return potential.eval()


OC20 = Normalization(
    energy_mean=-0.7554450631141663, energy_std=2.887317180633545, forces_std=2.887317180633545
)


def container(
    folder: Path, name: str = "dT", normalization: Normalization = OC20
) -> tuple[Potential, dict[str, Any]]:
    """A model and its container of fairchem v1 as a dictionary."""
    potential = random_potential(MODELS[name], normalization)
    export_released(potential, folder / "exported.pt")
    content: dict[str, Any] = torch.load(folder / "exported.pt", weights_only=True)
    (folder / "exported.pt").unlink()
    return potential, content


def trained(content: dict[str, Any], potential: Potential) -> dict[str, Tensor]:
    """Give the container moving averages; returns them by name, second names left out."""
    names = FAMILIES[family_of(potential.config)].key_map(potential.config).trainable(content["state_dict"])
    averages = {name: content["state_dict"][name] + 0.5 for name in names}
    content["ema"] = {"decay": 0.999, "num_updates": None, "shadow_params": list(averages.values())}
    return averages


def equal_weights(a: Potential, b: Potential) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.equal(b)
