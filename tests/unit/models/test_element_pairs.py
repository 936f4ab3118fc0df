"""Forces on atoms among neighbours that training never showed beside them."""

import itertools
from pathlib import Path

import pytest
import torch

from ocpgem.checkpoint import load_potential, save_potential
from ocpgem.config import parse_config
from ocpgem.errors import ConfigError
from ocpgem.models.gemnet.config import GemNetConfig
from tests.structures import random_slabs, small_potential, topology_of


def test_a_force_is_multiplied_by_the_share_of_neighbours_in_known_pairs() -> None:
    potential = small_potential("gemnet_dT", unseen_pairs="damp")
    pairs = potential.model.element_pairs
    assert pairs is not None
    batch = random_slabs()
    topology = topology_of(batch, potential.graph_spec)
    untouched = potential(batch, topology).forces
    numbers = batch.atomic_numbers
    elements = numbers.unique().tolist()
    known = set(itertools.combinations_with_replacement(elements, 2)) - {(elements[0], elements[1])}
    pairs.set_known(known)
    source, target = topology.main.edge_index
    share = torch.ones(len(numbers))
    for atom in range(len(numbers)):
        around = numbers[source[target == atom]].tolist()
        own = int(numbers[atom])
        if around:
            share[atom] = sum(tuple(sorted((own, other))) in known for other in around) / len(around)
    assert 0 < float(share.min()) < 1
    assert float(share.max()) == 1
    expected = untouched * share.unsqueeze(1).to(untouched.dtype)
    torch.testing.assert_close(potential(batch, topology).forces, expected)


def test_the_known_pairs_are_part_of_a_model_file(tmp_path: Path) -> None:
    potential = small_potential("gemnet_dT", unseen_pairs="damp").float()
    assert potential.model.element_pairs is not None
    assert bool(potential.model.element_pairs.known.all()), "a new model damps nothing"
    potential.model.element_pairs.set_known([(1, 29), (29, 29)])
    save_potential(potential, tmp_path / "model.pt")
    loaded = load_potential(tmp_path / "model.pt").model.element_pairs
    assert loaded is not None
    assert loaded.known.nonzero().tolist() == [[1, 29], [29, 1], [29, 29]]


@pytest.mark.parametrize("variant", ["gemnet_T", "gemnet_Q"])
def test_gradient_forces_cannot_be_damped(variant: str) -> None:
    with pytest.raises(ConfigError, match="needs direct forces"):
        parse_config(f"variant: {variant}\nunseen_pairs: damp", GemNetConfig, "here")
