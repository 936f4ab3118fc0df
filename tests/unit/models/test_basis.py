"""Bases and envelopes have the values of spec 9.y and the identities that the density form rests on."""

import math

import pytest
import torch

from ocpgem.models.gemnet.basis import (
    BernsteinRadial,
    GaussianRadial,
    RadialBasis,
    RadialBasisConfig,
    SphericalBesselRadial,
    exponential_envelope,
    polynomial_envelope,
    scaled_harmonics,
    self_product,
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


@pytest.mark.parametrize("name", ["gaussian", "spherical_bessel", "bernstein"])
@pytest.mark.parametrize("envelope", ["polynomial", "exponential"])
def test_every_radial_basis_vanishes_at_the_cutoff(name: str, envelope: str) -> None:
    config = RadialBasisConfig.model_validate({"name": name, "n_radial": 8, "envelope": {"name": envelope}})
    values = RadialBasis(config, cutoff=6.0)(torch.tensor([3.0, 6.0, 6.5]))
    assert values.shape == (3, 8)
    assert values[0].abs().max() > 0
    assert values[1:].abs().max() == 0


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
