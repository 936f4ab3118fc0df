"""Small periodic structures and models that tests share."""

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


def small_config(variant: str, **changes: Any) -> GemNetConfig:
    return GemNetConfig.model_validate(SMALL | {"variant": variant} | changes)


def small_potential(variant: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Potential:
    """Random weights and random scale factors, the same every time; no truncation of neighbours."""
    torch.manual_seed(0)
    potential = Potential(
        small_config(variant, **changes), Normalization(energy_mean=-1.5, energy_std=2.0, forces_std=0.7)
    )
    for name, buffer in potential.named_buffers():
        if name.endswith(".factor"):
            buffer.copy_(0.5 + torch.rand(()))
    return potential.to(dtype).eval()


def random_slabs(
    n_atoms: tuple[int, ...] = (9, 5), dtype: torch.dtype = torch.float64, seed: int = 1
) -> SimpleNamespace:
    """Random atoms in triclinic cells, as the fields of a batch."""
    generator = torch.Generator().manual_seed(seed)
    cells, positions, numbers = [], [], []
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
    return SimpleNamespace(
        pos=torch.cat(positions).to(dtype),
        cell=torch.stack(cells).to(dtype),
        pbc=torch.ones(len(n_atoms), 3, dtype=torch.bool),
        atomic_numbers=torch.cat(numbers),
        natoms=torch.tensor(n_atoms),
    )


def topology_of(batch: SimpleNamespace, spec: GraphSpec) -> Topology:
    return build_topology(batch.pos, batch.cell, batch.pbc, batch.natoms, spec)


def energy_and_forces(potential: Potential, batch: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    predicted = potential(batch, topology_of(batch, potential.graph_spec))
    assert predicted.forces is not None
    return predicted.energy.detach(), predicted.forces.detach()
