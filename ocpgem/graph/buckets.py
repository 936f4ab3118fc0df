"""Batches filled up to a few sizes, so that a program made for a size can be used again.

What fills a batch are ghosts: systems of their own after the real ones, whose atoms are joined only to images of
themselves, far beyond every cutoff. No real atom or edge reads them, so nothing real changes; what a model says of them
is cut off.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocpgem.graph.edges import stable_order
from ocpgem.graph.pairs import Pairs
from ocpgem.graph.topology import (
    CommonEdges,
    EdgeSet,
    Padding,
    Quadruplets,
    SymmetricEdgeSet,
    Topology,
    TripletTable,
    pointers,
    slots,
    triplet_table,
)

Ints = NDArray[np.int64]
MOST_SHAPES = 8
"""How many sizes a run fills batches up to; a batch that none of them holds stays as it is."""
_WASTE = 1.5
"""How many times its own edges a batch may get while a closer size can still be made."""
_EDGE_SETS = ("main", "atom_edge", "quadruplet", "atom_atom")
_TABLES = ("inner", "outer")

Shape = dict[str, int]
"""Every number that a program depends on, by name, for example `main.n_edges` or `inner.max_per_main`."""


def shape_of(topology: Topology) -> Shape:
    """The sizes of a batch."""
    shape = {"n_systems": topology.n_systems, "n_atoms": topology.n_atoms}
    for name in _EDGE_SETS:
        edges = getattr(topology, name)
        if edges is not None:
            shape |= {f"{name}.n_edges": edges.n_edges, f"{name}.max_degree": edges.max_degree}
    if topology.common is not None:
        shape["common"] = len(topology.common.main)
    if topology.quadruplets is not None:
        shape["excluded"] = len(topology.quadruplets.excluded_outer)
        for name in _TABLES:
            table = getattr(topology.quadruplets, name)
            shape[f"{name}.n_rows"] = len(table.main_edge)
            shape[f"{name}.max_per_middle"] = table.max_per_middle
            shape[f"{name}.max_per_main"] = table.max_per_main
    return shape


class Buckets:
    """The sizes that the batches of a run were filled up to so far; never more than `most`."""

    def __init__(self, most: int = MOST_SHAPES) -> None:
        self.most = most
        self.shapes: list[Shape] = []

    def pad(self, topology: Topology) -> Topology:
        """The topology of a whole batch, in host memory, filled up; the same one where no size holds it."""
        sizes = shape_of(topology)
        held = [shape for shape in self.shapes if _holds(shape, sizes)]
        best = min(held, key=lambda shape: shape["main.n_edges"], default=None)
        wasteful = best is None or best["main.n_edges"] > _WASTE * sizes["main.n_edges"]
        if wasteful and len(self.shapes) < self.most:
            best = _next_shape(sizes)
            self.shapes.append(best)
        return topology if best is None else fill(topology, best)


def _rounded(size: int) -> int:
    """The next even number of a series that grows by a quarter."""
    term = 8
    while term < size:
        term += term // 4
        term += term % 2
    return term


def _edge_sets(sizes: Shape) -> list[str]:
    return [name for name in _EDGE_SETS if f"{name}.n_edges" in sizes]


def _tables(sizes: Shape) -> list[str]:
    return [name for name in _TABLES if f"{name}.n_rows" in sizes]


def _need(shape: Shape, sizes: Shape) -> dict[str, int]:
    """The least number of ghosts of each kind that can carry what `shape` has beyond `sizes`."""
    extra = {name: shape[name] - sizes[name] for name in sizes}
    need = {f"{name}.n_edges": 2 for name in _edge_sets(sizes)}
    for name in _tables(sizes):
        rows = extra[f"{name}.n_rows"]
        need[f"{name}.n_rows"] = 1
        for edges, width in (("quadruplet", "max_per_middle"), ("main", "max_per_main")):
            need[f"{edges}.n_edges"] = max(need[f"{edges}.n_edges"], -(-rows // shape[f"{name}.{width}"]))
    of_atoms = [-(-extra[f"{name}.n_edges"] // shape[f"{name}.max_degree"]) for name in _edge_sets(sizes)]
    return need | {"n_systems": 1, "n_atoms": max(extra["n_systems"], *of_atoms)}


def _holds(shape: Shape, sizes: Shape) -> bool:
    if any(shape[name] < size for name, size in sizes.items()):
        return False
    return all(shape[name] - sizes[name] >= least for name, least in _need(shape, sizes).items())


def _next_shape(sizes: Shape) -> Shape:
    """A shape that holds a batch, every size rounded up."""
    shape = {name: _rounded(size + 1) for name, size in sizes.items()}
    # Rows need ghost edges, edges need ghost atoms: in this order each is final when the next one is counted.
    for level in (".n_edges", "n_atoms"):
        for name, least in _need(shape, sizes).items():
            if name.endswith(level):
                shape[name] = max(shape[name], _rounded(sizes[name] + least))
    assert _holds(shape, sizes)
    return shape


def fill(topology: Topology, shape: Shape) -> Topology:
    """The topology with ghosts after everything real, of exactly the sizes `shape`, which must hold it."""
    assert topology.part is None
    n_atoms, n_systems = topology.n_atoms, topology.n_systems
    ghosts = np.minimum(
        n_systems + np.arange(shape["n_atoms"] - n_atoms), shape["n_systems"] - 1
    )  # every ghost system has an atom
    filled: dict[str, Any] = {
        name: _fill_edges(getattr(topology, name), n_atoms, name, shape)
        for name in _EDGE_SETS
        if getattr(topology, name) is not None
    }
    if topology.common is not None:
        assert topology.atom_edge is not None
        extra = shape["common"] - len(topology.common.main)
        filled["common"] = CommonEdges(
            _ghosts_after(topology.common.main, extra, topology.main.n_edges, shape["main.n_edges"]),
            _ghosts_after(
                topology.common.atom_edge, extra, topology.atom_edge.n_edges, shape["atom_edge.n_edges"]
            ),
        )
    if topology.quadruplets is not None:
        filled["quadruplets"] = _fill_quadruplets(topology, topology.quadruplets, shape)
    return dataclasses.replace(
        topology,
        batch=torch.cat([topology.batch, torch.from_numpy(ghosts)]),
        n_systems=shape["n_systems"],
        padding=Padding(n_systems, n_atoms),
        **filled,
    )


def _ghosts_after(places: Tensor, extra: int, first: int, end: int) -> Tensor:
    """Places, followed by `extra` among the ghosts, which are first to end - 1."""
    return torch.cat([places, torch.from_numpy(np.minimum(first + np.arange(extra), end - 1))])


def _fill_edges(edges: EdgeSet, n_atoms: int, name: str, shape: Shape) -> EdgeSet:
    """Ghost edges come in pairs at one atom, each the reverse of the other."""
    degree, extra = shape[f"{name}.max_degree"], shape[f"{name}.n_edges"] - edges.n_edges
    ends = n_atoms + np.arange(extra) // degree
    index = np.concatenate([edges.edge_index.numpy(), np.stack([ends, ends])], axis=1)
    offsets = edges.cell_offsets.new_zeros(extra, 3)
    offsets[:, 0] = 1 - 2 * (torch.arange(extra) % 2)
    ptr = pointers(index[1], shape["n_atoms"])
    per_system = torch.zeros(shape["n_systems"], dtype=torch.int64)
    per_system[: len(edges.n_edges_per_system)] = edges.n_edges_per_system
    per_system[-1] += extra
    symmetric = isinstance(edges, SymmetricEdgeSet)
    if symmetric:
        own = np.arange(edges.n_edges, shape[f"{name}.n_edges"])
        swapped = edges.n_edges + ((own - edges.n_edges) ^ 1)
        back = torch.cat([edges.reverse_edge, torch.from_numpy(swapped)])  # type: ignore[attr-defined]
        by_source, source_ptr = back, torch.from_numpy(ptr)
    else:
        by_source = torch.from_numpy(stable_order(index[0]))
        source_ptr = torch.from_numpy(pointers(index[0], shape["n_atoms"]))
    changed: dict[str, Any] = {"reverse_edge": by_source} if symmetric else {}
    return dataclasses.replace(
        edges,
        edge_index=torch.from_numpy(index),
        cell_offsets=torch.cat([edges.cell_offsets, offsets]),
        edge_ptr=source_ptr if symmetric else torch.from_numpy(ptr),
        slot=torch.from_numpy(slots(index[1], ptr, degree)[0]),
        n_edges_per_system=per_system,
        max_degree=degree,
        by_source=by_source,
        source_ptr=source_ptr,
        **changed,
    )


def _fill_quadruplets(topology: Topology, tables: Quadruplets, shape: Shape) -> Quadruplets:
    assert topology.quadruplet is not None
    extra = shape["excluded"] - len(tables.excluded_outer)

    def rows(places: Tensor, name: str) -> Tensor:
        n_real = len(getattr(tables, name).main_edge)
        return _ghosts_after(places, extra, n_real, shape[f"{name}.n_rows"])

    return Quadruplets(
        inner=_fill_table(tables.inner, topology, "inner", shape),
        outer=_fill_table(tables.outer, topology, "outer", shape),
        excluded_outer=rows(tables.excluded_outer, "outer"),
        excluded_inner=rows(tables.excluded_inner, "inner"),
    )


def _fill_table(table: TripletTable, topology: Topology, name: str, shape: Shape) -> TripletTable:
    assert topology.quadruplet is not None
    number = np.arange(shape[f"{name}.n_rows"] - len(table.main_edge))
    widths = shape[f"{name}.max_per_middle"], shape[f"{name}.max_per_main"]
    middle = np.concatenate(
        [table.middle_edge.numpy(), topology.quadruplet.n_edges + number // widths[0]], dtype=np.int64
    )
    main = np.concatenate([table.main_edge.numpy(), topology.main.n_edges + number // widths[1]])
    pairs = Pairs(
        main_edge=main, middle_edge=middle, middle_ptr=pointers(middle, shape["quadruplet.n_edges"])
    )
    return triplet_table(pairs, shape["main.n_edges"], widths)
