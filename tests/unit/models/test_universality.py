"""The example tells exactly those structures apart that it says, and its structures do differ."""

import itertools

import pytest
import torch
from torch import Tensor

from examples.universality import (
    APART,
    DISTANCE_ONLY,
    PAIRS,
    SAME,
    WITH_QUADRUPLETS,
    Pair,
    gemnet,
    models_for,
    relative_difference,
)

each_pair = pytest.mark.parametrize(
    "pair", PAIRS, ids=[f"{pair.name} {pair.cutoff} {pair.middle_cutoff or ''}" for pair in PAIRS]
)


def triangles(pos: Tensor) -> Tensor:
    """The side lengths of all triangles of three atoms, sorted: the same for mirror images."""
    distance = torch.cdist(pos, pos)
    sides = [
        sorted(round(float(side), 6) for side in (distance[i, j], distance[i, k], distance[j, k]))
        for i, j, k in itertools.combinations(range(len(pos)), 3)
    ]
    return torch.tensor(sorted(sides))


@each_pair
def test_structures_of_a_pair_differ_unless_they_are_mirror_images(pair: Pair) -> None:
    difference = (triangles(pair.first) - triangles(pair.second)).abs().max()
    assert (difference < 1e-6) == (pair.name == "mirror images")


@each_pair
def test_models_tell_apart_exactly_what_the_example_says(pair: Pair) -> None:
    differences = {name: relative_difference(model, pair) for name, model in models_for(pair).items()}
    assert {name for name, difference in differences.items() if difference > APART} == set(pair.apart)
    assert all(difference < SAME for name, difference in differences.items() if name not in pair.apart)


def test_every_level_of_the_hierarchy_is_shown() -> None:
    """Distances < triplets < quadruplets, each separating a pair that the one before confuses."""
    assert all(DISTANCE_ONLY not in pair.apart for pair in PAIRS)
    assert any("gemnet_T" in pair.apart for pair in PAIRS)
    assert any("gemnet_T" not in pair.apart and set(WITH_QUADRUPLETS) <= set(pair.apart) for pair in PAIRS)


@pytest.mark.parametrize("pair", [p for p in PAIRS if set(p.apart) == set(WITH_QUADRUPLETS)])
@pytest.mark.parametrize("variant", ["gemnet_OC", "gemnet_OC_large"])
def test_without_quadruplets_the_other_paths_of_oc_separate_no_more_than_triplets(
    pair: Pair, variant: str
) -> None:
    assert relative_difference(gemnet(variant, pair, quadruplets=None), pair) < SAME
