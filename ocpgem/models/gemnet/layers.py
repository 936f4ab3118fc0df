"""Bias-free dense layers, residual blocks, scale factors and the initialisation they share (GemNet paper, appendix)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INV_SQRT_2 = 2.0**-0.5
SILU_SCALE = 1 / 0.6
"""SiLU is divided by 0.6 so that it keeps the variance of a standard normal input."""

Observer = Callable[["ScaleFactor", Tensor, Tensor | None], None]


def float32_region(like: Tensor) -> torch.autocast:
    """Autocast is off within: geometry, bases, sums and output layers stay in the precision of the weights."""
    return torch.autocast(like.device.type, enabled=False)


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x) / 0.6, any shape."""
    return F.silu(x).mul_(SILU_SCALE)


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
        x = F.linear(x, self.weight)
        return scaled_silu(x) if self.activation else x


class Residual(nn.Module):
    """x -> (x + Dense(Dense(x))) / sqrt(2), both layers with activation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense_1 = Dense(dim, dim, activation=True)
        self.dense_2 = Dense(dim, dim, activation=True)

    def forward(self, x: Tensor) -> Tensor:
        return skip(x, self.dense_2(self.dense_1(x)))


def residual_stack(dim: int, n_layers: int) -> nn.Sequential:
    """`n_layers` residual blocks of width `dim`; the identity if zero."""
    return nn.Sequential(*(Residual(dim) for _ in range(n_layers)))


def combine(first: Tensor, *others: Tensor) -> Tensor:
    """The sum of independent terms over the square root of their number, which keeps their variance."""
    total = first
    for term in others:
        total = total + term
    return total * (1 + len(others)) ** -0.5 if others else first


def widening_stack(in_dim: int, out_dim: int, n_residual: int, leading: str = "always") -> nn.Sequential:
    """A Dense layer in_dim -> out_dim with activation, then `n_residual` residual blocks.

    leading: "if_widths_differ" leaves the Dense layer out where both widths are equal.
    """
    first = [Dense(in_dim, out_dim, activation=True)] if leading == "always" or in_dim != out_dim else []
    return nn.Sequential(*first, *residual_stack(out_dim, n_residual))


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
