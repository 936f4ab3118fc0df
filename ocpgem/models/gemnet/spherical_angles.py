"""Sums over quadruplets d -> b -> a <- c weighted by real spherical harmonics, in blocks of atoms a.

The harmonics contain sin(m theta) of an unsigned dihedral angle theta, which does not factorise. But theta is, up to
its sign, the difference of two angles of one plane, that of c and that of d around the middle edge; so are all
functions of theta products of small matrices, but for that sign. Nothing else is ever computed of a quadruplet.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ocpgem.graph.topology import Topology, TripletTable
from ocpgem.models.gemnet.basis import circular_harmonics, polar_harmonics, released_orders
from ocpgem.models.gemnet.edge_ops import pad, pad_by_target, unpad
from ocpgem.models.gemnet.geometry import Geometry, PlaneSide, from_middle_edge, plane_side
from ocpgem.models.gemnet.layers import ForceGradient
from ocpgem.models.gemnet.spherical_sums import azimuths, sum_over_quadruplets


@dataclass
class SphericalAngles:
    """The angles of all quadruplets, by their two sides, in tables of the atoms a; shared by all interactions.

    Table rows: a, then a middle edge b -> a among those that end there, then an edge c -> a or d -> b.
    """

    n_spherical: int
    inner: PlaneSide
    outer: PlaneSide
    inner_circular: Tensor
    """[n_middle, max_inner, n_spherical], Y_l0 of the angle a-b-d."""
    of_inner: Tensor
    """[n_atoms, middle degree, max_inner, 4 n_spherical + 1]: see `_turns`; then 1 / height. By the third number, 1 of
    every row and 0 where the table is filled up, and so in `of_outer`, compiled functions know what is a row."""
    of_outer: Tensor
    """[n_atoms, middle degree, degree, 8 n_spherical + 1]: what meets the above in each function; 1 / height."""
    polar: Tensor
    """[n_atoms, degree, n_spherical^2, middle degree], the factor of the angle c-a-b, in the order of `azimuths`."""
    excluded: Tensor
    """[n_atoms, middle degree, degree], which row d of the middle edge is c itself; max_inner where none is."""
    only_for: ForceGradient | None
    """See `Geometry`."""

    @classmethod
    def of(
        cls, geometry: Geometry, topology: Topology, n_spherical: int, in_angstrom: bool
    ) -> "SphericalAngles":
        """Evaluate the angles; in_angstrom: see `plane_side`."""
        tables, middle_edges, main_edges = topology.quadruplets, topology.quadruplet, topology.main
        assert tables is not None
        assert middle_edges is not None
        assert geometry.middle is not None
        inner = plane_side(
            geometry.inner, geometry.middle, tables.inner, at_target=False, in_angstrom=in_angstrom
        )
        outer = plane_side(
            geometry.main, geometry.middle, tables.outer, at_target=True, in_angstrom=in_angstrom
        )
        axes = _plane_axes(geometry.middle.direction)
        rows_inner = torch.cat(
            [_turns(inner, axes, tables.inner, n_spherical).flatten(1), _inverse(inner)], dim=1
        )
        turns = _turns(outer, axes, tables.outer, n_spherical)
        rows_outer = torch.cat([_readers(turns).flatten(1), _inverse(outer)], dim=1)

        columns = polar_harmonics(outer.cosine, outer.sine, n_spherical).unbind(1)
        polar = torch.stack([columns[s] for same in azimuths(n_spherical) for s in same], dim=1)

        n_middle, n_atoms = middle_edges.n_edges, len(main_edges.edge_ptr) - 1
        degree, middle_degree = main_edges.max_degree, middle_edges.max_degree
        max_inner = tables.inner.max_per_middle
        # Where the rows lie in the tables; an edge's slot is its atom times the degree, plus its place there.
        place = tables.inner.slot - tables.inner.middle_edge * max_inner
        in_inner = middle_edges.slot[tables.inner.middle_edge] * max_inner + place
        of_middle, of_main = (
            middle_edges.slot[tables.outer.middle_edge],
            main_edges.slot[tables.outer.main_edge],
        )
        in_outer = of_middle * degree + of_main % max(1, degree)
        in_polar = of_main * middle_degree + of_middle % max(1, middle_degree)
        sizes = (n_atoms, middle_degree)
        excluded = place.new_full((n_atoms * middle_degree * degree,), max_inner)
        excluded.index_copy_(0, in_outer[tables.excluded_outer], place[tables.excluded_inner])
        circular = circular_harmonics(inner.cosine, n_spherical)
        return cls(
            n_spherical=n_spherical,
            inner=inner,
            outer=outer,
            inner_circular=pad(circular, tables.inner.slot, n_middle, max_inner),
            of_inner=pad(rows_inner, in_inner, n_atoms * middle_degree, max_inner).unflatten(0, sizes),
            of_outer=pad(rows_outer, in_outer, n_atoms * middle_degree, degree).unflatten(0, sizes),
            polar=pad(polar, in_polar, n_atoms * degree, middle_degree)
            .transpose(1, 2)
            .contiguous()
            .unflatten(0, (n_atoms, degree)),
            excluded=excluded.view(*sizes, degree),
            only_for=geometry.only_for,
        )

    def arranged(self, spherical: Tensor, topology: Topology) -> Tensor:
        """The basis of both angles at c -> a, [n_edges, spherical_dim, n_spherical^2], as `sum` takes it."""
        return pad_by_target(spherical, topology.main)

    def sum(self, x: Tensor, spherical: Tensor, topology: Topology) -> Tensor:
        """For each edge c -> a the sum over b and d, weighted by the basis of both angles.

        x: [n_middle, max_inner, channels], zero-padded; spherical: see `arranged`. Returns [n_edges, spherical_dim,
        channels].
        """
        main, middle = topology.main, topology.quadruplet
        assert middle is not None
        table = pad_by_target(x, middle)  # [n_atoms, middle degree, max_inner, channels]
        tables = (table, self.of_inner, self.of_outer, self.polar, spherical)
        return unpad(sum_over_quadruplets(tables, self.excluded, self.n_spherical, self.only_for), main.slot)

    def functions(self, inner_rows: Tensor, outer_rows: Tensor) -> Tensor:
        """[n, n_spherical^2], the angular functions of single quadruplets given by rows of both tables."""
        inner, outer = self.inner.rows(inner_rows), self.outer.rows(outer_rows)
        straight = (inner.collinear + outer.collinear) > 0
        sine = torch.linalg.cross(outer.normal, inner.normal).norm(dim=1).masked_fill(straight, 1)
        angle = torch.atan2(sine, (outer.normal * inner.normal).sum(-1))
        orders = [m for degree in range(self.n_spherical) for m in released_orders(degree)]
        of_angle = [(m * angle).cos() if m >= 0 else (-m * angle).sin() for m in orders]
        return polar_harmonics(outer.cosine, outer.sine, self.n_spherical) * torch.stack(of_angle, dim=1)


def _plane_axes(direction: Tensor) -> tuple[Tensor, Tensor]:
    """Two axes of the plane perpendicular to each direction [n, 3]; any such pair gives the same results."""
    least = direction.abs().argmin(dim=1, keepdim=True) == torch.arange(3, device=direction.device)
    first = torch.linalg.cross(direction, least.to(direction.dtype))
    first = first / first.norm(dim=1, keepdim=True)
    return first, torch.linalg.cross(direction, first)


def _turns(side: PlaneSide, axes: tuple[Tensor, Tensor], table: TripletTable, n_spherical: int) -> Tensor:
    """[n_rows, n_spherical, 4]: cos(m phi), sin(m phi), 1, and 1 again if the row's normal has an angle phi.

    Where both edges of a row are collinear there is no normal, and all but the third are zero.
    """
    regular = 1 - side.collinear
    cosine, sine = ((side.normal * from_middle_edge(axis, table)).sum(-1) for axis in axes)
    turns = [(regular, torch.zeros_like(regular))]
    for _ in range(1, n_spherical):
        real, imaginary = turns[-1]
        turns.append((real * cosine - imaginary * sine, real * sine + imaginary * cosine))
    one = torch.ones_like(regular)
    return torch.stack([torch.stack([*turn, one, regular], dim=1) for turn in turns], dim=1)


def _readers(turns: Tensor) -> Tensor:
    """[n_rows, 2, n_spherical, 4]: products with `_turns` of the other side are cos and sin of m times the difference.

    Where one of both has no angle, the difference is a right angle, as in the released models (gemnet.md 9.5).
    """
    real, imaginary, one, regular = turns.unbind(2)  # [n_rows, n_spherical] each
    of_right_angle = [((1, 0), (0, 1), (-1, 0), (0, -1))[m % 4] for m in range(turns.shape[1])]
    cosines, sines = (
        torch.stack([value * one[:, m] for m, value in enumerate(values)], dim=1)
        for values in zip(*of_right_angle, strict=True)
    )
    of_cosines = torch.stack([real, imaginary, cosines, -cosines * regular], dim=2)
    of_sines = torch.stack([-imaginary, real, sines, -sines * regular], dim=2)
    return torch.stack([of_cosines, of_sines], dim=1)


def _inverse(side: PlaneSide) -> Tensor:
    """[n_rows, 1], of the heights, or very large."""
    return 1 / side.height.clamp_min(1e-9)[:, None]
