"""Bias-free dense layers, residual blocks, scale factors and the initialisation they share (GemNet paper, appendix)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ocpgem.kernels import use_triton

INV_SQRT_2 = 2.0**-0.5
SILU_SCALE = 1 / 0.6
"""SiLU is divided by 0.6 so that it keeps the variance of a standard normal input."""

Observer = Callable[["ScaleFactor", Tensor, Tensor | None], None]


def float32_region(like: Tensor) -> torch.autocast:
    """Autocast is off within: geometry, bases, sums and output layers stay in the precision of the weights."""
    return torch.autocast(like.device.type, enabled=False)


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x) / 0.6, any shape."""
    if use_triton(x):
        from ocpgem.kernels.silu import silu_sum

        return silu_sum(x, SILU_SCALE)
    return F.silu(x).mul_(SILU_SCALE)


def skip(x: Tensor, update: Tensor) -> Tensor:
    """(x + update) / sqrt(2), which keeps the variance of independent inputs."""
    return torch.add(x, update).mul_(INV_SQRT_2)


def skip_activated(x: Tensor, update: Tensor) -> Tensor:
    """(x + SiLU(update) / 0.6) / sqrt(2)."""
    if use_triton(update):
        from ocpgem.kernels.silu import silu_sum

        return silu_sum(update, SILU_SCALE, x, INV_SQRT_2)
    return skip(x, scaled_silu(update))


def he_orthogonal_(weight: Tensor) -> None:
    """Fill a weight with a standardised (semi-)orthogonal matrix of variance 1 / fan_in.

    A 2-D weight is [out, in] and is standardised along `in`; a 3-D weight is standardised over its first two axes.
    """
    with torch.no_grad():
        nn.init.orthogonal_(weight)
        axes = (0, 1) if weight.ndim == 3 else (1,)
        fan_in = weight.shape[:-1].numel() if weight.ndim == 3 else weight.shape[1]
        variance, mean = torch.var_mean(weight, dim=axes, unbiased=True, keepdim=True)
        weight.sub_(mean).div_((variance + 1e-6).sqrt()).mul_(fan_in**-0.5)


class Dense(nn.Module):
    """y = x W^T, followed by SiLU / 0.6 if `activation`; never a bias.

    The weight is [out_dim, in_dim].
    """

    def __init__(self, in_dim: int, out_dim: int, activation: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.activation = activation
        he_orthogonal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.product(x)
        return scaled_silu(x) if self.activation else x

    def product(self, x: Tensor) -> Tensor:
        """x W^T, the pre-activation."""
        return F.linear(x, self.weight)


class Residual(nn.Module):
    """x -> (x + Dense(Dense(x))) / sqrt(2), both layers with activation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense_1 = Dense(dim, dim, activation=True)
        self.dense_2 = Dense(dim, dim, activation=True)

    def forward(self, x: Tensor) -> Tensor:
        return skip(x, self.dense_2(self.dense_1(x)))


class Frugal:
    """A part of a model that keeps little for the gradient, and computes again what costs little.

    twice_differentiated: whether gradients are part of what is trained (gradient forces). Then autograd keeps all it
    needs at once; without, a second derivative is still right, but computes the part again.
    """

    twice_differentiated = False

    def recomputed(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """function(*args), of which the arguments alone are kept. Its last operation is not computed again."""
        # torch.compile chooses itself what is kept.
        if torch.compiler.is_compiling() or self.twice_differentiated or not torch.is_grad_enabled():
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


class DenseChain(Frugal, nn.Sequential):
    """A Dense layer with activation, or none, then residual blocks; pre-activations are kept for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, in_dim] -> [n, out_dim]."""
        if not len(self):
            return x
        leading = isinstance(self[0], Dense)
        # torch.compile chooses itself what is kept, and cannot follow the other forms.
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.twice_differentiated):
            return plain_chain(x, self._weights(), leading)
        if torch.is_grad_enabled():
            return _Chain.apply(x, leading, *self._weights())
        return _run_chain(x, self._weights(), leading, None)

    def _weights(self) -> list[Tensor]:
        return [layer.weight for layer in self.modules() if isinstance(layer, Dense)]


def residual_stack(dim: int, n_layers: int) -> DenseChain:
    """`n_layers` residual blocks of width `dim`; the identity if zero."""
    return DenseChain(*(Residual(dim) for _ in range(n_layers)))


def combine(first: Tensor, *others: Tensor) -> Tensor:
    """The sum of independent terms over the square root of their number, which keeps their variance."""
    total = first
    for term in others:
        total = total + term
    return total * (1 + len(others)) ** -0.5 if others else first


def widening_stack(in_dim: int, out_dim: int, n_residual: int, leading: str = "always") -> DenseChain:
    """A Dense layer in_dim -> out_dim with activation, then `n_residual` residual blocks.

    leading: "if_widths_differ" leaves the Dense layer out where both widths are equal.
    """
    first = [Dense(in_dim, out_dim, activation=True)] if leading == "always" or in_dim != out_dim else []
    return DenseChain(*first, *residual_stack(out_dim, n_residual))


class ScaleFactor(nn.Module):
    """A constant, fitted once before training, that restores the variance of an activation.

    The factor multiplies the weight that produces the activation (a small matrix) instead of the activation itself.
    `observe` shows the activation to `ocpgem.train.scale_fitting` while factors are fitted and does nothing otherwise.
    """

    factor: Tensor
    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self.observer: Observer | None = None

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def observe(self, x: Tensor, reference: Tensor | None) -> Tensor:
        """Return `x` unchanged; its variance should equal that of `reference` (or 1 without one)."""
        if self.observer is not None:
            self.observer(self, x, reference)
        return x

    def set(self, value: float) -> None:
        """Fix the factor to `value` and mark it as fitted."""
        self.factor.fill_(value)
        self.fitted.fill_(True)


def plain_chain(x: Tensor, weights: Sequence[Tensor], leading: bool) -> Tensor:
    """What a `DenseChain` computes, in torch's own operations: the reference, and the form for second derivatives."""
    if leading:
        x, weights = scaled_silu(F.linear(x, weights[0])), weights[1:]
    for first, second in zip(weights[::2], weights[1::2], strict=True):
        x = skip_activated(x, F.linear(scaled_silu(F.linear(x, first)), second))
    return x


def _run_chain(x: Tensor, weights: Sequence[Tensor], leading: bool, kept: list[Tensor] | None) -> Tensor:
    """The chain without autograd; pre-activations are appended to `kept`.

    The running sum of residual blocks is not divided by sqrt(2) after each; the constants multiply weights instead,
    which are small, so that every block reads and writes its activations as rarely as possible.
    """

    def product(x: Tensor, weight: Tensor) -> Tensor:
        found = F.linear(x, weight)
        if kept is not None:
            kept.append(found)
        return found

    if leading:
        x, weights = scaled_silu(product(x, weights[0])), weights[1:]
    own = leading  # whether nobody else reads x
    for number, (first, second) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        growth = 2.0 ** (number / 2)
        update = product(F.silu(product(x, first / growth)), second * SILU_SCALE)
        x, own = _add_silu(x, update, growth * SILU_SCALE, own), True
    return x.mul_(2.0 ** (-len(weights) / 4)) if len(weights) else x


def _add_silu(x: Tensor, update: Tensor, alpha: float, own: bool) -> Tensor:
    """x + alpha * SiLU(update), in place of x if nobody else reads it (own)."""
    if use_triton(update):
        from ocpgem.kernels.silu import silu_sum

        return silu_sum(update, alpha, x)
    update = F.silu(update)
    add = x.add_ if own and x.dtype == torch.result_type(x, update) else x.add
    return add(update, alpha=alpha)


class _Chain(torch.autograd.Function):
    """`plain_chain`, of which the input and the pre-activations are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leading: bool, *weights: Tensor) -> Tensor:
        kept: list[Tensor] = []
        y = _run_chain(x, weights, leading, kept)
        ctx.save_for_backward(x, *weights, *kept)
        ctx.leading = leading
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors  # read once: checkpointing hands them out once
        n_weights = len(rest) // 2
        weights, kept = rest[:n_weights], rest[n_weights:]
        if torch.is_grad_enabled():
            of_all = _differentiable_gradient(x, weights, kept[0].dtype, ctx.leading, grads[0])
        else:
            needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
            of_all = _chain_gradient((x, *weights), kept, ctx.leading, grads[0], needed)
        return of_all[0], None, *of_all[1:]


def _differentiable_gradient(
    x: Tensor, weights: list[Tensor], dtype: torch.dtype, leading: bool, grad: Tensor
) -> list[Tensor | None]:
    """Gradients of x and of every weight, with a graph of their own; dtype: that of products in the forward pass."""
    inputs = [x, *weights]
    with torch.autocast(x.device.type, dtype, enabled=dtype != weights[0].dtype):
        y = plain_chain(x, weights, leading)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def _chain_gradient(
    inputs: tuple[Tensor, ...], kept: list[Tensor], leading: bool, grad: Tensor, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients of x and of every weight (`inputs`), where needed; see `_run_chain` for the constants."""
    x, dtype = inputs[0], kept[0].dtype
    n_blocks = len(kept) // 2
    starts = [
        scaled_silu(kept[0]) if leading else x
    ]  # what goes into each block, times sqrt(2) per block before it
    for number in range(n_blocks - 1):
        update = kept[2 * number + leading + 1]
        starts.append(_add_silu(starts[-1], update, 2.0 ** (number / 2) * SILU_SCALE, own=False))
    of_all: list[Tensor | None] = [None] * len(inputs)
    grad = grad * 2.0 ** (-n_blocks / 2)
    for number in reversed(range(n_blocks)):
        place = 2 * number + leading
        first, second = inputs[place + 1], inputs[place + 2]
        inner, start = kept[place], starts.pop().to(dtype)
        growth = 2.0 ** (number / 2)
        of_outer = torch.ops.aten.silu_backward(grad.to(dtype), kept[place + 1])
        if needed[place + 2]:
            of_second = of_outer.t() @ F.silu(inner)
            of_all[place + 2] = of_second.to(second.dtype) * (growth * SILU_SCALE**2)
        of_activated = of_outer @ (second * (growth * SILU_SCALE**2)).to(dtype)
        of_inner = torch.ops.aten.silu_backward(of_activated, inner)
        if needed[place + 1]:
            of_all[place + 1] = (of_inner.t() @ start).to(first.dtype) / growth
        if number or leading or needed[0]:
            weight = (first / growth).to(dtype)
            grad = grad.addmm_(of_inner, weight) if grad.dtype == dtype else grad.add_(of_inner @ weight)
    if leading:
        of_product = torch.ops.aten.silu_backward(grad.to(dtype), kept[0])
        if needed[1]:
            of_all[1] = (of_product.t() @ x.to(dtype)).to(inputs[1].dtype) * SILU_SCALE
        grad = of_product @ (inputs[1] * SILU_SCALE).to(dtype) if needed[0] else grad
    of_all[0] = grad.to(x.dtype) if needed[0] else None
    return of_all
