"""Densities per atom or edge, and what is read of them: sums over angles in O(edges) (spec/density.md A)."""

import torch
from torch import Tensor

from ocpgem.kernels import angular, use_native
from ocpgem.models.gemnet.products import product, transposed_product


def density(weights: Tensor, x: Tensor) -> Tensor:
    """The sum over edges: [n, n_edges, n_functions], [n, n_edges, channels] -> [n, n_functions, channels]."""
    return angular.accumulate(weights, x) if angular.can(weights, x) else transposed_product(weights, x)


def read_degrees(weights: Tensor, density: Tensor, n_spherical: int) -> list[Tensor]:
    """Per degree l, spherical harmonics times the density: [n, n_edges, channels] each.

    weights: [n, n_edges, n_functions], density: [n, n_functions, channels], n_functions >= n_spherical^2. Up to
    2 n_spherical + 1 functions behind the harmonics are read together, as those of one more degree.
    """
    if angular.can(weights, density):
        return list(torch.unbind(angular.read(weights, density), dim=2))
    sizes = [2 * degree + 1 for degree in range(n_spherical)]
    if more := weights.shape[2] - n_spherical**2:
        sizes.append(more)
    # Split, not sliced: the gradient of a slice is a tensor of the size of the whole, and of a split one for all parts.
    return [
        product(weight, own)
        for weight, own in zip(weights.split(sizes, 2), density.split(sizes, 1), strict=True)
    ]


def read_together(weights: Tensor, density: Tensor) -> Tensor | None:
    """As `read_degrees`, [n, n_edges, n_degrees, channels]; None where compiled functions do not compute it.

    On GPUs, a constant of each degree, as what is then subtracted has, would have to be sent there.
    """
    if use_native(weights, density) and angular.can(weights, density):
        return angular.read(weights, density)
    return None
