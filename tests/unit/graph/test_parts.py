"""Systems that a limit of neighbours leaves in parts are told, and no others."""

import itertools
import warnings

import numpy as np
import pytest

from ocpgem.graph.spec import GraphSpec, Limit
from ocpgem.graph.system_edges import system_edges


def two_clusters(gap: float) -> np.ndarray:
    """Two cubes of eight atoms, 1 A wide, on a line."""
    cube = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    return np.concatenate([cube, cube + np.array([1 + gap, 0, 0])])


def warnings_of(gap: float, **fields: object) -> list[str]:
    spec = GraphSpec(**({"cutoff": 6.0, "max_neighbors": 7} | fields))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        system_edges(two_clusters(gap), np.eye(3) * 40, (False,) * 3, spec)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("truncation", ["released", "symmetric"])
def test_a_limit_of_neighbours_that_cuts_a_system_in_two_is_told(truncation: str):
    (said,) = warnings_of(3.0, truncation=truncation)
    assert said == (
        "keeping 7 neighbours an atom leaves systems in parts that exchange no messages, though they have atoms "
        "within 6.0 A of each other; train with a larger max_neighbors"
    )


@pytest.mark.parametrize(
    ("gap", "fields"),
    [
        (3.0, {"max_neighbors": 0}),  # nothing is left out
        (7.0, {"max_neighbors": 3}),  # they are apart without the limit, too
        (3.0, {"max_neighbors": 12}),  # some are left out, not all
        (3.0, {"atom_atom": Limit(6.0, 1000)}),  # another graph joins them
    ],
)
def test_a_limit_that_cuts_nothing_is_not(gap: float, fields: dict):
    assert warnings_of(gap, **fields) == []
