"""Bias-free dense layers, residual blocks, scale factors and the initialisation they share (GemNet paper, appendix)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocpgem.models.gemnet.activation import INV_SQRT_2, scaled_silu
from ocpgem.models.gemnet.in_blocks import in_blocks, rows_in_cache

Observer = Callable[["ScaleFactor", Tensor, Tensor | None, Tensor | None], None]
"""Takes a factor, the activation, its reference, and how often each row of that counts (None: once)."""


def float32_region(like: Tensor) -> torch.autocast:
    """Autocast is off within: geometry, bases, sums and output layers stay in the precision of the weights."""
    return torch.autocast(like.device.type, enabled=False)


def skip(x: Tensor, update: Tensor) -> Tensor:
    """(x + update) / sqrt(2), which keeps the variance of independent inputs."""
    return torch.add(x, update).mul_(INV_SQRT_2)


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


class ForceGradient:
    """Says when a model differentiates its energy by positions to get forces.

    The one that a model's chains share is right for threads that evaluate with one model, not for two that train it.
    """

    def __init__(self) -> None:
        self.is_taken = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within the context the gradient is taken."""
        self.is_taken = True
        try:
            yield
        finally:
            self.is_taken = False


class Frugal:
    """A part of a model that keeps little for the gradient, and computes again what costs little.

    forces: where a model has them as gradients; while they are taken, gradients of weights are not asked for.
    as_autograd: keep of chains, and of what is computed by rows, what autograd would keep, to compare with.
    """

    forces: ForceGradient | None = None
    as_autograd = False

    def by_rows(
        self,
        function: Callable[..., Tensor],
        tables: Sequence[Tensor],
        shared: Sequence[Tensor],
        observed: bool,
    ) -> Tensor:
        """function(*tables, *shared), of rows that do not depend on each other; the arguments alone are kept.

        tables: [n, ...] each; shared: weights [out_dim, in_dim].
        observed: whether a fit of scale factors looks at what is computed in between.
        """
        # torch.compile chooses itself what is kept. Gradients of forces would need products four times.
        keep_all = self.as_autograd or self.forces is not None
        if observed or torch.compiler.is_compiling() or (torch.is_grad_enabled() and keep_all):
            return function(*tables, *shared)
        width = max([table.shape[1:].numel() for table in tables] + [weight.shape[0] for weight in shared])
        return in_blocks(function, rows_in_cache(tables[0], width), tables, shared)


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


def combine(first: Tensor, *others: Tensor) -> Tensor:
    """The sum of independent terms over the square root of their number, which keeps their variance."""
    if not others:
        return first
    total = torch.add(first, others[0])
    for term in others[1:]:
        total = total.add_(term)
    return total.mul_((1 + len(others)) ** -0.5)


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

    @property
    def is_observed(self) -> bool:
        """Whether a fit of the factor waits for values."""
        return self.observer is not None

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def observe(self, x: Tensor, reference: Tensor | None, times: Tensor | None = None) -> Tensor:
        """Return `x` unchanged; its variance should equal that of `reference` (or 1 without one).

        times: [n] how often each row of the reference counts; None: once.
        """
        if self.observer is not None:
            self.observer(self, x, reference, times)
        return x

    def set(self, value: float) -> None:
        """Fix the factor to `value` and mark it as fitted."""
        self.factor.fill_(value)
        self.fitted.fill_(True)
