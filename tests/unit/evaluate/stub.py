"""A small data set, and a potential whose predictions are known in closed form."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.system import System
from ocpgem.graph.topology import GraphSpec
from ocpgem.models.potential import Predictions


class Linear(nn.Module):
    """Energy: the sum of all x plus the atomic numbers, NaN where sid is `bad`; forces: half the position."""

    graph_spec = GraphSpec(5.0, 20)
    config = SimpleNamespace(n_elements=83)

    def __init__(self, bad: int | None = None, with_forces: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.bad, self.with_forces = bad, with_forces

    def forward(self, batch, topology) -> Predictions:
        assert topology.n_systems == len(batch.natoms)
        assert not torch.is_grad_enabled()
        assert not self.training
        atoms = batch.pos[:, 0] + batch.atomic_numbers
        energy = torch.zeros(topology.n_systems).index_add(0, batch.batch, atoms)
        if self.bad is not None:
            energy = torch.where(batch.sid == self.bad, float("nan"), energy)
        return Predictions(energy, batch.pos * self.weight if self.with_forces else None)


def make_systems(n: int, seed: int = 0, labels: bool = True) -> list[System]:
    """Systems of 2 to 9 atoms; sids descend, so that no order agrees with another by chance."""
    rng = np.random.default_rng(seed)
    systems = []
    for index in range(n):
        n_atoms = int(rng.integers(2, 10))
        systems.append(
            System(
                pos=rng.uniform(0, 6, (n_atoms, 3)).astype(np.float32),
                cell=np.eye(3, dtype=np.float32) * 6,
                pbc=np.ones(3, dtype=bool),
                atomic_numbers=rng.integers(1, 80, n_atoms).astype(np.uint8),
                tags=np.zeros(n_atoms, dtype=np.uint8),
                fixed=rng.random(n_atoms) < 0.4,
                energy=float(rng.normal()) if labels else None,
                forces=rng.normal(size=(n_atoms, 3)).astype(np.float32) if labels else None,
                sid=100 - index // 2,
                fid=index % 2,
            )
        )
    return systems


def make_dataset(n: int = 21, **options) -> InMemoryDataset:
    return InMemoryDataset(make_systems(n, **options), "the test set")


def expected(systems: list[System]) -> tuple[np.ndarray, np.ndarray]:
    """Energies [n] and forces [N, 3] that `Linear` predicts."""
    energy = np.array([(s.pos[:, 0].astype(float) + s.atomic_numbers).sum() for s in systems])
    return energy, np.concatenate([s.pos for s in systems]) * np.float32(0.5)
