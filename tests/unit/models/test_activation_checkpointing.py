"""Activations that are computed again for the gradient: the same numbers, much less memory."""

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ocpgem.data.batch import collate
from ocpgem.graph.topology import build_topology
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.live_memory import LiveMemory
from ocpgem.train.loss import GlobalCounts, loss_share
from tests.tiny_runs import TINY_MODEL, random_system, random_systems, tiny_config

WEIGHTS = tiny_config().loss
SMALL_PATHS: dict[str, Any] = {
    "atom_edge": {"in_dim": 4, "out_dim": 4, "circular_dim": 3},
    "quadruplets": {"in_dim": 3, "out_dim": 3, "circular_dim": 3, "spherical_dim": 3, "tags": None},
    "atom_atom": {"in_dim": 4, "out_dim": 4},
}


def step(potential: Potential, batch: Any, topology: Any) -> torch.Tensor:
    predictions = potential(batch, topology)
    counts = GlobalCounts(topology.n_systems, topology.n_atoms)
    return loss_share(predictions, batch, WEIGHTS, potential.normalization, counts)


@pytest.mark.parametrize("in_bf16", [False, True])
@pytest.mark.parametrize("variant", ["gemnet_dT", "gemnet_T", "gemnet_Q", "gemnet_OC"])
def test_numbers_are_unchanged(variant: str, in_bf16: bool) -> None:
    paths = SMALL_PATHS if variant == "gemnet_OC" else {}
    if variant == "gemnet_Q":
        paths = {"quadruplets": SMALL_PATHS["quadruplets"] | {"cutoff": 5.0}}
    config = GemNetConfig.model_validate(TINY_MODEL | {"variant": variant, "n_blocks": 2} | paths)
    torch.manual_seed(0)
    potential = Potential(config, Normalization()).train()
    potential.train_in_bf16 = in_bf16
    batch = collate(list(random_systems(3)))
    topology = build_topology(
        batch.pos, batch.cell, batch.pbc, batch.natoms, config.graph_spec, tags=batch.tags
    )
    found = []
    for potential.model.checkpoint_activations in (False, True):
        potential.zero_grad()
        loss = step(potential, batch, topology)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in potential.parameters())])
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))


@pytest.mark.slow  # thousands of operations on tensors without content, two passes of two published models
@pytest.mark.parametrize("variant", ["gemnet_dT", "gemnet_OC"])
def test_memory_falls_to_less_than_a_quarter_at_published_sizes(variant: str) -> None:
    # Tensors that have sizes and no content: the published model, at no cost in memory.
    rng = np.random.default_rng(0)
    systems = [random_system(rng, sid) for sid in range(24)]
    batch = collate(systems)
    config = GemNetConfig.model_validate({"variant": variant})
    topology = build_topology(
        batch.pos, batch.cell, batch.pbc, batch.natoms, config.graph_spec, tags=batch.tags
    )
    kept, peak = [], []
    with FakeTensorMode(allow_non_fake_inputs=True):
        potential = Potential(config, Normalization()).train()
        for potential.model.checkpoint_activations in (False, True):
            potential.zero_grad()
            with LiveMemory() as memory:
                loss = step(potential, batch, topology)
                kept.append(memory.now)
                loss.backward()
            peak.append(memory.peak)
            del loss
    assert kept[0] > 8 * kept[1]
    assert peak[0] > 4 * peak[1]


def test_live_memory_sees_what_lives_and_not_what_has_gone() -> None:
    with LiveMemory() as memory:
        x = torch.zeros(1000, dtype=torch.float64)
        view = x[10:]
        assert memory.now == 8000
        x.add_(1)
        y = (x + 1) * 2  # one temporary of the same size
        assert memory.now == 16_000
        assert memory.peak == 24_000
        del x
        assert memory.now == 16_000, "the view still holds its memory"
        del view, y
        assert memory.now == 0
