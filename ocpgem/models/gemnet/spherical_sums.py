"""The sum of `spherical_angles.py`, by torch in blocks of atoms or by compiled functions."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocpgem.kernels.native_quadruplets import QuadrupletSums
from ocpgem.models.gemnet.basis import released_orders
from ocpgem.models.gemnet.geometry import rounding_noise
from ocpgem.models.gemnet.in_blocks import Block, aliases, gradients, in_blocks
from ocpgem.models.gemnet.layers import ForceGradient

_BLOCK = 2**21
"""Functions of quadruplets that a block of atoms may hold."""
_SMALLEST = 1e-9
"""The least size of the product of both sides' vectors, perpendicular to the middle edge, that an angle is taken of."""


def sum_over_quadruplets(
    tables: Sequence[Tensor], excluded: Tensor, n_spherical: int, only_for: ForceGradient | None = None
) -> Tensor:
    """[n_atoms, degree, spherical_dim, channels]; tables: see `_sum_block`, of all atoms; only_for: see `Geometry`.

    Both gradients compute again what is needed in between; from the third derivative on, all atoms are computed
    together, and everything is kept. Where `only_for` says who reads gradients by angles, that is by of_inner, of_outer
    and polar, compiled functions give none (None) to others.
    """
    if QuadrupletSums.can(tables):
        form = _Form(excluded.contiguous(), n_spherical, only_for)
        return _NativeSum.apply(form, *(table.contiguous() for table in tables))
    x, _, of_outer, _, _ = tables
    of_one_atom = 2 * n_spherical * x.shape[1] * x.shape[2] * of_outer.shape[2]
    size = max(1, _BLOCK // max(1, of_one_atom))
    return in_blocks(_block_of(n_spherical), size, (*tables, excluded))


def _block_of(n_spherical: int) -> Block:
    return partial(_sum_block, n_spherical=n_spherical)


def azimuths(n_spherical: int) -> list[list[int]]:
    """The harmonics, by their released numbers, that contain cos(m theta), m >= 0, then sin(m theta), m > 0."""
    orders = [m for degree in range(n_spherical) for m in released_orders(degree)]
    of_angle = [*range(n_spherical), *range(-1, -n_spherical, -1)]
    return [[s for s, m in enumerate(orders) if m == azimuth] for azimuth in of_angle]


def _sum_block(
    x: Tensor,
    of_inner: Tensor,
    of_outer: Tensor,
    polar: Tensor,
    spherical: Tensor,
    excluded: Tensor,
    n_spherical: int,
) -> Tensor:
    """[n_atoms, degree, spherical_dim, channels]; the arguments are rows of the tables of `SphericalAngles`."""
    n_atoms, middle_degree, max_inner, channels = x.shape
    degree = of_outer.shape[2]
    x, of_inner, of_outer, excluded = (table.flatten(0, 1) for table in (x, of_inner, of_outer, excluded))
    polar, spherical = polar.flatten(0, 1), spherical.flatten(0, 1)
    turns = of_inner[..., :-1].unflatten(2, (n_spherical, 4)).permute(0, 2, 3, 1)  # [.., m, 4, max_inner]
    readers = (
        of_outer[..., :-1].unflatten(2, (2, n_spherical, 4)).permute(2, 0, 3, 1, 4)
    )  # [2, .., m, degree, 4]
    distinct = torch.arange(max_inner, device=x.device) != excluded.unsqueeze(2)
    cosines = readers[0] @ turns  # [n_middle, m, degree, max_inner]
    functions = [cosines * distinct.unsqueeze(1)]
    if n_spherical > 1:
        sines = readers[1, :, 1:] @ turns[:, 1:]
        least = (of_outer[..., -1:] * of_inner[..., -1].unsqueeze(1) * _SMALLEST).clamp_max(0.5)
        functions.append(_of_size(sines, cosines[:, 1], least, distinct))
    of_azimuths: list[Tensor] = []
    for values in functions:
        summed = (values.flatten(1, 2) @ x).view(n_atoms, middle_degree, values.shape[1], degree, channels)
        # each [n_atoms * degree, middle_degree, channels]
        of_azimuths += summed.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
    same_azimuth = azimuths(n_spherical)
    factors = polar.split([len(same) for same in same_azimuth], dim=1)
    columns: dict[int, Tensor] = {}
    for same, factor, of_azimuth in zip(same_azimuth, factors, of_azimuths, strict=True):
        columns |= zip(same, (factor @ of_azimuth).unbind(1), strict=True)
    harmonics = torch.stack([columns[s] for s in range(n_spherical**2)], dim=1)
    return (spherical @ harmonics).unflatten(0, (n_atoms, degree))


def _of_size(sines: Tensor, cosine: Tensor, least: Tensor, distinct: Tensor) -> Tensor:
    """The sines of multiples of the size of an angle, from those of the angle with its sign.

    sines: [n_middle, m - 1, degree, max_inner]; cosine, least, distinct: of the angle itself, the sine of the smallest
    one there is, and whether it is one, [n_middle, degree, max_inner]. The size of an angle has a kink where all four
    atoms lie in a plane. No gradient comes through its sine there; else the sign of rounding noise would choose one.
    """
    with torch.no_grad():
        sine = sines[:, 0]
        planar = sine.abs() <= least.clamp_min(rounding_noise(sine.dtype))
        signs = sine.sign() * (distinct & ~planar)
        odd = (distinct & planar).to(sine.dtype)
        even = odd * cosine.sign()
        multiples = torch.stack([(even, odd)[m % 2] * m for m in range(1, 1 + sines.shape[1])], dim=1)
    return torch.addcmul(least.unsqueeze(1) * multiples, sines, signs.unsqueeze(1))


class _Form:
    """What is computed: the sum, and for whom gradients by angles are."""

    def __init__(self, excluded: Tensor, n_spherical: int, only_for: ForceGradient | None) -> None:
        columns = [s for same in azimuths(n_spherical) for s in same]
        members = torch.tensor(columns, device=excluded.device)
        self.sums = QuadrupletSums(n_spherical, members, excluded, _SMALLEST, rounding_noise(torch.float32))
        self._only_for = only_for

    @property
    def angles_are_read(self) -> bool:
        """Whether anybody reads a gradient by the angles that is taken now."""
        return self._only_for is None or self._only_for.is_taken


class _NativeSum(torch.autograd.Function):
    """The sum by compiled functions, of contiguous tables."""

    @staticmethod
    def forward(ctx: Any, form: _Form, *tables: Tensor) -> Tensor:
        ctx.save_for_backward(*tables)
        ctx.form = form
        return form.sums.value(tables)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        form, wanted = ctx.form, ctx.needs_input_grad[1:]
        with_angles = any(wanted[1:4]) and form.angles_are_read
        # A copy is made here, where autograd sees it.
        found = _NativeGradient.apply(form, with_angles, grads[0].contiguous(), *ctx.saved_tensors)
        return None, *(of if want else None for of, want in zip(found, wanted, strict=True))


class _NativeGradient(torch.autograd.Function):
    """The gradients of `_NativeSum` by all tables, or None, as a function of the incoming one and of the tables."""

    @staticmethod
    def forward(
        ctx: Any, form: _Form, with_angles: bool, grad: Tensor, *tables: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, *tables)
        ctx.form = form
        return tuple(form.sums.gradients(grad, tables, with_angles))

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad, *tables), form, asked = ctx.saved_tensors, ctx.form, ctx.needs_input_grad[2:]
        found: list[Tensor | None]
        if torch.is_grad_enabled():  # to be differentiated in turn
            found = _differentiable_second_gradients(grad, form.sums, tables, seconds)
        else:
            of_gradients = [
                torch.zeros_like(table) if second is None else second.contiguous()
                for second, table in zip(seconds, tables, strict=True)
            ]
            with_angles = any(asked[2:5]) and form.angles_are_read
            found = form.sums.second_gradients(grad, tables, of_gradients, with_angles)
        return None, None, *(of if ask else None for of, ask in zip(found, asked, strict=True))


def _differentiable_second_gradients(
    grad: Tensor, sums: QuadrupletSums, tables: Sequence[Tensor], seconds: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """As `QuadrupletSums.second_gradients`, with a graph of its own; None for what needs no gradient."""
    inputs = of_grad, *others = aliases(grad, *tables)
    pairs = [
        (table, second)
        for table, second in zip(others, seconds, strict=True)
        if table.requires_grad and second is not None
    ]
    by, weights = zip(*pairs, strict=True)
    value = _block_of(sums.n_spherical)(*others, sums.excluded)
    firsts = torch.autograd.grad(value, by, of_grad, create_graph=True, materialize_grads=True)
    found = iter(gradients(firsts, [of for of in inputs if of.requires_grad], weights, create_graph=True))
    return [next(found) if of.requires_grad else None for of in inputs]
