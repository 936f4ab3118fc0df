"""What the variants of GemNet are in their published sizes, told without building a tensor of them."""

from dataclasses import dataclass
from typing import get_args

import torch

from ocpgem.models.gemnet.config import AtomEdgeConfig, GemNetConfig, GraphLimit, Variant
from ocpgem.models.gemnet.model import GemNet
from ocpgem.models.potential import n_parameters


@dataclass(frozen=True)
class PathFacts:
    """One way in which messages travel, and the graph that it uses."""

    name: str
    cutoff: float
    """A."""
    max_neighbors: int
    """0: all within the cutoff."""


@dataclass(frozen=True)
class VariantFacts:
    """A variant by its defaults."""

    variant: str
    n_parameters: int
    forces: str
    """Its default: direct or gradient."""
    paths: list[PathFacts]


def describe_variants() -> list[VariantFacts]:
    """All variants, in the order of the configuration."""
    described = []
    for variant in get_args(Variant):
        config = GemNetConfig.model_validate({"variant": variant})
        with torch.device("meta"):
            size = n_parameters(GemNet(config))
        described.append(VariantFacts(variant, size, config.forces, _paths(config)))
    return described


def _paths(config: GemNetConfig) -> list[PathFacts]:
    between: AtomEdgeConfig | None = config.atom_edge
    graphs: dict[str, GraphLimit | None] = {
        "triplets": config.neighbors,
        "quadruplets": config.quadruplets,
        "atom to edge": between if between is not None and between.to_edges else None,
        "edge to atom": between if between is not None and between.to_atoms else None,
        "atom to atom": config.atom_atom,
    }
    return [
        PathFacts(name, graph.cutoff, graph.max_neighbors)
        for name, graph in graphs.items()
        if graph is not None
    ]
