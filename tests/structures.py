"""Small periodic structures and models that tests share."""

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from ocpgem.graph.topology import GraphSpec, Topology, build_topology
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential

SMALL: dict[str, Any] = {
    "n_blocks": 2,
    "atom_dim": 12,
    "edge_dim": 16,
    "radial_dim": 6,
    "radial_basis": {"n_radial": 8},
    "triplets": {"in_dim": 5, "out_dim": 7, "circular_dim": 4},
    "neighbors": {"cutoff": 5.0, "max_neighbors": 1000},
}


_ORIGINAL: dict[str, Any] = {
    "n_spherical": 5,
    "radial_basis": {"name": "spherical_bessel", "n_radial": 4},
    "neighbors": {"cutoff": 4.5, "max_neighbors": 0},
    "quadruplets": {"cutoff": 5.0, "in_dim": 4, "out_dim": 3, "circular_dim": 3, "spherical_dim": 4},
}
_OC: dict[str, Any] = {
    "n_spherical": 5,
    "neighbors": {"cutoff": 4.5, "max_neighbors": 0},
    "quadruplets": {
        "cutoff": 4.0, "max_neighbors": 0, "in_dim": 4, "out_dim": 3, "circular_dim": 3, "spherical_dim": 4,
    },
    "atom_edge": {"cutoff": 5.0, "max_neighbors": 0, "in_dim": 4, "out_dim": 5, "circular_dim": 3},
    "atom_atom": {"cutoff": 5.5, "max_neighbors": 0, "in_dim": 4, "out_dim": 5},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "gemnet_T": {},
    "gemnet_T radii": {"radial_basis": {"n_radial": 8, "unit": "covalent_radii"}},
    "gemnet_dT": {},
    "gemnet_dT coupled": {"forces": "direct_coupled"},
    "gemnet_Q": _ORIGINAL,
    "gemnet_dQ": _ORIGINAL,
    "gemnet_XL": {"n_blocks": 3},
    "gemnet_OC": _OC,
    "gemnet_OC spherical": _OC | {"angular_basis": {"two_angle": "spherical_harmonics"}},
    "gemnet_OC gradient": _OC | {"forces": "gradient"},
    "gemnet_OC coupled": _OC | {"forces": "direct_coupled"},
    "gemnet_OC_large": _OC,
}
"""Every variant and every way to its forces, with sizes and cutoffs for the small structures here; the cutoffs of a
model's graphs differ, and those of quadruplets exceed the main one in one family and fall below it in the other.
"""


def small_config(variant: str, **changes: Any) -> GemNetConfig:
    return GemNetConfig.model_validate(SMALL | {"variant": variant} | changes)


def case_config(case: str, **changes: Any) -> GemNetConfig:
    """One of `CASES`; `changes` merge into its sections."""
    known = CASES[case]
    merged = {
        key: known[key] | value if isinstance(known.get(key), dict) and isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return small_config(case.split(maxsplit=1)[0], **known | merged)


def small_potential(variant: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Potential:
    """Random weights and random scale factors, the same every time; no truncation of neighbours."""
    return random_potential(small_config(variant, **changes), dtype)


@functools.cache
def case_potential(case: str, dtype: torch.dtype = torch.float64) -> Potential:
    """As `small_potential`, for one of `CASES`; shared by all tests, which must not change it."""
    return random_potential(case_config(case), dtype)


def random_potential(config: GemNetConfig, dtype: torch.dtype = torch.float64) -> Potential:
    torch.manual_seed(0)
    potential = Potential(config, Normalization(energy_mean=-1.5, energy_std=2.0, forces_std=0.7))
    for name, buffer in potential.named_buffers():
        if name.endswith(".factor"):
            # With random weights and factors near 1, quadruplets would contribute a millionth of the energy.
            buffer.copy_((4 if ".quadruplets." in name else 1) * (0.5 + torch.rand(())))
    return potential.to(dtype).eval()


def random_slabs(
    n_atoms: tuple[int, ...] = (9, 5), dtype: torch.dtype = torch.float64, seed: int = 1
) -> SimpleNamespace:
    """Random atoms in triclinic cells, as the fields of a batch."""
    generator = torch.Generator().manual_seed(seed)
    cells, positions, numbers, tags = [], [], [], []
    for count in n_atoms:
        cell = torch.diag(torch.tensor([5.5, 6.0, 9.0], dtype=torch.float64))
        cell = cell + 0.8 * torch.rand(3, 3, dtype=torch.float64, generator=generator)
        grid = torch.cartesian_prod(*[torch.arange(3, dtype=torch.float64) / 3] * 3)
        chosen = grid[torch.randperm(27, generator=generator)[:count]]
        positions.append(
            (chosen + 0.05 * torch.rand(count, 3, dtype=torch.float64, generator=generator)) @ cell
        )
        cells.append(cell)
        numbers.append(torch.randint(1, 80, (count,), generator=generator))
        tags.append(torch.arange(count) % 3)
    return SimpleNamespace(
        pos=torch.cat(positions).to(dtype),
        cell=torch.stack(cells).to(dtype),
        pbc=torch.ones(len(n_atoms), 3, dtype=torch.bool),
        atomic_numbers=torch.cat(numbers),
        natoms=torch.tensor(n_atoms),
        tags=torch.cat(tags),
    )


def molecule(positions: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """Atoms at these positions (A) that meet no periodic image; elements 1, 2, 3, ..., all tagged 2."""
    n_atoms = len(positions)
    return SimpleNamespace(
        pos=torch.tensor(positions, dtype=torch.float64).to(dtype),
        cell=torch.zeros(1, 3, 3, dtype=dtype),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        atomic_numbers=torch.arange(1, n_atoms + 1),
        natoms=torch.tensor([n_atoms]),
        tags=torch.full((n_atoms,), 2),
    )


def topology_of(batch: SimpleNamespace, spec: GraphSpec) -> Topology:
    tags = getattr(batch, "tags", None)
    return build_topology(batch.pos, batch.cell, batch.pbc, batch.natoms, spec, tags=tags)


def energy_and_forces(potential: Potential, batch: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    predicted = potential(batch, topology_of(batch, potential.graph_spec))
    assert predicted.forces is not None
    forces = predicted.forces.detach()
    return predicted.energy.detach().to(forces.dtype), forces  # the energy's precision is that of the model
