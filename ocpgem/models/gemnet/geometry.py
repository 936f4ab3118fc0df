"""What the layers read of the structures: distances, directions, and the bases evaluated on them."""

from dataclasses import dataclass

from torch import Tensor

from ocpgem.graph.topology import EdgeSet


@dataclass
class EdgeGeometry:
    """The geometry of one edge set; both tensors are differentiable functions of the positions."""

    distance: Tensor
    """[n_edges] in A."""
    direction: Tensor
    """[n_edges, 3], unit vectors from source to target."""


def edge_geometry(pos: Tensor, cell: Tensor, batch: Tensor, edges: EdgeSet) -> EdgeGeometry:
    """Distances and directions of the edges.

    pos [n_atoms, 3] and cell [n_systems, 3, 3] (rows are lattice vectors) in A; batch [n_atoms] is the system of
    each atom.
    """
    source, target = edges.edge_index
    # [n_edges, 1, 3] @ [n_edges, 3, 3] -> [n_edges, 3]
    shift = (edges.cell_offsets.to(pos.dtype).unsqueeze(1) @ cell[batch[target]]).squeeze(1)
    vector = pos.index_select(0, target) - pos.index_select(0, source) - shift
    distance = vector.norm(dim=-1)
    return EdgeGeometry(distance, vector / distance[:, None])


@dataclass
class EdgeBasis:
    """Radial and angular functions of the edges, evaluated once per forward pass and shared by all blocks."""

    radial_triplet: Tensor
    """[n_edges, radial_dim], multiplied onto incoming edges of triplets."""
    radial_atom: Tensor
    """[n_edges, radial_dim], for atom updates."""
    radial_output: Tensor
    """[n_edges, radial_dim], for output heads."""
    circular: Tensor
    """[n_edges, circular_dim, n_spherical], the radial part of the circular basis of each outgoing edge."""
    harmonics: Tensor
    """[n_atoms, max_degree, n_spherical^2], scaled spherical harmonics of the edges of each target, zero-padded."""
