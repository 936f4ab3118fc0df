"""An order of an epoch that is computed place by place is as random as a shuffled list."""

from collections import Counter
from itertools import permutations
from math import factorial

import numpy as np
import pytest

from ocpgem.data.permutation import permuted

PINNED = [4, 0, 9, 7, 8, 2, 6, 1, 3, 5]


def test_the_order_of_an_epoch_never_changes():
    assert permuted(np.arange(10), 10, 0, 0).tolist() == PINNED
    assert permuted(np.arange(10), 10, 0, 1).tolist() != PINNED
    assert permuted(np.arange(10), 10, 1, 0).tolist() != PINNED


@pytest.mark.parametrize("n", [3, 5])
def test_all_orders_of_a_few_records_are_equally_likely(n):
    seen = Counter(tuple(permuted(np.arange(n), n, seed, 0).tolist()) for seed in range(1500))
    expected = 1500 / factorial(n)
    chi_squared = sum((seen[order] - expected) ** 2 / expected for order in permutations(range(n)))
    freedom = factorial(n) - 1
    assert chi_squared < freedom + 4 * np.sqrt(2 * freedom)


def test_every_place_is_as_likely_to_hold_early_as_late_records():
    n, parts = 1000, 10
    counts = np.zeros((n, parts))
    for epoch in range(200):
        counts[np.arange(n), permuted(np.arange(n), n, 7, epoch) * parts // n] += 1
    freedom = n * (parts - 1)
    chi_squared = ((counts - 200 / parts) ** 2 / (200 / parts)).sum()
    assert abs(chi_squared - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_in_an_order_are_independent():
    n = 2000
    orders = [permuted(np.arange(n), n, 3, epoch) for epoch in range(50)]
    correlations = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]
    assert abs(np.mean(correlations)) < 5 / np.sqrt(50 * n)


def test_the_order_of_134_million_records_needs_no_list_of_them():
    found = permuted(np.arange(10**6, 10**6 + 50_000), 133_934_018, 0, 2)
    assert len(np.unique(found)) == 50_000
    assert 0 <= found.min() < 133_934_018 / 1000
    assert 133_934_018 * 0.999 < found.max() < 133_934_018
