"""Layers and blocks of the loop implementation (loop_reference.py), from ../shared/spec/gemnet.md alone."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.parity.loop_graphs import HALF, Graph, Kwargs, Prediction, Quadruplets, Structure, envelope

# Layers and blocks (sections 3 and 4)


def activation(x: Tensor) -> Tensor:
    """3.1."""
    return torch.nn.functional.silu(x) / 0.6


def total(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums of rows with equal index."""
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


class Weights:
    """A released state dict, in float64."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = {key: value.double() for key, value in state.items()}

    def __getitem__(self, key: str) -> Tensor:
        return self.state[key]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.linear.weight"].T

    def dense(self, name: str, x: Tensor) -> Tensor:
        return activation(self.linear(name, x))

    def residuals(self, name: str, x: Tensor, count: int, first: int = 0) -> Tensor:
        """3.1."""
        for layer in range(first, first + count):
            inner = self.dense(f"{name}.{layer}.dense_mlp.0", x)
            x = (x + self.dense(f"{name}.{layer}.dense_mlp.1", inner)) * HALF
        return x

    def scale(self, name: str) -> Tensor:
        """0 means that it was never fitted and counts as 1 (3.4)."""
        factor = self[f"{name}.scale_factor"]
        return torch.where(factor == 0, 1.0, factor)

    def radial(self, name: str, basis: str, distance: Tensor, cutoff: float, kw: Kwargs, oc: bool) -> Tensor:
        """A radial basis with its envelope, [n, n_radial] (2.2, 2.4)."""
        u, n = distance / cutoff, kw["num_radial"]
        if basis == "gaussian":
            spacing = 1 / (n - 1) if oc else float(np.float32(1) / np.float32(n - 1))
            values = torch.exp(-0.5 / spacing**2 * (u[:, None] - self[f"{name}.rbf.offset"]) ** 2)
        elif basis == "spherical_bessel":
            waves = torch.sin(self[f"{name}.rbf.frequencies"] * u[:, None])
            values = math.sqrt(2 / cutoff**3) * waves / u[:, None]
        else:
            x = torch.exp(-torch.nn.functional.softplus(self[f"{name}.rbf.pregamma"]) * u)[:, None]
            k = torch.arange(n, dtype=u.dtype)
            binomials = torch.tensor([math.comb(n - 1, i) for i in range(n)], dtype=u.dtype)
            values = binomials * x**k * (1 - x) ** (n - 1 - k)
        values = values * envelope(u, kw["envelope"])[:, None]
        return values * self.scale(f"{name}.scale_rbf") if kw["scale_basis"] else values


class Blocks:
    """The layers that all released models share, on the main graph."""

    def __init__(self, weights: Weights, kw: Kwargs, main: Graph, swap: Tensor, numbers: Tensor) -> None:
        self.weights, self.kw, self.main, self.swap = weights, kw, main, swap
        self.n_atoms = len(numbers)
        self.first_atoms = weights["atom_emb.embeddings.weight"][numbers - 1]

    def concat(self, name: str, h: Tensor, x: Tensor) -> Tensor:
        """Edge embedding (3.3)."""
        both = torch.cat([h[self.main.source], h[self.main.target], x], dim=1)
        return self.weights.dense(f"{name}.dense", both)

    def messages(self, name: str, first: str, x: Tensor, radial: Tensor) -> Tensor:
        """What an interaction takes from its incoming edges (4.1)."""
        w = self.weights
        x = w.scale(f"{name}.scale_rbf") * w.dense(f"{name}.{first}", x) * w.linear(f"{name}.mlp_rbf", radial)
        return w.dense(f"{name}.down_projection", x)

    def edge_update(self, name: str, x: Tensor) -> Tensor:
        """Both directions of an edge (4.1)."""
        w = self.weights
        return (
            w.dense(f"{name}.up_projection_ca", x) + w.dense(f"{name}.up_projection_ac", x)[self.swap]
        ) * HALF

    def edges_to_atoms(self, name: str, m: Tensor, radial: Tensor, leading: bool) -> Tensor:
        """4.5."""
        w = self.weights
        summed = total(m * w.linear(f"{name}.dense_rbf", radial), self.main.target, self.n_atoms)
        x = w.scale(f"{name}.scale_sum") * summed
        if leading:
            x = w.dense(f"{name}.layers.0", x)
        return w.residuals(f"{name}.layers", x, self.kw["num_atom"], int(leading))

    def update(
        self, name: str, h: Tensor, m: Tensor, terms: list[Tensor], radial: Tensor, leading: bool
    ) -> tuple[Tensor, Tensor]:
        """The rest of an interaction block after its interactions (4.4)."""
        w, kw = self.weights, self.kw
        x = sum(terms, torch.zeros_like(m)) / math.sqrt(len(terms))
        m = (m + w.residuals(f"{name}.layers_before_skip", x, kw["num_before_skip"])) * HALF
        m = w.residuals(f"{name}.layers_after_skip", m, kw["num_after_skip"])
        h = w.residuals(f"{name}.atom_emb_layers", h, kw["num_atom_emb_layers"])
        h = (h + self.edges_to_atoms(f"{name}.atom_update", m, radial, leading)) * HALF
        x = w.residuals(f"{name}.residual_m", self.concat(f"{name}.concat_layer", h, m), kw["num_concat"])
        return h, (m + x) * HALF

    def finish(self, atom_energy: Tensor, edge_forces: Tensor | None, pos: Tensor) -> Prediction:
        """Energy of the system, and forces as the model makes them (5.2)."""
        energy = atom_energy.sum() if self.kw["extensive"] else atom_energy.mean()
        forces = None
        if pos.requires_grad:
            forces = -torch.autograd.grad(energy, pos)[0]
        elif edge_forces is not None:
            if self.kw["forces_coupled"]:
                edge_forces = (edge_forces + edge_forces[self.swap]) / 2
            forces = total(edge_forces * self.main.direction, self.main.target, self.n_atoms)
        return Prediction(energy.detach(), None if forces is None else forces.detach())


def positions(structure: Structure, kw: Kwargs) -> Tensor:
    by_gradient = kw["regress_forces"] and not kw["direct_forces"]
    return structure.pos.clone().requires_grad_(by_gradient)


def cosines(outgoing: Graph, incoming: Graph, rows: tuple[Tensor, Tensor]) -> Tensor:
    """2.5."""
    product = (outgoing.direction[rows[0]] * incoming.direction[rows[1]]).sum(dim=1)
    return product.clamp(-1, 1)


class QuadrupletValues(NamedTuple):
    rows: Quadruplets
    radial: Tensor
    """[n_edges, emb_size_rbf] of the edges d -> b."""
    inner: Tensor
    """[n_quadruplets, emb_size_cbf] of d -> b -> a."""
    angular: Tensor
    """[n_quadruplets, n_spherical^2]."""
    spherical: Tensor
    """[n_edges, emb_size_sbf, n_spherical^2] of c -> a."""
