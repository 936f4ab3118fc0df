"""Sums over listed triplets and quadruplets, term by term as the papers write them; and comparison of derivatives."""

from collections.abc import Callable

import torch
from torch import Tensor

from ocpgem.graph.topology import Topology
from ocpgem.models.gemnet.basis import circular_harmonics, polar_harmonics, released_orders
from ocpgem.models.gemnet.geometry import EdgeGeometry
from tests.edge_lists import quadruplet_members

Form = Callable[[Tensor, Tensor], Tensor]


def sum_over_triplets(
    x: Tensor, outgoing: Tensor, incoming: Tensor, out_edge: Tensor, in_edge: Tensor, n_spherical: int
) -> Tensor:
    """Sum of Y_l0(angle) x over triplets, given by their two edges; outgoing, incoming: directions of all edges.

    x: [n_incoming, channels]. Returns [n_outgoing, n_spherical, channels].
    """
    z = (outgoing[out_edge] * incoming[in_edge]).sum(1)
    terms = circular_harmonics(z, n_spherical)[:, :, None] * x[in_edge][:, None, :]
    return x.new_zeros(len(outgoing), n_spherical, x.shape[1]).index_add(0, out_edge, terms)


def sum_over_quadruplets(
    x: Tensor, main: EdgeGeometry, middle: EdgeGeometry, topology: Topology, n_spherical: int, two_angle: str
) -> Tensor:
    """Sum of the two-angle basis times x over quadruplets d -> b -> a <- c (gemnet.md 1.12, 2.4, 2.5).

    x: [n_inner, channels], of the rows of the table of pairs (d -> b, b -> a). Returns [n_edges, n_spherical^2,
    channels].
    """
    assert topology.quadruplets is not None
    inner = topology.quadruplets.inner
    to_a, via, to_b = torch.from_numpy(quadruplet_members(topology)).T
    row_of = {
        pair: row
        for row, pair in enumerate(zip(inner.middle_edge.tolist(), inner.main_edge.tolist(), strict=True))
    }
    pairs = zip(via.tolist(), to_b.tolist(), strict=True)
    rows = torch.tensor([row_of[pair] for pair in pairs], dtype=torch.int64)
    values = two_angle_values(
        main.direction[to_a], middle.direction[via], main.direction[to_b], n_spherical, two_angle
    )
    terms = values[:, :, None] * x[rows][:, None, :]
    n_edges = len(main.direction)
    return x.new_zeros(n_edges, values.shape[1], x.shape[1]).index_add(0, to_a, terms)


def two_angle_values(
    from_c: Tensor, from_b: Tensor, from_d: Tensor, n_spherical: int, two_angle: str
) -> Tensor:
    """[n, n_spherical^2] for unit vectors c -> a, b -> a, d -> b; theta is a right angle where three atoms align."""
    z = (from_c * from_b).sum(-1)
    on_a, on_b = torch.linalg.cross(from_c, from_b), torch.linalg.cross(from_d, from_b)
    aligned = (on_a.norm(dim=-1) < 1e-10) | (on_b.norm(dim=-1) < 1e-10)
    some = torch.tensor([[1.0, 0, 0]], dtype=z.dtype), torch.tensor([[0, 1.0, 0]], dtype=z.dtype)
    on_a = torch.where(aligned[:, None], some[0], on_a)
    on_b = torch.where(aligned[:, None], some[1], on_b)
    lengths = on_a.norm(dim=-1) * on_b.norm(dim=-1)
    cosine = (on_a * on_b).sum(-1) / lengths
    if two_angle == "legendre_outer":
        of_z, of_theta = circular_harmonics(z, n_spherical), circular_harmonics(cosine, n_spherical)
        return (of_z[:, :, None] * of_theta[:, None, :]).flatten(1)
    # The released rule (gemnet.md 2.5): atan2(max(|x x y|, 1e-9), x . y), written so that no gradient is infinite.
    square = torch.linalg.cross(on_a, on_b).square().sum(dim=-1)
    planar = square < 1e-18
    sine = torch.where(planar, 1e-9, torch.where(planar, 1.0, square).sqrt())
    theta = torch.atan2(sine, (on_a * on_b).sum(-1))
    orders = [m for degree in range(n_spherical) for m in released_orders(degree)]
    azimuthal = torch.stack([(m * theta).cos() if m >= 0 else (-m * theta).sin() for m in orders], dim=1)
    straight = torch.linalg.cross(from_c, from_b).square().sum(-1)
    polar_sine = torch.where(straight < 1e-20, torch.zeros_like(z), straight.clamp_min(1e-20).sqrt())
    return polar_harmonics(z, polar_sine, n_spherical) * azimuthal


def assert_same_derivatives(one: Form, other: Form, x: Tensor, geometry: Tensor) -> None:
    """Both forms have the same gradient, and the same gradient of its square, in x and the geometry."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(one(x, geometry).shape, dtype=x.dtype, generator=generator)
    derivatives: list[list[Tensor]] = []
    for form in (one, other):
        loss = (form(x, geometry).tanh() * weights).sum()
        first = torch.autograd.grad(loss, (x, geometry), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, geometry))
        derivatives.append([*first, *second])
    for of_one, of_other in zip(*derivatives, strict=True):
        assert torch.isfinite(of_one).all()
        scale = float(of_other.detach().abs().max())
        torch.testing.assert_close(of_one, of_other, rtol=0, atol=1e-9 * scale)
