"""Pseudo-random permutations that are computed place by place.

A list of the order of an epoch would take 8 bytes a system in every process, a gigabyte for the 134 million frames of
OC20.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Words = NDArray[np.uint64]
ROUNDS = 18  # with 10, orders of 5 or 6 records are visibly not all equally likely


def permuted(places: Ints, n: int, seed: int, *key: int) -> Ints:
    """Where the permutation of 0 to n - 1 that belongs to seed and key takes some places.

    A Feistel network over the digits of a number in the mixed base (rows, columns), the rows and columns of a table
    with barely more than n cells; what falls beyond n is permuted again until it does not (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002).
    """
    keys = np.random.SeedSequence(seed, spawn_key=key).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    n_rows = math.isqrt(n - 1) + 1
    n_columns = -(-n // n_rows)
    found = _network(places.astype(np.uint64), n_rows, n_columns, keys)
    while len(beyond := np.flatnonzero(found >= n)):
        found[beyond] = _network(found[beyond], n_rows, n_columns, keys)
    return found.astype(np.int64)


def _network(value: Words, n_rows: int, n_columns: int, keys: Words) -> Words:
    rows, columns = np.uint64(n_rows), np.uint64(n_columns)
    row, column = np.divmod(value, columns)
    for number, key in enumerate(keys):
        if number % 2 == 0:
            row = (row + _mixed(column, key) % rows) % rows
        else:
            column = (column + _mixed(row, key) % columns) % columns
    return row * columns + column


def _mixed(value: Words, key: np.uint64) -> Words:
    """64 bits that look random (the finaliser of SplitMix64; arithmetic modulo 2**64)."""
    bits = value * np.uint64(0x9E3779B97F4A7C15) + key
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
