"""What a `DenseChain` computes of some rows: forward, its gradient, and the gradient of that; see `run_rows`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ocpgem.models.gemnet.activation import SILU_SCALE, silu_and_gradient, silu_tangents, silu_terms


def run_rows(
    x: Tensor, weights: Sequence[Tensor], leading: bool, kept: list[Tensor] | None, out: Tensor
) -> None:
    """Write rows of the result to `out`; weights: see `scaled`. Pre-activations are appended to `kept`.

    The running sum of residual blocks is not divided by sqrt(2) after each; the constants multiply weights instead,
    which are small, so that every block reads and writes its activations as rarely as possible.
    """

    def product(x: Tensor, weight: Tensor) -> Tensor:
        found = F.linear(x.to(weight.dtype), weight)
        if kept is not None:
            kept.append(found)
        return found

    n_blocks = len(weights) // 2
    blocks = weights[int(leading) :]
    if leading:
        x = silu_terms(product(x, weights[0]), alpha=SILU_SCALE, out=None if n_blocks else out)
    for number in range(n_blocks):
        inner = product(x, blocks[2 * number])
        activated = silu_terms(inner, out=inner if kept is None else None)
        update = product(activated, blocks[2 * number + 1])
        scale = 1 / growth(n_blocks) if number == n_blocks - 1 else 1.0
        own = x if leading or number else None  # nobody else reads it
        x = add_silu(x, update, number, scale, out if number == n_blocks - 1 else own)


def growth(number: int) -> float:
    """By how much the running sum in front of a residual block is too large."""
    return float(2.0 ** (number / 2))


def scaled(weights: Sequence[Tensor], leading: bool) -> list[Tensor]:
    """The weights with the constants in front of them: of SiLU, and of the running sum."""
    found = list(weights[: int(leading)])
    for place, weight in enumerate(weights[int(leading) :]):
        factor = SILU_SCALE if place % 2 else 1 / growth(place // 2)
        found.append(weight if factor == 1 else weight * factor)
    return found


def scaled_back(n_weights: int, leading: bool) -> list[float]:
    """What each weight is multiplied by on the way back, for its own gradient as well."""
    found = [SILU_SCALE] if leading else []
    for number in range(n_weights // 2):
        found += [1 / growth(number), growth(number) * SILU_SCALE**2]
    return found


def add_silu(x: Tensor, update: Tensor, number: int, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
    """The running sum x after a residual block, times `scale`; out: where to write it."""
    return silu_terms(update, base=x, alpha=growth(number) * SILU_SCALE * scale, scale=scale, out=out)


class WeightSums:
    """The gradients of weights, sums over all rows of the products of two factors; None where not needed."""

    def __init__(self, weights: Sequence[Tensor], needed: Sequence[bool]) -> None:
        self.needed = needed
        self.of_weights: list[Tensor | None] = [None] * len(weights)
        self._dtypes = [weight.dtype for weight in weights]

    def add(self, place: int, left: Tensor, right: Tensor) -> None:
        """Add left^T right, [n, out_dim]^T [n, in_dim], to the gradient of a weight if it is needed."""
        if not self.needed[place]:
            return
        total, right = self.of_weights[place], right.to(left.dtype)
        if total is None:
            self.of_weights[place] = (left.t() @ right).to(self._dtypes[place])
        elif total.dtype == left.dtype:
            total.addmm_(left.t(), right)
        else:
            total.add_(left.t() @ right)

    def times(self, factors: Sequence[float]) -> list[Tensor | None]:
        """The gradients times a factor each; in place."""
        return [
            None if of_weight is None else of_weight.mul_(factor)
            for of_weight, factor in zip(self.of_weights, factors, strict=True)
        ]


def gradient_of_rows(
    out: Tensor | None,
    x: Tensor,
    back: Sequence[Tensor],
    kept: list[Tensor],
    leading: bool,
    grad: Tensor,
    sums: WeightSums,
    passed: list[Tensor] | None,
    extra: list[Tensor],
) -> None:
    """Write the gradient of rows of x to `out`, add up those of the weights; empties `kept` and `extra`.

    back: the weights times `scaled_back`; grad: of what the chain returns. `passed` gets, from the last block on, the
    gradients of the running sum and of the inner activation of each, then of the leading one. extra: gradients of the
    pre-activations from elsewhere, see `tangents_of_rows`, or nothing.
    """
    # The gradient of the running sum is computed where that of x belongs, if it is that in the end.
    own = None if leading or out is None or out.dtype != grad.dtype else out
    grad = torch.mul(grad, 1 / growth(len(back) // 2), out=own)
    starts = _starts(x, kept, leading) if any(sums.needed) else []

    def last_kept() -> tuple[Tensor, Tensor | None]:
        """The last pre-activation that is left, and its gradient from elsewhere."""
        return kept.pop(), extra.pop() if extra else None

    def before_activation(of_activated: Tensor) -> Tensor:
        """The gradient of the last pre-activation that is left."""
        before, more = last_kept()
        return silu_terms(before, (of_activated.to(before.dtype),), more, order=1)

    for number in reversed(range(len(kept) // 2)):
        place = 2 * number + leading
        if passed is not None:
            passed.append(grad.clone())
        of_outer = before_activation(grad)
        of_activated = of_outer @ back[place + 1]
        if passed is not None:
            passed.append(of_activated)
        if sums.needed[place + 1]:
            before, more = last_kept()
            activated, of_inner = silu_and_gradient(before, of_activated, more)
            sums.add(place + 1, of_outer, activated)
        else:
            of_inner = before_activation(of_activated)
        if starts:
            sums.add(place, of_inner, starts.pop())
        if grad.dtype == of_inner.dtype:
            grad.addmm_(of_inner, back[place])
        else:
            grad.add_(of_inner @ back[place])
    if leading:
        if passed is not None:
            passed.append(grad)
        of_product = before_activation(grad)
        sums.add(0, of_product, x)
        grad = of_product @ back[0]
    if out is not None and grad is not out:
        out.copy_(grad)


def _starts(x: Tensor, kept: Sequence[Tensor], leading: bool) -> list[Tensor]:
    """The running sum in front of each block."""
    n_blocks = len(kept) // 2
    starts = [silu_terms(kept[0], alpha=SILU_SCALE) if leading else x] if n_blocks else []
    for number in range(n_blocks - 1):
        starts.append(add_silu(starts[-1], kept[2 * number + leading + 1], number))
    return starts


def tangents_of_rows(
    weights: Sequence[Tensor],
    kept: Sequence[Tensor],
    passed: Sequence[Tensor],
    leading: bool,
    tangent: Tensor,
    sums: WeightSums,
) -> tuple[Tensor, list[Tensor]]:
    """What a gradient of the gradient of rows of x gives: to the gradient of the running sum, and to pre-activations.

    weights: see `scaled`; passed: of `gradient_of_rows`; tangent: the gradient of what that returned. With J the
    derivative of the chain, it returned J^T grad, whose product with a vector v is grad (J v): the chain is run with
    tangents, v at its start. Pre-activations are those of all layers, whose gradients go on backwards with those that
    come from elsewhere. Adds to the gradients of the weights what comes through the tangents.
    """
    extra: list[Tensor] = []

    def through_activation(place: int, by_tangent: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The tangent behind SiLU, and the gradient in front; grad: of what is behind. Overwrites `by_tangent`."""
        behind, of_kept, of_x = silu_tangents(kept[place], by_tangent, grad)
        extra.append(of_kept)
        return behind, of_x

    tangent = tangent.to(kept[0].dtype)
    if leading:
        grad, start = passed[-1].to(tangent.dtype), tangent
        behind, of_product = through_activation(0, tangent @ weights[0].t(), grad)
        tangent = behind.mul_(SILU_SCALE)
        sums.add(0, of_product, start)
    for number in range(len(kept) // 2):
        place = 2 * number + leading
        last = len(kept) // 2 - 1 - number  # `passed` begins with the last block
        grad, grad_inner = (tensor.to(tangent.dtype) for tensor in passed[2 * last : 2 * last + 2])
        activated, of_inner = through_activation(place, tangent @ weights[place].t(), grad_inner)
        sums.add(place, of_inner, tangent)
        update, of_outer = through_activation(place + 1, activated @ weights[place + 1].t(), grad)
        sums.add(place + 1, of_outer, activated)
        tangent = torch.add(tangent, update, alpha=growth(number) * SILU_SCALE)
    return tangent, extra
