"""Sums over quadruplets d -> b -> a <- c weighted by products of Legendre polynomials of both angles, in O(edges).

They depend on the dihedral angle theta by cos(theta), the product of two unit normals, so the sum over d factorises
like that over triplets (spec/density.md C): no pair of rows of the two tables of a middle edge b -> a is ever formed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ocpgem.graph.topology import Quadruplets, Topology
from ocpgem.models.gemnet.basis import circular_harmonics, scaled_harmonics, self_product
from ocpgem.models.gemnet.densities import density, read_degrees
from ocpgem.models.gemnet.edge_ops import stack, unpad
from ocpgem.models.gemnet.geometry import Geometry, PlaneSide, pad_by_main, pad_by_middle, plane_side
from ocpgem.models.gemnet.products import product


@dataclass
class LegendreAngles:
    """The angles of all quadruplets, by their two sides; evaluated once and shared by all interactions."""

    n_spherical: int
    inner: PlaneSide
    outer: PlaneSide
    inner_circular: Tensor
    """[n_middle, max_inner, n_spherical], Y_l0 of the angle a-b-d."""
    outer_polar: Tensor
    """[n_edges, max_outer_per_main, n_spherical], Y_l0 of the angle c-a-b."""
    inner_plane: Tensor
    """[n_middle, max_inner, n_spherical^2 + 2], what is summed over d: see `_harmonics_of_normals`."""
    outer_plane: Tensor
    """[n_middle, max_outer, n_spherical^2 + 2], what reads the sums."""
    excluded: Tensor
    """[n_excluded, n_spherical], the functions of theta where c and d are one atom, to be taken off."""

    @classmethod
    def of(cls, geometry: Geometry, topology: Topology, n_spherical: int) -> "LegendreAngles":
        """Evaluate the angles."""
        tables, middle = topology.quadruplets, geometry.middle
        assert tables is not None
        assert middle is not None
        n_middle = middle.distance.shape[0]
        inner = plane_side(geometry.inner, middle, tables.inner, at_target=False)
        outer = plane_side(geometry.main, middle, tables.outer, at_target=True)
        of_inner, of_outer = (circular_harmonics(side.cosine, n_spherical) for side in (inner, outer))
        both = outer.rows(tables.excluded_outer).normal * inner.rows(tables.excluded_inner).normal
        return cls(
            n_spherical=n_spherical,
            inner=inner,
            outer=outer,
            inner_circular=pad_by_middle(of_inner, tables.inner, n_middle),
            outer_polar=pad_by_main(of_outer, tables.outer, topology.main.n_edges),
            inner_plane=pad_by_middle(_harmonics_of_normals(inner, n_spherical), tables.inner, n_middle),
            outer_plane=pad_by_middle(_readers(outer, n_spherical), tables.outer, n_middle),
            excluded=circular_harmonics(both.sum(-1), n_spherical),
        )

    def arranged(self, spherical: Tensor, topology: Topology) -> Tensor:
        """The basis of both angles at c -> a, [n_edges, spherical_dim, n_spherical^2], as `sum` takes it."""
        return spherical

    def sum(self, x: Tensor, spherical: Tensor, topology: Topology) -> Tensor:
        """For each edge c -> a the sum over b and d, weighted by the basis of both angles.

        x: [n_middle, max_inner, channels], zero-padded; spherical: see `arranged`. Returns [n_edges, spherical_dim,
        channels].
        """
        tables = topology.quadruplets
        assert tables is not None
        n, n_edges = self.n_spherical, topology.main.n_edges
        table = pad_by_main(self._sum_inner(x, tables), tables.outer, n_edges)
        summed = density(self.outer_polar, table.flatten(2))  # [n_edges, n, n * channels]
        return product(spherical, summed.view(n_edges, n * n, x.shape[2]))

    def _sum_inner(self, x: Tensor, tables: Quadruplets) -> Tensor:
        """For each row (c -> a, b -> a) the sum over d: [n_outer, n_spherical, channels]."""
        n = self.n_spherical
        of_middle = density(self.inner_plane, x)  # [n_middle, n^2 + 2, channels]
        *of_degrees, right_angle = read_degrees(self.outer_plane, of_middle, n)
        per_degree = [
            torch.add(read, right_angle, alpha=value) if value else read
            for read, value in zip(of_degrees, _right_angle_values(n), strict=True)
        ]
        rows = unpad(stack(per_degree, dim=2), tables.outer.slot)
        of_inner = unpad(x, tables.inner.slot).index_select(0, tables.excluded_inner)
        excess = self.excluded.unsqueeze(2) * of_inner.unsqueeze(1)
        return rows.index_add(0, tables.excluded_outer, -excess)

    def functions(self, inner_rows: Tensor, outer_rows: Tensor) -> Tensor:
        """[n, n_spherical^2], the angular functions of single quadruplets given by rows of both tables."""
        inner, outer = self.inner.rows(inner_rows), self.outer.rows(outer_rows)
        of_plane = circular_harmonics((outer.normal * inner.normal).sum(-1), self.n_spherical)
        of_angle = circular_harmonics(outer.cosine, self.n_spherical)
        return (of_angle.unsqueeze(2) * of_plane.unsqueeze(1)).flatten(1)


def _harmonics_of_normals(side: PlaneSide, n_spherical: int) -> Tensor:
    """[n_rows, n_spherical^2 + 2]: scaled harmonics of the normal, whether it is zero, and 1."""
    regular = 1 - side.collinear
    harmonics = scaled_harmonics(side.normal, n_spherical) * regular[:, None]
    return torch.cat([harmonics, side.collinear[:, None], torch.ones_like(regular)[:, None]], dim=1)


def _readers(side: PlaneSide, n_spherical: int) -> Tensor:
    """As above, but what reads the sums: a zero normal meets everything at a right angle, others only zero normals."""
    regular = (1 - side.collinear)[:, None]
    harmonics = scaled_harmonics(side.normal, n_spherical) * regular
    return torch.cat([harmonics, regular, side.collinear[:, None]], dim=1)


def _right_angle_values(n_spherical: int) -> list[float]:
    """Y_l0 of a right angle."""
    legendre = [1.0, 0.0]
    for degree in range(2, n_spherical):
        legendre.append(-(degree - 1) / degree * legendre[-2])
    return [scale * value for scale, value in zip(self_product(n_spherical), legendre, strict=False)]
