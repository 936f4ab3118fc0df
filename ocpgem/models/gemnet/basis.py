"""Radial bases, envelopes and spherical harmonics, of distances in units of the cutoff and of unit vectors."""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ocpgem.config import Section


class EnvelopeConfig(Section):
    """The smooth cutoff multiplied onto every radial basis."""

    name: Literal["polynomial", "exponential"] = "polynomial"
    exponent: int = Field(5, ge=1, le=20, description="order of the polynomial envelope")


class RadialBasisConfig(Section):
    """The radial basis of the distances."""

    name: Literal["gaussian", "spherical_bessel", "bernstein"] = "gaussian"
    n_radial: int = Field(128, ge=2, le=1024, description="number of radial functions")
    envelope: EnvelopeConfig = EnvelopeConfig()


def polynomial_envelope(u: Tensor, exponent: int) -> Tensor:
    """1 at u = 0 and, with its first two derivatives, 0 at u >= 1 (DimeNet, eq. 8)."""
    p = exponent
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    inside = 1 + u.pow(p) * (a + u * (b + u * c))
    return torch.where(u < 1, inside, torch.zeros_like(u))


def exponential_envelope(u: Tensor) -> Tensor:
    """exp(-u^2 / ((1 - u)(1 + u))) below u = 1, else 0."""
    inside = u < 1
    safe = torch.where(inside, u, torch.zeros_like(u))
    return torch.where(inside, torch.exp(-safe.square() / ((1 - safe) * (1 + safe))), torch.zeros_like(u))


class GaussianRadial(nn.Module):
    """exp(g (u - mu_k)^2) on an even grid over [0, 1], g from the float32 grid spacing as in the released models."""

    centers: Tensor

    def __init__(self, n_radial: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0, 1, n_radial, dtype=torch.float32), persistent=False)
        self.coefficient = -0.5 / float(np.float32(1 / (n_radial - 1))) ** 2

    def forward(self, u: Tensor) -> Tensor:
        return torch.exp(self.coefficient * (u[:, None] - self.centers).square())


class SphericalBesselRadial(nn.Module):
    """sqrt(2 / cutoff^3) sin(f_k u) / u with trainable frequencies, first k pi."""

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        self.norm = math.sqrt(2 / cutoff**3)
        self.frequencies = nn.Parameter(math.pi * torch.arange(1, n_radial + 1, dtype=torch.float32))

    def forward(self, u: Tensor) -> Tensor:
        return self.norm * torch.sin(self.frequencies * u[:, None]) / u[:, None]


class BernsteinRadial(nn.Module):
    """Bernstein polynomials of exp(-softplus(gamma) u) (PhysNet-style), gamma trainable."""

    binomials: Tensor
    powers: Tensor

    def __init__(self, n_radial: int) -> None:
        super().__init__()
        binomials = torch.tensor([math.comb(n_radial - 1, k) for k in range(n_radial)], dtype=torch.float32)
        self.register_buffer("binomials", binomials, persistent=False)
        self.register_buffer("powers", torch.arange(n_radial, dtype=torch.float32), persistent=False)
        self.gamma = nn.Parameter(torch.tensor(0.45264))

    def forward(self, u: Tensor) -> Tensor:
        x = torch.exp(-F.softplus(self.gamma) * u)[:, None]
        return self.binomials * x.pow(self.powers) * (1 - x).pow(self.powers.flip(0))


class RadialBasis(nn.Module):
    """Distances [n_edges] in A -> basis values [n_edges, n_radial], zero at and beyond the cutoff."""

    def __init__(self, config: RadialBasisConfig, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.envelope = config.envelope
        self.functions: nn.Module
        if config.name == "gaussian":
            self.functions = GaussianRadial(config.n_radial)
        elif config.name == "spherical_bessel":
            self.functions = SphericalBesselRadial(config.n_radial, cutoff)
        else:
            self.functions = BernsteinRadial(config.n_radial)

    @property
    def is_trainable(self) -> bool:
        """Whether the functions have parameters; the circular basis then has its own copy of them."""
        return any(True for _ in self.functions.parameters())

    def forward(self, distance: Tensor) -> Tensor:
        u = distance / self.cutoff
        if self.envelope.name == "polynomial":
            envelope = polynomial_envelope(u, self.envelope.exponent)
        else:
            envelope = exponential_envelope(u)
        return envelope[:, None] * self.functions(u)


def degree_of_harmonics(n_spherical: int) -> list[int]:
    """The degree l of each of the n_spherical^2 harmonics, in the order of `scaled_harmonics`."""
    return [degree for degree in range(n_spherical) for _ in range(2 * degree + 1)]


def self_product(n_spherical: int) -> list[float]:
    """sum_m y_lm(u)^2 per degree l, for any unit vector u (spec/density.md)."""
    return [math.sqrt((2 * degree + 1) / (4 * math.pi)) for degree in range(n_spherical)]


def scaled_harmonics(direction: Tensor, n_spherical: int) -> Tensor:
    """Real spherical harmonics scaled so that sum_m y_lm(u) y_lm(v) = Y_l0(angle between u and v).

    direction: unit vectors [n, 3]. Returns [n, n_spherical^2], degree l at columns l^2 ... l^2 + 2l.
    The recurrences are polynomials in x, y, z, so derivatives exist at the poles.
    """
    x, y, z = direction.unbind(-1)
    cosines, sines = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(1, n_spherical):
        cosines.append(x * cosines[-1] - y * sines[-1])
        sines.append(x * sines[-1] + y * cosines[-2])
    legendre = _legendre_without_sine(z, n_spherical)
    columns: list[Tensor] = []
    for degree in range(n_spherical):
        scale = (4 * math.pi / (2 * degree + 1)) ** 0.25
        for order in range(-degree, degree + 1):
            m = abs(order)
            norm = math.sqrt(
                (2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m)
            )
            norm *= scale * (math.sqrt(2) if m else 1)
            azimuthal = sines[m] if order < 0 else cosines[m]
            columns.append(norm * legendre[degree][m] * azimuthal)
    return torch.stack(columns, dim=-1)


def _legendre_without_sine(z: Tensor, n_spherical: int) -> list[list[Tensor]]:
    """Q_l^m(z) = P_l^m(z) / sin^m without the Condon-Shortley sign, indexed [l][m]."""
    table: list[list[Tensor]] = [[torch.ones_like(z)] * (degree + 1) for degree in range(n_spherical)]
    for m in range(n_spherical):
        table[m][m] = torch.full_like(z, float(math.prod(range(1, 2 * m, 2))))
        if m + 1 < n_spherical:
            table[m + 1][m] = (2 * m + 1) * z * table[m][m]
        for degree in range(m + 2, n_spherical):
            upper = (2 * degree - 1) * z * table[degree - 1][m] - (degree + m - 1) * table[degree - 2][m]
            table[degree][m] = upper / (degree - m)
    return table
