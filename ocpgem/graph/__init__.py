"""Integers only, no gradient: periodic neighbour search, edge selection, symmetrisation, index structures."""
