"""What a system costs in memory: the tensors that its forward pass keeps for the gradient."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocpgem.data.cost import Cost, fit_cost
from ocpgem.data.dataset import Dataset
from ocpgem.data.loader import Recipe
from ocpgem.errors import DataError
from ocpgem.models.potential import Potential

SAMPLE = 12


def fit_memory_cost(potential: Potential, recipe: Recipe) -> Cost:
    """Bytes that are kept for the gradient of a system, from its atoms and stored edges.

    Fitted to single systems, from the smallest to the largest of 500 spread over the data set; those that cannot be
    used are left out. Parameters, gradients and the optimiser's state are not in it. Raises DataError if none can be.
    """
    used, kept = [], []
    for index in _small_to_large(recipe.dataset):
        try:
            batch, topology = recipe.prepare(np.array([index]))
        except DataError as error:
            failure = error
            continue
        used.append(index)
        kept.append(kept_for_gradient(potential, batch, topology))
    if not used:
        raise DataError(f"{recipe.dataset.path}: the memory of no system could be measured ({failure})")
    return fit_cost("bytes", recipe.dataset.rows(np.array(used)), np.array(kept, dtype=np.float64))


def kept_for_gradient(potential: Potential, batch: Any, topology: Any) -> int:
    """Bytes of the tensors, each counted once, that a forward pass in training keeps beside the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in potential.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    was_training = potential.training
    potential.train()
    device = next(potential.parameters()).device
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        potential(batch.to(device), topology.to(device))
    potential.train(was_training)
    return sum(kept.values())


def _small_to_large(dataset: Dataset) -> list[int]:
    """Some records whose numbers of stored edges are spread evenly between the extremes of 500."""
    places = np.unique(np.linspace(0, len(dataset) - 1, min(500, len(dataset))).astype(np.int64))
    ordered = places[np.argsort(dataset.rows(places)["n_edges"], kind="stable")]
    chosen = np.unique(np.linspace(0, len(ordered) - 1, min(SAMPLE, len(ordered))).astype(np.int64))
    found: list[int] = ordered[chosen].tolist()
    return found
