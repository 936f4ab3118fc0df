"""Activations that are computed again for the gradient: the same numbers, much less memory."""

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ocpgem.data.batch import collate
from ocpgem.graph.topology import build_topology
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.layers import Frugal
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


@pytest.mark.slow  # thousands of operations on tensors without content, three passes of two published models
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
    kept, peak = {}, {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        potential = Potential(config, Normalization()).train()
        for way in ("autograd's", "frugal", "checkpointed"):
            for part in potential.modules():
                if isinstance(part, Frugal):
                    part.as_autograd = way == "autograd's"
            potential.model.checkpoint_activations = way == "checkpointed"
            potential.zero_grad()
            with LiveMemory() as memory:
                loss = step(potential, batch, topology)
                kept[way] = memory.now
                loss.backward()
            peak[way] = memory.peak
            del loss
    # Of a step that keeps what autograd keeps; ours as it is needs about half of that.
    assert kept["autograd's"] > 12 * kept["checkpointed"]
    assert peak["autograd's"] > 5 * peak["checkpointed"]
    assert kept["frugal"] > 8 * kept["checkpointed"]
    assert peak["frugal"] > 3 * peak["checkpointed"]
    assert peak["autograd's"] > 1.6 * peak["frugal"]


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
