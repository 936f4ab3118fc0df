"""The density form equals the explicit sum over triplets, in value, gradient and second gradient."""

import torch
from torch import Tensor

from ocpgem.graph.topology import EdgeSet, GraphSpec
from ocpgem.models.gemnet.basis import scaled_harmonics
from ocpgem.models.gemnet.edge_ops import pad_by_target, unpad
from ocpgem.models.gemnet.geometry import edge_geometry
from ocpgem.models.gemnet.triplets import angular_sum
from tests.explicit_sums import assert_same_derivatives, sum_over_triplets
from tests.structures import random_slabs, topology_of

N_SPHERICAL = 7


def explicit_sum(x: Tensor, direction: Tensor, edges: EdgeSet) -> Tensor:
    """Sum over the listed triplets (gemnet.md 1.11 and 3.5): [n_edges, n_spherical, channels]."""
    target = edges.edge_index[1]
    out_edge, in_edge = torch.nonzero(target[:, None] == target[None, :], as_tuple=True)
    other = out_edge != in_edge
    return sum_over_triplets(x, direction, direction, out_edge[other], in_edge[other], N_SPHERICAL)


def density_sum(x: Tensor, direction: Tensor, edges: EdgeSet) -> Tensor:
    harmonics = pad_by_target(scaled_harmonics(direction, N_SPHERICAL), edges)
    return unpad(angular_sum(pad_by_target(x, edges), harmonics, N_SPHERICAL), edges.slot)


def case() -> tuple[Tensor, Tensor, EdgeSet]:
    batch = random_slabs((9, 2, 5))
    topology = topology_of(batch, GraphSpec(6.5, 1000))
    edges = topology.main
    direction = edge_geometry(batch.pos, batch.cell, topology.batch, edges).direction
    x = torch.randn(edges.n_edges, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x.requires_grad_(), direction.requires_grad_(), edges


def test_density_form_equals_the_explicit_sum() -> None:
    x, direction, edges = case()
    assert edges.n_edges > 100
    torch.testing.assert_close(
        density_sum(x, direction, edges), explicit_sum(x, direction, edges), rtol=1e-12, atol=1e-12
    )


def test_gradients_and_second_gradients_of_both_forms_agree() -> None:
    x, direction, edges = case()

    def of_unit_vectors(form):  # the constant in place of the excluded term holds for unit vectors only
        return lambda x, vector: form(x, vector / vector.norm(dim=1, keepdim=True), edges)

    assert_same_derivatives(of_unit_vectors(density_sum), of_unit_vectors(explicit_sum), x, direction)


def test_no_tensor_of_the_size_of_the_triplets_exists() -> None:
    x, direction, edges = case()
    degree = edges.edge_ptr.diff()
    n_triplets = int((degree * (degree - 1)).sum())
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        density_sum(x, direction, edges).sum().backward()
    # The largest is the padded [n_atoms, max_degree, 49]; the padding is bounded by the largest degree.
    assert 0 < largest <= 49 * len(degree) * edges.max_degree
    assert n_triplets * N_SPHERICAL > largest
