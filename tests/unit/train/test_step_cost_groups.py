"""A rank of a graph group keeps its share of the activations and sends less than the released scheme."""

from typing import Any

import numpy as np
import pytest

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe
from ocpgem.models.potential import Normalization
from ocpgem.train.step_cost import step_cost
from tests.tiny_runs import random_systems, tiny_config

# Narrow GemNet-XL and GemNet-OC-Large: the ratios of widths as published, where edges outweigh atoms.
NARROW: dict[str, dict[str, Any]] = {
    "gemnet_XL": {"n_blocks": 1, "atom_dim": 8, "edge_dim": 96, "triplets": {"in_dim": 24, "out_dim": 12}},
    "gemnet_OC_large": {"n_blocks": 1, "atom_dim": 16, "edge_dim": 64},
}


@pytest.mark.slow  # five steps with fake tensors of each model
@pytest.mark.parametrize("variant", NARROW)
def test_a_rank_keeps_at_most_its_share_and_a_tenth(variant: str) -> None:
    size = 4
    config = tiny_config(model=NARROW[variant] | {"variant": variant})
    systems = InMemoryDataset(list(random_systems(16)))
    recipe = Recipe(systems, config.model.graph_spec, config.model.n_elements)
    batch, topology = recipe.prepare(np.arange(16))
    alone = step_cost(config, batch, topology, Normalization())
    divided = config.model_copy(update={"parallel": config.parallel.model_copy(update={"graph": size})})
    ranks = [step_cost(divided, batch, topology, Normalization(), rank) for rank in range(size)]
    assert alone.sent_bytes == alone.sent_messages == 0
    assert len({rank.sent_messages for rank in ranks}) == 1
    assert ranks[0].sent_messages % (size - 1) == 0
    assert max(rank.kept_bytes for rank in ranks) <= 1.1 / size * alone.kept_bytes
    gathered = 2 * config.model.n_blocks * topology.main.n_edges * config.model.edge_dim * 4
    assert 0 < max(rank.sent_bytes for rank in ranks) < gathered * (size - 1) / size
