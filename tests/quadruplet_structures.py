"""Structures whose quadruplets are of every kind, with planes that are well defined or not."""

from types import SimpleNamespace

import torch

from ocpgem.graph.spec import GraphSpec, Limit
from ocpgem.graph.topology import Topology
from tests.structures import molecule, random_slabs, topology_of


def small_cells() -> tuple[SimpleNamespace, Topology]:
    """Cells smaller than the cutoffs, so that most quadruplets meet images of their own atoms."""
    batch = random_slabs((4, 2, 3))
    batch.cell, batch.pos = batch.cell * 0.75, batch.pos * 0.75
    spec = GraphSpec(4.2, 0, quadruplet=Limit(4.6, 0))
    return batch, topology_of(batch, spec)


def branched_row() -> tuple[SimpleNamespace, Topology]:
    """Five atoms exactly in a row, and three others beside it, each near one of the row; nothing else is planar."""
    row = [[0.0, 0.0, 1.25 * place] for place in range(5)]
    batch = molecule([*row, [1.1, 0.2, 1.4], [-0.6, 1.0, 2.4], [0.3, -1.2, 3.6]])
    return batch, topology_of(batch, GraphSpec(1.5, 0, quadruplet=Limit(1.5, 0)))


def row_and_others() -> tuple[SimpleNamespace, Topology]:
    """As above with larger cutoffs, so that three atoms of the row and another make planar quadruplets."""
    batch, _ = branched_row()
    return batch, topology_of(batch, GraphSpec(2.8, 0, quadruplet=Limit(3.9, 0)))


def lattice() -> tuple[SimpleNamespace, Topology]:
    """One atom in a simple cubic cell: every edge has others in line with it, and most quadruplets are planar."""
    batch = random_slabs((1,))
    batch.cell = torch.eye(3, dtype=torch.float64)[None] * 2.5
    return batch, topology_of(batch, GraphSpec(3.6, 0, quadruplet=Limit(3.6, 0)))


def row_alone() -> tuple[SimpleNamespace, Topology]:
    """Every plane is undefined on both sides."""
    batch = molecule([[0.0, 0.0, 1.25 * place] for place in range(5)])
    return batch, topology_of(batch, GraphSpec(1.5, 0, quadruplet=Limit(2.6, 0)))


GENERIC = {"cells smaller than the cutoff": small_cells, "a row and branches": branched_row}
DEGENERATE = {"a row and others": row_and_others, "lattice": lattice, "nothing but a row": row_alone}
