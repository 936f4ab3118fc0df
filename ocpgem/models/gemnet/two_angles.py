"""Sums over quadruplets d -> b -> a <- c that never list them: pairs of rows of two tables with one middle edge b -> a.

`legendre_outer` depends on the dihedral angle theta by cos(theta), the product of two unit normals, so the sum over d
factorises like that over triplets (spec/density.md C). `spherical_harmonics` contain sin(m theta) of an unsigned angle,
which does not factorise: those sums run over blocks of middle edges, recomputed in the backward pass.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ocpgem.graph.topology import EdgeSet, Quadruplets
from ocpgem.models.gemnet.basis import (
    circular_harmonics,
    polar_harmonics,
    released_orders,
    scaled_harmonics,
    self_product,
)
from ocpgem.models.gemnet.densities import density, read_degrees
from ocpgem.models.gemnet.edge_ops import pad_by_target, unpad
from ocpgem.models.gemnet.geometry import (
    EdgeGeometry,
    PlaneSide,
    from_middle_edge,
    pad_by_main,
    pad_by_middle,
    plane_side,
    rounding_noise,
)

TwoAngle = Literal["legendre_outer", "spherical_harmonics"]
_BLOCK = 2**21
"""Values of the angle between two sides that a block of middle edges may hold."""
_SMALLEST = 1e-9
"""The least size of the product of both sides' vectors, perpendicular to the middle edge, that an angle is taken of."""
_SAMPLES = 2**17
"""Angles that are evaluated one by one to fit the scale factor of a basis."""


@dataclass
class QuadrupletAngles:
    """The angles of all quadruplets, by their two sides; evaluated once and shared by all blocks."""

    two_angle: TwoAngle
    n_spherical: int
    n_main: int
    n_middle: int
    inner: PlaneSide
    outer: PlaneSide
    inner_circular: Tensor
    """[n_middle, max_inner, n_spherical], Y_l0 of the angle a-b-d."""
    outer_polar: Tensor
    """[n_edges, max_outer_per_main, n_functions], the factor of the angle c-a-b in each angular function."""
    inner_plane: Tensor
    """[n_middle, max_inner, ...], what the sums over d read of the normals: see `sum_inner`."""
    outer_plane: Tensor
    """[n_middle, max_outer, ...]"""
    excluded: Tensor
    """[n_excluded, n_azimuthal], the functions of theta where c and d are one atom, to be taken off."""

    @classmethod
    def of(
        cls,
        main: EdgeGeometry,
        middle: EdgeGeometry,
        tables: Quadruplets,
        n_main: int,
        n_spherical: int,
        two_angle: TwoAngle,
        in_angstrom: bool = False,
        far: EdgeGeometry | None = None,
    ) -> "QuadrupletAngles":
        """Evaluate the angles; in_angstrom: see `plane_side`; far: of the edges d -> b, if they are not `main`."""
        n_middle = middle.distance.shape[0]
        inner = plane_side(far or main, middle, tables.inner, at_target=False, in_angstrom=in_angstrom)
        outer = plane_side(main, middle, tables.outer, at_target=True, in_angstrom=in_angstrom)
        if two_angle == "legendre_outer":
            inner_plane, outer_plane = _harmonics_of_normals(inner, n_spherical), _readers(outer, n_spherical)
            polar = circular_harmonics(outer.cosine, n_spherical)
        else:
            inner_plane = torch.cat([inner.normal, inner.height[:, None]], dim=1)
            # cos(theta) is the product of the normals, sin(theta) the size of that with one turned by 90 degrees
            turned = torch.linalg.cross(from_middle_edge(middle.direction, tables.outer), outer.normal)
            outer_plane = torch.cat([outer.normal, turned, outer.height[:, None]], dim=1)
            polar = polar_harmonics(outer.cosine, outer.sine, n_spherical)
        return cls(
            two_angle=two_angle,
            n_spherical=n_spherical,
            n_main=n_main,
            n_middle=n_middle,
            inner=inner,
            outer=outer,
            inner_circular=pad_by_middle(
                circular_harmonics(inner.cosine, n_spherical), tables.inner, n_middle
            ),
            outer_polar=pad_by_main(polar, tables.outer, n_main),
            inner_plane=pad_by_middle(inner_plane, tables.inner, n_middle),
            outer_plane=pad_by_middle(outer_plane, tables.outer, n_middle),
            excluded=_excluded(outer, inner, tables, n_spherical, two_angle),
        )


def _rows(side: PlaneSide, rows: Tensor) -> PlaneSide:
    return PlaneSide(*(getattr(side, field.name)[rows] for field in dataclasses.fields(side)))


def _excluded(
    outer: PlaneSide, inner: PlaneSide, tables: Quadruplets, n_spherical: int, two_angle: TwoAngle
) -> Tensor:
    """What the sums over all d contain for d = c, computed as they compute it."""
    outer, inner = _rows(outer, tables.excluded_outer), _rows(inner, tables.excluded_inner)
    if two_angle == "legendre_outer":
        return circular_harmonics((outer.normal * inner.normal).sum(-1), n_spherical)
    return _azimuthal(*_cosine_and_sine(outer, inner), n_spherical, two_angle)


def _cosine_and_sine(outer: PlaneSide, inner: PlaneSide) -> tuple[Tensor, Tensor]:
    """Of the dihedral angle in (0, pi] of row pairs."""
    cosine = (outer.normal * inner.normal).sum(-1)
    square = torch.linalg.cross(outer.normal, inner.normal).square().sum(-1)
    tiny = square <= rounding_noise(square.dtype) ** 2
    size = torch.where(tiny, torch.ones_like(square), square).sqrt()
    return _with_floor(cosine, torch.where(tiny, torch.zeros_like(size), size), outer.height * inner.height)


def _with_floor(cosine: Tensor, sine: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    """The angle whose sine, times both heights, is at least 1e-9, as the released models have it (gemnet.md 2.5).

    heights: their product; where it is 0, a side is collinear and has no plane: a right angle.
    """
    collinear = heights <= 0
    floor = _SMALLEST / torch.where(collinear, torch.ones_like(heights), heights)
    sine = torch.where(collinear, torch.ones_like(sine), torch.maximum(sine, floor))
    length = torch.hypot(cosine, sine)
    return cosine / length, sine / length


def _azimuthal(cosine: Tensor, sine: Tensor, n_spherical: int, two_angle: TwoAngle) -> Tensor:
    """The functions of theta alone on a new last axis: Y_l0, or cos(m theta), m >= 0, then sin(m theta), m > 0."""
    if two_angle == "legendre_outer":
        return circular_harmonics(cosine, n_spherical)
    cosines, sines = [torch.ones_like(cosine), cosine], [torch.zeros_like(sine), sine]
    for _ in range(2, n_spherical):
        cosines.append(2 * cosine * cosines[-1] - cosines[-2])
        sines.append(2 * cosine * sines[-1] - sines[-2])
    return torch.stack([*cosines[:n_spherical], *sines[1:n_spherical]], dim=-1)


def _azimuths(n_spherical: int) -> list[int]:
    """For each spherical harmonic, in the released order, which of the functions of `_azimuthal` it contains."""
    orders = [m for degree in range(n_spherical) for m in released_orders(degree)]
    return [m if m >= 0 else n_spherical - 1 - m for m in orders]


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


def sum_inner(x: Tensor, angles: QuadrupletAngles, tables: Quadruplets) -> Tensor:
    """For each row (c -> a, b -> a) the sum over d, weighted by the functions of the dihedral angle.

    x: [n_middle, max_inner, channels], zero-padded. Returns [n_outer, n_azimuthal, channels].
    """
    if angles.two_angle == "legendre_outer":
        summed = _sum_factorised(x, angles)
    else:
        summed = _sum_blocks(x, angles)
    rows = unpad(summed, tables.outer.slot)
    of_inner = unpad(x, tables.inner.slot).index_select(0, tables.excluded_inner)
    excess = angles.excluded.unsqueeze(2) * of_inner.unsqueeze(1)
    return rows.index_add(0, tables.excluded_outer, -excess)


def _sum_factorised(x: Tensor, angles: QuadrupletAngles) -> Tensor:
    n = angles.n_spherical
    of_middle = density(angles.inner_plane, x)  # [n_middle, n^2 + 2, channels]
    reader = angles.outer_plane  # [n_middle, max_outer, n^2 + 2]
    right_angle = reader[:, :, n**2 :] @ of_middle[:, n**2 :]
    per_degree = [
        torch.add(read, right_angle, alpha=value) if value else read
        for read, value in zip(read_degrees(reader, of_middle, n), _right_angle_values(n), strict=True)
    ]
    return torch.stack(per_degree, dim=2)


def _right_angle_values(n_spherical: int) -> list[float]:
    """Y_l0 of a right angle."""
    legendre = [1.0, 0.0]
    for degree in range(2, n_spherical):
        legendre.append(-(degree - 1) / degree * legendre[-2])
    return [scale * value for scale, value in zip(self_product(n_spherical), legendre, strict=False)]


def _sum_blocks(x: Tensor, angles: QuadrupletAngles) -> Tensor:
    inner, outer = angles.inner_plane, angles.outer_plane
    per_edge = inner.shape[1] * outer.shape[1] * (2 * angles.n_spherical - 1)
    size = max(1, _BLOCK // max(1, per_edge))
    blocks = []
    for first in range(0, angles.n_middle, size):
        rows = slice(first, first + size)
        arguments = (x[rows], inner[rows], outer[rows], angles.n_spherical)
        if torch.is_grad_enabled():
            blocks.append(checkpoint(_sum_block, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            blocks.append(_sum_block(*arguments))
    if not blocks:
        return x.new_zeros(0, outer.shape[1], 2 * angles.n_spherical - 1, x.shape[2])
    return torch.cat(blocks)


def _sum_block(x: Tensor, inner: Tensor, outer: Tensor, n_spherical: int) -> Tensor:
    """[b, max_inner, channels] and both sides of b middle edges -> [b, max_outer, n_azimuthal, channels]."""
    normals = inner[:, :, :3].transpose(1, 2)
    cosine = outer[:, :, :3] @ normals  # [b, max_outer, max_inner]
    # The angle has no sign, so the energy has a kink where all four atoms lie in a plane. No gradient comes through sin
    # theta there; else the sign of rounding noise would choose one.
    signed = F.hardshrink(outer[:, :, 3:6] @ normals, rounding_noise(cosine.dtype))
    heights = outer[:, :, 6:] * inner[:, :, 3:].transpose(1, 2)
    cosine, sine = _with_floor(cosine, signed.abs(), heights)
    functions = _azimuthal(cosine, sine, n_spherical, "spherical_harmonics")
    mixed = functions.transpose(2, 3).flatten(1, 2)  # [b, max_outer * n_azimuthal, max_inner]
    return (mixed @ x).unflatten(1, (outer.shape[1], functions.shape[3]))


def sum_outer(rows: Tensor, angles: QuadrupletAngles, tables: Quadruplets) -> Tensor:
    """For each edge c -> a the sum over b of what `sum_inner` gives, weighted by the functions of the angle c-a-b.

    rows: [n_outer, n_azimuthal, channels]. Returns [n_edges, n_spherical^2, channels].
    """
    n = angles.n_spherical
    table = pad_by_main(rows, tables.outer, angles.n_main)  # [n_edges, width, n_azimuthal, channels]
    polar = angles.outer_polar.transpose(1, 2)  # [n_edges, n_functions, width]
    if angles.two_angle == "legendre_outer":
        summed = polar @ table.flatten(2)  # [n_edges, n, n * channels]
        return summed.view(angles.n_main, n * n, rows.shape[2])
    azimuths = _azimuths(n)
    columns: dict[int, Tensor] = {}
    for azimuth in range(2 * n - 1):
        users = [s for s, of_function in enumerate(azimuths) if of_function == azimuth]
        # Indexing by a list would make the host wait for the device.
        of_users = torch.stack([polar[:, s] for s in users], dim=1)
        summed = of_users @ table[:, :, azimuth]
        for position, s in enumerate(users):
            columns[s] = summed[:, position]
    return torch.stack([columns[s] for s in range(n * n)], dim=1)


def triplet_angle_samples(
    incoming: EdgeGeometry,
    in_edges: EdgeSet,
    n_spherical: int,
    outgoing: EdgeGeometry | None = None,
    out_edges: EdgeSet | None = None,
) -> Tensor:
    """Y_l0 of single triplets [n, n_spherical], for the fit of a basis' scale factor; at most about 10^5 of them."""
    directions = pad_by_target(incoming.direction, in_edges)
    same = outgoing is None or out_edges is None
    others = (
        directions if outgoing is None or out_edges is None else pad_by_target(outgoing.direction, out_edges)
    )
    cosine = others @ directions.transpose(1, 2)  # [n_atoms, out_degree, in_degree]
    valid = (others.abs().sum(-1) > 0)[:, :, None] & (directions.abs().sum(-1) > 0)[:, None, :]
    # An edge meets itself at the angle 0; such pairs are no triplets.
    valid &= (
        cosine < 1 - 1e-6 if not same else ~torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
    )
    chosen = cosine[valid]
    step = max(1, len(chosen) // _SAMPLES)
    return circular_harmonics(chosen[::step].clamp(-1, 1), n_spherical)


def angle_samples(angles: QuadrupletAngles, tables: Quadruplets) -> tuple[Tensor, Tensor]:
    """The angular functions of single rows and single quadruplets, for the fits of their bases' scale factors.

    Returns [n_inner, n_spherical] and [n, n_spherical^2], the latter of at most about 10^5 quadruplets.
    """
    n = angles.n_spherical
    of_inner = circular_harmonics(angles.inner.cosine, n)
    counts = torch.bincount(tables.inner.middle_edge, minlength=angles.n_middle)
    first = counts.cumsum(0) - counts
    per_row = counts[tables.outer.middle_edge]
    outer_row = torch.repeat_interleave(torch.arange(len(per_row), device=per_row.device), per_row)
    start = per_row.cumsum(0) - per_row
    within = torch.arange(len(outer_row), device=per_row.device) - start[outer_row]
    inner_row = first[tables.outer.middle_edge[outer_row]] + within
    step = max(1, len(outer_row) // _SAMPLES)
    outer, inner = _rows(angles.outer, outer_row[::step]), _rows(angles.inner, inner_row[::step])
    azimuthal = _azimuthal(*_cosine_and_sine(outer, inner), n, angles.two_angle)
    if angles.two_angle == "legendre_outer":
        polar = circular_harmonics(outer.cosine, n)
        return of_inner, (polar.unsqueeze(2) * azimuthal.unsqueeze(1)).flatten(1)
    azimuths = _azimuths(n)
    return of_inner, polar_harmonics(outer.cosine, outer.sine, n) * azimuthal[:, azimuths]
