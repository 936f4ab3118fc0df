"""Radial bases, envelopes and spherical harmonics, of distances in units of the cutoff and of unit vectors."""

import functools
import itertools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from scipy import optimize, special
from torch import Tensor, nn

from ocpgem.config import Section
from ocpgem.models.gemnet.layers import ScaleFactor


class EnvelopeConfig(Section):
    """The smooth cutoff multiplied onto every radial basis."""

    name: Literal["polynomial", "exponential"] = "polynomial"
    exponent: int = Field(5, ge=1, le=20, description="order of the polynomial envelope")


class RadialBasisConfig(Section):
    """The radial basis of the distances."""

    name: Literal["gaussian", "spherical_bessel", "bernstein"] = "gaussian"
    n_radial: int = Field(128, ge=2, le=1024, description="number of radial functions")
    unit: Literal["cutoff", "covalent_radii"] = Field(
        "cutoff",
        description="what distances are measured in: the cutoff, or three times the sum of both covalent radii, in "
        "which bonds of all elements look alike",
    )
    envelope: EnvelopeConfig = EnvelopeConfig()


class AngularBasisConfig(Section):
    """The bases of triplets and quadruplets: functions of a distance times functions of one or two angles."""

    radial: Literal["gaussian", "spherical_bessel", "bernstein", "bessel_by_degree"] | None = Field(
        None, description="functions of the distance; null: those of radial_basis"
    )
    two_angle: Literal["legendre_outer", "spherical_harmonics"] = Field(
        "legendre_outer", description="functions of the two angles of a quadruplet"
    )


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
    """exp(g (u - mu_k)^2) on an even grid over [0, 1].

    exact_spacing: g from the spacing of the grid; else from the spacing rounded to float32, as in the released GemNet-T
    (gemnet.md 9.21).
    """

    centers: Tensor

    def __init__(self, n_radial: int, exact_spacing: bool = False) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0, 1, n_radial, dtype=torch.float32), persistent=False)
        spacing = 1 / (n_radial - 1)
        self.coefficient = -0.5 / (spacing if exact_spacing else float(np.float32(spacing))) ** 2

    def forward(self, u: Tensor) -> Tensor:
        exponent = self.coefficient * (u[:, None] - self.centers).square()
        # e^-60 is nothing beside 1, and what cannot be told from 0 takes a CPU longer (benchmarks/native_kernels.py).
        return torch.exp(exponent.clamp_(min=-60))


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


class BesselByDegree(nn.Module):
    """Radial functions that depend on the degree l: c^(-3/2) N_lk j_l(z_lk u), N_lk = sqrt(2) / |j_(l+1)(z_lk)|.

    z_lk is the k-th positive zero of the spherical Bessel function j_l, rounded to float32 as in the original GemNet.
    Evaluated in float64: in float32, high degrees at short distances are lost to cancellation.
    """

    def __init__(self, n_spherical: int, n_radial: int, cutoff: float) -> None:
        super().__init__()
        rounded = spherical_bessel_zeros(n_spherical, n_radial).astype(np.float32)
        # scipy evaluates a float32 argument in float32; the published norms carry that rounding.
        following = np.stack([special.spherical_jn(degree + 1, row) for degree, row in enumerate(rounded)])
        norms = math.sqrt(2 / cutoff**3) / np.abs(following.astype(np.float64))
        zeros = rounded.astype(np.float64)
        # Plain attributes: `model.to(dtype)` would round buffers.
        self._zeros, self._norms = torch.from_numpy(zeros), torch.from_numpy(norms)

    def forward(self, u: Tensor) -> Tensor:
        """[n] -> [n, n_spherical, n_radial]."""
        if self._zeros.device != u.device:
            self._zeros, self._norms = self._zeros.to(u.device), self._norms.to(u.device)
        x = u.double()[:, None, None] * self._zeros  # [n, n_spherical, n_radial]
        columns = [spherical_bessel(degree, x[:, degree]) for degree in range(x.shape[1])]
        return (torch.stack(columns, dim=1) * self._norms).to(u.dtype)


@functools.cache
def spherical_bessel_zeros(n_spherical: int, n_radial: int) -> NDArray[np.float64]:
    """The first n_radial positive zeros of j_0 ... j_(n_spherical - 1), [n_spherical, n_radial].

    The zeros of two neighbouring degrees interlace, which brackets them.
    """
    rows = [np.pi * np.arange(1, n_radial + n_spherical)]
    for degree in range(1, n_spherical):
        last = rows[-1]
        rows.append(
            np.array(
                [
                    optimize.brentq(lambda x, d=degree: special.spherical_jn(d, x), low, high, xtol=1e-13)
                    for low, high in itertools.pairwise(last)
                ]
            )
        )
    return np.stack([row[:n_radial] for row in rows])


def spherical_bessel(degree: int, x: Tensor) -> Tensor:
    """j_l(x) for x >= 0, float64: the power series below 1.5, the upward recurrence above."""
    small = x < 1.5
    low = torch.where(small, x, torch.ones_like(x))
    term = low**degree / math.prod(range(1, 2 * degree + 2, 2))
    series = term
    for k in range(1, 12):
        term = term * (-0.5 * low.square()) / (k * (2 * degree + 2 * k + 1))
        series = series + term
    high = torch.where(small, torch.full_like(x, 2.0), x)
    previous, current = torch.cos(high) / high, torch.sin(high) / high
    for step in range(degree):
        previous, current = current, (2 * step + 1) / high * current - previous
    return torch.where(small, series, current)


class RadialBasis(nn.Module):
    """Distances [n_edges] in A -> basis values, zero at and beyond the cutoff.

    The values are [n_edges, n_radial], or [n_edges, n_spherical, n_radial] for functions that depend on the degree.
    """

    def __init__(
        self,
        config: RadialBasisConfig,
        cutoff: float,
        name: str | None = None,
        n_spherical: int = 1,
        scaled: bool = False,
        exact_spacing: bool = False,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.envelope = config.envelope
        name = name or config.name
        self.functions: nn.Module
        if name == "gaussian":
            self.functions = GaussianRadial(config.n_radial, exact_spacing)
        elif name == "spherical_bessel":
            self.functions = SphericalBesselRadial(config.n_radial, cutoff)
        elif name == "bernstein":
            self.functions = BernsteinRadial(config.n_radial)
        else:
            self.functions = BesselByDegree(n_spherical, config.n_radial, cutoff)
        self.scale = ScaleFactor() if scaled else None

    @property
    def is_trainable(self) -> bool:
        """Whether the functions have parameters; bases of the same kind then have a copy each."""
        return any(True for _ in self.functions.parameters())

    def forward(self, distance: Tensor, radii: Tensor | None = None) -> Tensor:
        """distance: [n_edges] in A; radii: [n_edges] sum of both covalent radii in A, where they are the unit."""
        u = distance / self.cutoff
        if self.envelope.name == "polynomial":
            envelope = polynomial_envelope(u, self.envelope.exponent)
        else:
            envelope = exponential_envelope(u)
        functions = self.functions(u if radii is None else distance / (3 * radii))
        values = functions * envelope.view(-1, *[1] * (functions.ndim - 1))
        return values if self.scale is None else self.scale.observe(self.scale(values), None)


def circular_harmonics(cosine: Tensor, n_spherical: int) -> Tensor:
    """Y_l0 of angles given by their cosine: [...] -> [..., n_spherical]."""
    legendre = [torch.ones_like(cosine), cosine]
    for degree in range(2, n_spherical):
        upper = (2 * degree - 1) * cosine * legendre[-1] - (degree - 1) * legendre[-2]
        legendre.append(upper / degree)
    return torch.stack(
        [scale * p for scale, p in zip(self_product(n_spherical), legendre, strict=False)], dim=-1
    )


def polar_harmonics(cosine: Tensor, sine: Tensor, n_spherical: int) -> Tensor:
    """The polar factors of the real spherical harmonics, so that Y_lm = factor * cos(m theta) or sin(|m| theta).

    cosine, sine: of the polar angle, [...]. Returns [..., n_spherical^2]; within a degree l the orders are
    0, 1, ..., l, -l, ..., -1 (gemnet.md 2.4).
    """
    legendre = _legendre_without_sine(cosine, n_spherical)
    powers = [torch.ones_like(sine)]
    for _ in range(1, n_spherical):
        powers.append(powers[-1] * sine)
    return torch.stack(
        [
            harmonic_norm(degree, m) * legendre[degree][m] * powers[m]
            for degree in range(n_spherical)
            for m in map(abs, released_orders(degree))
        ],
        dim=-1,
    )


def released_orders(degree: int) -> list[int]:
    """The orders m of one degree as the released models arrange them: 0, 1, ..., l, -l, ..., -1."""
    return [*range(degree + 1), *range(-degree, 0)]


def harmonic_norm(degree: int, order: int) -> float:
    """The norm of the real spherical harmonic of |order| >= 0, with the sqrt(2) of orders that are not 0."""
    ratio = math.factorial(degree - order) / math.factorial(degree + order)
    return math.sqrt((2 if order else 1) * (2 * degree + 1) / (4 * math.pi) * ratio)


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
            azimuthal = sines[m] if order < 0 else cosines[m]
            columns.append(scale * harmonic_norm(degree, m) * legendre[degree][m] * azimuthal)
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
