"""Bases and envelopes have the values of gemnet.md 9.y and of scipy, and the identities that density forms rest on."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from ocpgem.models.gemnet.basis import (
    BernsteinRadial,
    BesselByDegree,
    GaussianRadial,
    RadialBasis,
    RadialBasisConfig,
    SphericalBesselRadial,
    circular_harmonics,
    degree_of_harmonics,
    exponential_envelope,
    polar_harmonics,
    polynomial_envelope,
    released_orders,
    scaled_harmonics,
    self_product,
    spherical_bessel,
    spherical_bessel_zeros,
)


def test_polynomial_envelope_has_its_known_values() -> None:
    u = torch.tensor([0.0, 0.2, 0.5, 1.0, 1.5])
    assert polynomial_envelope(u, 5).tolist() == pytest.approx([1, 0.99533, 0.77344, 0, 0], abs=1e-5)


def test_polynomial_envelope_is_smooth_at_the_cutoff() -> None:
    u = torch.tensor(1 - 1e-6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(polynomial_envelope(u, 5), u, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, u)
    assert abs(slope.item()) < 1e-9
    assert abs(curvature.item()) < 1e-3


def test_exponential_envelope_has_its_known_values_and_finite_gradients() -> None:
    u = torch.tensor([0.2, 0.5, 1.0, 1.2], requires_grad=True)
    values = exponential_envelope(u)
    assert values.tolist() == pytest.approx([0.9592, 0.7165, 0, 0], abs=1e-4)
    (gradient,) = torch.autograd.grad(values.sum(), u)
    assert torch.isfinite(gradient).all()


def test_bernstein_basis_has_its_known_values() -> None:
    values = BernsteinRadial(4)(torch.tensor([0.3]))[0].tolist()
    assert values == pytest.approx([0.0150, 0.1377, 0.4201, 0.4273], abs=1e-4)


def test_spherical_bessel_basis_has_its_known_values() -> None:
    values = SphericalBesselRadial(3, cutoff=6.0)(torch.tensor([0.3]))[0].tolist()
    assert values == pytest.approx([0.2595, 0.3051, 0.0991], abs=1e-4)


def test_gaussian_width_comes_from_the_float32_grid() -> None:
    assert GaussianRadial(128).coefficient == pytest.approx(-8064.50006, abs=1e-4)
    assert GaussianRadial(64).coefficient == pytest.approx(-1984.49977, abs=1e-4)


@pytest.mark.parametrize("degree", range(7))
def test_spherical_bessel_functions_are_those_of_scipy(degree: int) -> None:
    x = torch.cat([torch.linspace(0, 1.5, 40), torch.linspace(1.5, 30, 200)]).double()
    expected = torch.from_numpy(special.spherical_jn(degree, x.numpy()))
    torch.testing.assert_close(spherical_bessel(degree, x), expected, rtol=1e-7, atol=1e-14)


def test_zeros_of_spherical_bessel_functions_are_the_first_ones() -> None:
    zeros = spherical_bessel_zeros(7, 6)
    assert zeros[0] == pytest.approx(math.pi * np.arange(1, 7))
    assert zeros[1, :3] == pytest.approx([4.4934096, 7.7252517, 10.904121], abs=1e-6)
    assert zeros[6, [0, 5]] == pytest.approx([10.512835, 27.507868], abs=1e-6)
    for degree, row in enumerate(zeros):
        assert np.abs(special.spherical_jn(degree, row)).max() < 1e-13
        below = special.spherical_jn(degree, np.linspace(0.1, row[-1] + 0.1, 2000))
        assert np.count_nonzero(np.diff(np.sign(below))) == 6  # so none is left out


def test_basis_by_degree_has_its_known_values() -> None:
    values = BesselByDegree(7, 6, cutoff=5.0)(torch.tensor([1.5, 2.5]) / 5.0) * 5.0**1.5
    assert values[:, 6, 0].tolist() == pytest.approx([0.0866330, 0.9787646], abs=1e-6)
    assert values[1, 2, 0].item() == pytest.approx(2.4959332, abs=1e-6)


def test_basis_by_degree_keeps_its_accuracy_at_short_distances() -> None:
    """The released float32 formula gives 0, 2.73e-3 and 0.03217 here (gemnet.md 9.22)."""
    values = BesselByDegree(7, 6, cutoff=10.0)(torch.tensor([1.0, 1.5, 2.5]) / 10.0)[:, 6, 0] * 10.0**1.5
    assert values.tolist() == pytest.approx([1.6e-4, 1.75e-3, 0.03222], rel=5e-3)


RADIAL = ["gaussian", "spherical_bessel", "bernstein", "bessel_by_degree"]


def radial_basis(name: str, envelope: str) -> RadialBasis:
    config = RadialBasisConfig.model_validate({"n_radial": 8, "envelope": {"name": envelope}})
    return RadialBasis(config, cutoff=6.0, name=name, n_spherical=7)


@pytest.mark.parametrize("name", RADIAL)
@pytest.mark.parametrize("envelope", ["polynomial", "exponential"])
def test_every_radial_basis_vanishes_at_the_cutoff(name: str, envelope: str) -> None:
    values = radial_basis(name, envelope)(torch.tensor([3.0, 6.0, 6.5]))
    assert values.shape == ((3, 7, 8) if name == "bessel_by_degree" else (3, 8))
    assert values[0].abs().max() > 0
    assert values[1:].abs().max() == 0


@pytest.mark.parametrize("name", RADIAL)
@pytest.mark.parametrize("envelope", ["polynomial", "exponential"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_derivatives_of_every_radial_basis_are_finite(name: str, envelope: str, dtype: torch.dtype) -> None:
    """From the shortest distance that the neighbour search gives to beyond the cutoff."""
    basis = radial_basis(name, envelope).to(dtype)
    distance = torch.tensor([0.0101, 0.1, 0.5, 1.0, 5.99, 6.0, 6.01], dtype=dtype, requires_grad=True)
    values = basis(distance)
    (first,) = torch.autograd.grad((values.flatten(1).sum(1) ** 2).sum(), distance, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), distance)
    for of_distance in (values, first, second):
        assert torch.isfinite(of_distance).all()
    assert second[-1] == 0


@pytest.mark.parametrize("name", RADIAL)
@pytest.mark.parametrize("distance", [0.1, 1.2, 3.0])
def test_first_derivatives_of_every_radial_basis_are_those_of_differences(name: str, distance: float) -> None:
    basis, step = radial_basis(name, "polynomial").double(), 1e-5
    at = torch.tensor([distance], dtype=torch.float64)
    _, derivative = torch.autograd.functional.jvp(basis, at, torch.ones_like(at))
    difference = (basis(at + step) - basis(at - step)) / (2 * step)
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-6)


POLAR = torch.linspace(0, math.pi, 23, dtype=torch.float64)
"""Angles."""


def test_circular_harmonics_are_those_of_scipy() -> None:
    z = POLAR.cos()
    values = circular_harmonics(z, 7)
    for degree in range(7):
        expected = math.sqrt((2 * degree + 1) / (4 * math.pi)) * special.eval_legendre(degree, z.numpy())
        torch.testing.assert_close(values[:, degree], torch.from_numpy(expected), rtol=0, atol=1e-13)


def test_polar_harmonics_are_those_of_scipy() -> None:
    """Without the Condon-Shortley sign, which scipy has; orders 0, 1, ..., l, -l, ..., -1 (gemnet.md 2.4)."""
    values = polar_harmonics(POLAR.cos(), POLAR.sin(), 7)
    column = 0
    for degree in range(7):
        orders = [*range(degree + 1), *range(-degree, 0)]
        assert released_orders(degree) == orders
        for m in map(abs, orders):
            ratio = math.factorial(degree - m) / math.factorial(degree + m)
            norm = math.sqrt((2 if m else 1) * (2 * degree + 1) / (4 * math.pi) * ratio)
            expected = norm * (-1) ** m * special.lpmv(m, degree, POLAR.cos().numpy())
            torch.testing.assert_close(values[:, column], torch.from_numpy(expected), rtol=0, atol=1e-12)
            assert degree_of_harmonics(7)[column] == degree
            column += 1
    assert column == values.shape[1]


def test_polar_harmonics_with_their_azimuths_are_orthonormal_on_the_sphere() -> None:
    z, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(12))
    azimuth = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    orders = [m for degree in range(5) for m in released_orders(degree)]
    around = torch.stack(
        [(m * azimuth).cos() if m >= 0 else (-m * azimuth).sin() for m in orders], dim=1
    )  # [16, 25]
    values = polar_harmonics(z, (1 - z * z).sqrt(), 5)[:, None] * around[None]  # [12, 16, 25]
    overlaps = torch.einsum("zas,zat,z->st", values, values, weights) * 2 * math.pi / 16
    torch.testing.assert_close(overlaps, torch.eye(25, dtype=torch.float64), rtol=0, atol=1e-12)


def random_directions(n: int) -> torch.Tensor:
    vectors = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_products_of_scaled_harmonics_are_the_circular_harmonics_of_the_angle() -> None:
    u, v = random_directions(50), random_directions(51)[1:]
    z = (u * v).sum(1)
    legendre = [torch.ones_like(z), z]
    for degree in range(2, 7):
        legendre.append(((2 * degree - 1) * z * legendre[-1] - (degree - 1) * legendre[-2]) / degree)
    product = scaled_harmonics(u, 7) * scaled_harmonics(v, 7)
    for degree in range(7):
        summed = product[:, degree**2 : (degree + 1) ** 2].sum(1)
        expected = math.sqrt((2 * degree + 1) / (4 * math.pi)) * legendre[degree]
        torch.testing.assert_close(summed, expected, rtol=0, atol=1e-12)


def test_the_product_of_a_direction_with_itself_is_the_excluded_constant() -> None:
    squared = scaled_harmonics(random_directions(20), 7).square()
    for degree, constant in enumerate(self_product(7)):
        columns = squared[:, degree**2 : (degree + 1) ** 2].sum(1)
        torch.testing.assert_close(columns, torch.full_like(columns, constant), rtol=1e-12, atol=0)


@pytest.mark.parametrize("pole", [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
def test_harmonics_have_finite_second_derivatives_at_the_poles(pole: list[float]) -> None:
    direction = torch.tensor([pole], dtype=torch.float64, requires_grad=True)
    weights = torch.arange(1.0, 50.0, dtype=torch.float64)
    (first,) = torch.autograd.grad(
        (scaled_harmonics(direction, 7) * weights).sum(), direction, create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), direction)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


def test_in_covalent_radii_bonds_of_all_elements_look_alike() -> None:
    basis = RadialBasis(RadialBasisConfig(n_radial=16, unit="covalent_radii"), cutoff=50.0)
    short, long = torch.tensor([0.9], dtype=torch.float64), torch.tensor([2.7], dtype=torch.float64)
    plain = RadialBasis(RadialBasisConfig(n_radial=16), cutoff=50.0)
    envelope = [polynomial_envelope(d / 50.0, 5) for d in (short, long)]
    of_short = basis(short, torch.tensor([0.8])) / envelope[0]
    of_long = basis(long, torch.tensor([2.4])) / envelope[1]
    torch.testing.assert_close(of_short, of_long)
    assert (plain(short) / envelope[0] - plain(long) / envelope[1]).abs().max() > 0.01
