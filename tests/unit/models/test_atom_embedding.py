"""Elements that training does not show."""

import torch

from ocpgem.models.gemnet.blocks import AtomEmbedding
from tests.structures import random_slabs, small_potential, topology_of


def test_an_element_that_is_not_told_has_the_shared_vector() -> None:
    embedding = AtomEmbedding(83, 8, shared=True)
    assert embedding.shared is not None
    vectors = embedding(torch.tensor([7, 1, 83]), hidden=torch.tensor([True, False, False]))
    torch.testing.assert_close(vectors[0], embedding.shared)
    torch.testing.assert_close(vectors[2], embedding.shared + embedding.weight[82])


def test_elements_not_shown_start_with_the_shared_vector_and_the_others_with_their_own() -> None:
    embedding = AtomEmbedding(10, 8, shared=True)
    embedding.start_from_shared([1, 8])
    assert embedding.shared is not None
    own = embedding(torch.arange(1, 11)) - embedding.shared
    assert (own.abs().sum(1) > 0).nonzero().flatten().tolist() == [0, 7]


def test_vectors_have_the_same_variance_with_and_without_a_shared_part() -> None:
    torch.manual_seed(0)
    for shared in (False, True):
        vectors = torch.stack([AtomEmbedding(3, 500, shared)(torch.tensor([2]))[0] for _ in range(20)])
        assert 0.9 < float(vectors.detach().var()) < 1.1


def test_training_on_hidden_elements_moves_the_shared_vector_only() -> None:
    potential = small_potential("gemnet_dT", shared_embedding=True)
    batch = random_slabs()
    batch.hidden = torch.ones(len(batch.pos), dtype=torch.bool)
    potential(batch, topology_of(batch, potential.graph_spec)).energy.sum().backward()
    embedding = potential.model.atom_embedding
    assert embedding.shared is not None
    assert embedding.shared.grad is not None
    assert embedding.shared.grad.abs().sum() > 0
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.abs().sum() == 0
