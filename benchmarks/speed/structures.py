"""Structures like those of OC20, made from a seed: metal slabs with an adsorbate, 20 to 225 atoms, periodic."""

from typing import Any

import numpy as np
import torch

from ocpgem.data.batch import collate
from ocpgem.data.system import System
from ocpgem.graph.spec import GraphSpec
from ocpgem.graph.topology import Topology, build_topology

METALS = (13, 22, 26, 28, 29, 46, 47, 78, 79)
ADSORBATE = (6, 8, 1, 7)
SPACING, LAYERS = 2.6, 4
SIZES = (58, 104)
"""Atoms of the two systems of a step: 162 together, as in the measurements of the released code."""


def slab(n_atoms: int, seed: int) -> System:
    """Four layers of two metals 2.6 A apart, jittered, under a molecule of up to four atoms and 15 A of vacuum."""
    if not 20 <= n_atoms <= 225:
        raise ValueError(f"n_atoms is {n_atoms}; slabs have 20 to 225 atoms")
    rng = np.random.default_rng((seed, n_atoms))
    n_adsorbate = min(4, n_atoms // 10)
    n_metal = n_atoms - n_adsorbate
    columns = -(-n_metal // LAYERS)
    width = -(-int(np.ceil(np.sqrt(columns))) // 1)
    depth = -(-columns // width)
    grid = np.stack(np.meshgrid(range(LAYERS), range(width), range(depth), indexing="ij"), -1).reshape(-1, 3)
    metal = SPACING * grid[:n_metal, [1, 2, 0]] + rng.normal(0, 0.08, (n_metal, 3))
    top = metal[:, 2].max() + 1.8
    place = np.arange(n_adsorbate)[:, None]
    # Bent, for atoms in a line have no dihedral angle: of what rounding makes of one, each code may make another sum.
    molecule = (
        np.array([SPACING, SPACING, top]) + 1.15 * place * [0.5, 0.3, 0.8] + place % 2 * [0.0, 0.4, 0.0]
    )
    numbers = [*rng.choice(rng.choice(METALS, 2), n_metal), *ADSORBATE[:n_adsorbate]]
    tags = [*np.where(grid[:n_metal, 0] == LAYERS - 1, 1, 0), *[2] * n_adsorbate]
    return System(
        pos=np.concatenate([metal, molecule]).astype(np.float32),
        cell=np.diag([SPACING * width, SPACING * depth, top + 15]).astype(np.float32),
        pbc=np.ones(3, dtype=bool),
        atomic_numbers=np.array(numbers, dtype=np.uint8),
        tags=np.array(tags, dtype=np.uint8),
        fixed=np.array(tags) == 0,
        energy=float(rng.normal()),
        forces=rng.normal(size=(n_atoms, 3)).astype(np.float32),
        sid=seed,
        fid=n_atoms,
    )


def molecule(n_atoms: int, seed: int) -> System:
    """An open molecule: carbon, oxygen and hydrogen on a jittered lattice of 1.5 A, for the molecule models."""
    rng = np.random.default_rng((seed, n_atoms, 1))
    side = int(np.ceil(n_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[range(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n_atoms]
    return System(
        pos=(1.5 * grid + rng.normal(0, 0.1, (n_atoms, 3))).astype(np.float32),
        cell=np.zeros((3, 3), dtype=np.float32),
        pbc=np.zeros(3, dtype=bool),
        atomic_numbers=rng.choice(np.array([1, 6, 8], dtype=np.uint8), n_atoms),
        tags=np.zeros(n_atoms, dtype=np.uint8),
        fixed=np.zeros(n_atoms, dtype=bool),
        energy=float(rng.normal()),
        forces=rng.normal(size=(n_atoms, 3)).astype(np.float32),
        sid=seed,
        fid=n_atoms,
    )


def slabs(sizes: tuple[int, ...], seed: int = 0) -> list[System]:
    """A slab of every size."""
    return [slab(n_atoms, seed + number) for number, n_atoms in enumerate(sizes)]


def prepared(systems: list[System], graph: GraphSpec) -> tuple[Any, Topology]:
    """A batch and its topology."""
    batch = collate(systems)
    with torch.no_grad():
        topology = build_topology(batch.pos, batch.cell, batch.pbc, batch.natoms, graph, tags=batch.tags)
    return batch, topology
