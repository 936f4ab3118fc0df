"""What the layers read of the structures: distances, directions, and the angles of quadruplets."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ocpgem.graph.topology import EdgeSet, Topology, TripletTable
from ocpgem.models.gemnet.edge_ops import at_ends, from_main_edge, pad, unpad
from ocpgem.models.gemnet.layers import ForceGradient


@dataclass
class EdgeGeometry:
    """The geometry of one edge set; both tensors are differentiable functions of the positions."""

    distance: Tensor
    """[n_edges] in A."""
    direction: Tensor
    """[n_edges, 3], unit vectors from source to target."""
    radii: Tensor | None = None
    """[n_edges], the sum of both atoms' covalent radii in A; None if no basis asks for it."""


def edge_geometry(
    pos: Tensor, cell: Tensor, batch: Tensor, edges: EdgeSet, radii: Tensor | None = None
) -> EdgeGeometry:
    """Distances and directions of the edges.

    pos [n_atoms, 3] and cell [n_systems, 3, 3] (rows are lattice vectors) in A; batch [n_atoms] is the system of
    each atom; radii: covalent, [n_atoms] in A.
    """
    # In float64: differences of large coordinates lose digits, and cost next to nothing here.
    wide, lattice = pos.double(), cell.double()
    # [n_edges, 1, 3] @ [n_edges, 3, 3] -> [n_edges, 3]
    shift = (edges.cell_offsets.double().unsqueeze(1) @ lattice[at_ends(batch, edges)[1]]).squeeze(1)
    source, target = at_ends(wide, edges)
    vector = target - source - shift
    length = vector.norm(dim=-1)
    distance, direction = length.to(pos.dtype), (vector / length[:, None]).to(pos.dtype)
    of_edges = None if radii is None else torch.add(*at_ends(radii, edges))
    return EdgeGeometry(distance, direction, of_edges)


def rounding_noise(dtype: torch.dtype) -> float:
    """The sine of an angle between two directions below which it is rounding noise."""
    return 1e-10 if dtype == torch.float64 else 1e-6


@dataclass
class PlaneSide:
    """One side of the quadruplets: rows (main edge, middle edge b -> a) of a `TripletTable`."""

    cosine: Tensor
    """[n_rows], of the bond angle between both edges at the atom they share."""
    sine: Tensor
    """[n_rows], of the same angle."""
    normal: Tensor
    """[n_rows, 3], unit normal of the plane of both edges; zero where they are collinear."""
    collinear: Tensor
    """[n_rows], 1 where both edges are collinear, else 0."""
    height: Tensor
    """[n_rows], length of the main edge perpendicular to the middle edge, in A or as a sine; 0 where collinear."""

    def rows(self, rows: Tensor) -> "PlaneSide":
        """Those of some rows, given by their numbers."""
        return PlaneSide(*(getattr(self, field.name)[rows] for field in fields(self)))


def plane_side(
    main: EdgeGeometry, middle: EdgeGeometry, table: TripletTable, at_target: bool, in_angstrom: bool = False
) -> PlaneSide:
    """The angle and the plane of the two edges of each row.

    at_target: the main edge ends at the target a of the middle edge (c -> a); else at its source b (d -> b). The
    dihedral angle of a quadruplet is the angle between the normals of its two sides. in_angstrom: heights are in A, as
    the original GemNet measures them, else that of unit vectors.
    """
    first = from_main_edge(main.direction, table)
    second = from_middle_edge(middle.direction, table)
    cosine = (first * second).sum(-1).clamp(-1, 1)
    cross = torch.linalg.cross(first, second)
    square = cross.square().sum(-1)
    # Where both edges lie on one line, the plane and the angle to it are undefined; the released models use a right
    # angle there (gemnet.md 9.5).
    flat = square < rounding_noise(cross.dtype) ** 2
    length = torch.where(flat, torch.ones_like(square), square).sqrt()
    normal = cross / length[:, None] * (~flat)[:, None]
    sine = torch.where(flat, torch.zeros_like(length), length)
    return PlaneSide(
        cosine=cosine if at_target else -cosine,
        sine=sine,
        normal=normal,
        collinear=flat.to(cross.dtype),
        height=sine * from_main_edge(main.distance, table) if in_angstrom else sine,
    )


def from_middle_edge(x: Tensor, table: TripletTable) -> Tensor:
    """The value of the middle edge, for every row: [n_middle, ...] -> [n_rows, ...]."""
    wide = x.unsqueeze(1).expand(-1, table.max_per_middle, *x.shape[1:])
    return unpad(wide, table.slot)


def pad_by_middle(x: Tensor, table: TripletTable, n_middle: int) -> Tensor:
    """[n_rows, ...] -> [n_middle, max_per_middle, ...], zero-padded."""
    return pad(x, table.slot, n_middle, table.max_per_middle)


def pad_by_main(x: Tensor, table: TripletTable, n_main: int) -> Tensor:
    """[n_rows, ...] -> [n_main, max_per_main, ...], zero-padded."""
    return pad(x, table.main_slot, n_main, table.max_per_main)


@dataclass
class Geometry:
    """The geometry of every edge set that a model uses."""

    main: EdgeGeometry
    middle: EdgeGeometry | None
    """of the middle edges of quadruplets"""
    atom_edge: EdgeGeometry | None
    atom_atom: EdgeGeometry | None
    inner: EdgeGeometry
    """of the edges d -> b that quadruplets read: those of `main` unless the batch is divided over ranks"""
    only_for: ForceGradient | None
    """the forces for which alone gradients by positions are taken; None where others may take some, too"""


def all_geometry(
    pos: Tensor,
    cell: Tensor,
    topology: Topology,
    radii: Tensor | None = None,
    only_for: ForceGradient | None = None,
) -> Geometry:
    """The geometry of the edge sets that the topology holds."""

    def of(edges: EdgeSet | None) -> EdgeGeometry | None:
        return None if edges is None else edge_geometry(pos, cell, topology.batch, edges, radii)

    main = edge_geometry(pos, cell, topology.batch, topology.main, radii)
    far = None if topology.quadruplets is None else topology.quadruplets.far
    return Geometry(
        main=main,
        middle=of(topology.quadruplet),
        atom_edge=of(topology.atom_edge),
        atom_atom=of(topology.atom_atom),
        inner=main if far is None else edge_geometry(pos, cell, topology.batch, far.edges),
        only_for=only_for,
    )
