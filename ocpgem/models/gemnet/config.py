"""What a GemNet is made of: sizes, bases, cutoffs, paths and heads, checked when the configuration is read."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from ocpgem.config import Contradiction, Section
from ocpgem.errors import RequestError
from ocpgem.graph.spec import GraphSpec, Limit
from ocpgem.models.gemnet.basis import AngularBasisConfig, RadialBasisConfig

Variant = Literal[
    "gemnet_T", "gemnet_dT", "gemnet_Q", "gemnet_dQ", "gemnet_XL", "gemnet_OC", "gemnet_OC_large"
]
Forces = Literal["direct", "direct_coupled", "gradient", "none"]


class GraphLimit(Section):
    """Which pairs of atoms are the edges of one graph."""

    cutoff: float = Field(6.0, gt=0, le=50, description="A")
    max_neighbors: int = Field(50, ge=0, le=100_000, description="nearest neighbours kept per atom; 0: all")


class NeighborConfig(GraphLimit):
    """The main graph, and how every graph is cut to its number of neighbours."""

    strict: bool = Field(
        True, description="keep exactly max_neighbors; else all up to 0.01 A beyond the next one"
    )
    truncation: Literal["released", "symmetric"] = Field(
        "released",
        description="released: of an edge kept by one end only, that from the lower to the higher index survives; "
        "symmetric: both directions survive, whatever the numbering of the atoms",
    )


class TripletConfig(Section):
    """Sizes of the interaction over triplets b -> a <- c."""

    in_dim: int = Field(64, ge=1, description="channels of the edges b -> a that are summed")
    out_dim: int = Field(64, ge=1, description="channels after the bilinear layer")
    circular_dim: int = Field(
        16, ge=1, description="channels of the projected radial part of the circular basis"
    )


class QuadrupletConfig(GraphLimit):
    """Sizes of the interaction over quadruplets d -> b -> a <- c, and the graph of the edges b -> a."""

    in_dim: int = Field(32, ge=1, description="channels of the edges d -> b that are summed")
    out_dim: int = Field(32, ge=1, description="channels after the bilinear layer")
    circular_dim: int = Field(16, ge=1, description="channels of the basis of the edges b -> a")
    spherical_dim: int = Field(32, ge=1, description="channels of the basis of the edges c -> a")
    tags: list[int] | None = Field(
        None, description="edges b -> a need an atom with one of these tags; null: all"
    )


class AtomEdgeConfig(TripletConfig, GraphLimit):
    """Sizes of the triplets that start or end at atoms instead of edges, and the graph that joins them."""

    to_edges: bool = Field(True, description="messages from atoms b to edges c -> a")
    to_atoms: bool = Field(True, description="messages from edges b -> a to atoms")


class AtomAtomConfig(GraphLimit):
    """Sizes of the interaction between atoms, and its graph."""

    in_dim: int = Field(64, ge=1)
    out_dim: int = Field(64, ge=1)


class LayerConfig(Section):
    """How many residual blocks stand where."""

    before_skip: int = Field(1, ge=0, le=20)
    after_skip: int = Field(2, ge=0, le=20)
    concat: int = Field(1, ge=0, le=20, description="after the edge update from the new atom embeddings")
    atom: int = Field(3, ge=0, le=20, description="in atom updates and output heads")
    atom_embedding: int = Field(0, ge=0, le=20, description="on the atom embeddings, before each atom update")
    leading_dense: Literal["always", "if_widths_differ"] = Field(
        "always", description="whether a dense layer stands before the residual blocks of `atom`"
    )


class GlobalHeadConfig(Section):
    """Output heads that concatenate what the blocks give, instead of adding it up."""

    after_atom: int = Field(
        3, ge=0, le=20, description="residual blocks after the atom embedding is added; 0: it is not added"
    )
    layers: int = Field(2, ge=0, le=20, description="residual blocks after the concatenation")


_ORIGINAL: dict[str, Any] = {
    "n_blocks": 4,
    "atom_dim": 128,
    "edge_dim": 128,
    "n_elements": 93,
    "radial_basis": {"name": "spherical_bessel", "n_radial": 6},
    "angular_basis": {"radial": "bessel_by_degree", "two_angle": "spherical_harmonics"},
    "neighbors": {"cutoff": 5.0, "max_neighbors": 0},
    "quadruplets": {"cutoff": 10.0, "max_neighbors": 0},
    "layers": {"after_skip": 1, "atom": 2},
    "force_radial": "before_layers",
}
_OC: dict[str, Any] = {
    "n_blocks": 4,
    "atom_dim": 256,
    "neighbors": {"cutoff": 12.0, "max_neighbors": 30},
    "quadruplets": {"cutoff": 12.0, "max_neighbors": 8, "tags": [1, 2]},
    "atom_edge": {"cutoff": 12.0, "max_neighbors": 20},
    "atom_atom": {"cutoff": 12.0, "max_neighbors": 1000},
    "layers": {"before_skip": 2, "after_skip": 2, "atom_embedding": 2, "leading_dense": "if_widths_differ"},
    "global_head": {},
    "forces": "direct",
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemnet_T": {"forces": "gradient"},
    "gemnet_dT": {"forces": "direct"},
    "gemnet_Q": {**_ORIGINAL, "forces": "gradient"},
    "gemnet_dQ": {**_ORIGINAL, "forces": "direct"},
    "gemnet_XL": {
        "n_blocks": 6,
        "atom_dim": 128,
        "edge_dim": 1536,
        "triplets": {"in_dim": 384, "out_dim": 192},
        "forces": "direct",
    },
    "gemnet_OC": _OC,
    "gemnet_OC_large": {
        **_OC,
        "n_blocks": 6,
        "edge_dim": 1024,
        "radial_dim": 32,
        "triplets": {"in_dim": 64, "out_dim": 128},
        "quadruplets": {**_OC["quadruplets"], "in_dim": 64, "spherical_dim": 64},
        "atom_edge": {**_OC["atom_edge"], "out_dim": 128},
        "layers": {**_OC["layers"], "concat": 4},
    },
}
"""The published sizes of each variant, where they differ from the defaults of `GemNetConfig`."""

_FORCES: dict[str, tuple[Forces, ...]] = {
    "gemnet_T": ("gradient", "none"),
    "gemnet_dT": ("direct", "direct_coupled"),
    "gemnet_Q": ("gradient", "none"),
    "gemnet_dQ": ("direct", "direct_coupled"),
    "gemnet_XL": ("direct", "direct_coupled", "gradient", "none"),
    "gemnet_OC": ("direct", "direct_coupled", "gradient", "none"),
    "gemnet_OC_large": ("direct", "direct_coupled", "gradient", "none"),
}
"""The ways of getting forces that each variant allows."""


class GemNetConfig(Section):
    """One GemNet; a variant is a choice of these fields, and gives the defaults of those that are left out."""

    variant: Variant = "gemnet_dT"
    forces: Forces = Field(
        "direct", description="direct_coupled: the two directions of an edge get opposite forces"
    )
    n_blocks: int = Field(3, ge=1, le=50)
    atom_dim: int = Field(512, ge=1)
    edge_dim: int = Field(512, ge=1)
    radial_dim: int = Field(16, ge=1, description="channels of the projected radial basis")
    n_spherical: int = Field(7, ge=1, le=10, description="degrees l of the angular basis")
    radial_basis: RadialBasisConfig = RadialBasisConfig()
    angular_basis: AngularBasisConfig = AngularBasisConfig()
    scaled_bases: bool = Field(False, description="bases have fitted scale factors, too")
    neighbors: NeighborConfig = NeighborConfig()
    triplets: TripletConfig = TripletConfig()
    quadruplets: QuadrupletConfig | None = None
    atom_edge: AtomEdgeConfig | None = None
    atom_atom: AtomAtomConfig | None = None
    layers: LayerConfig = LayerConfig()
    global_head: GlobalHeadConfig | None = Field(
        None, description="null: the outputs of the blocks are added up"
    )
    force_radial: Literal["after_layers", "before_layers"] = Field(
        "after_layers",
        description="where direct-force heads multiply the radial basis: after their layers, by their own map, or "
        "before them, by that of the energy head",
    )
    extensive: bool = Field(
        True, description="the energy is the sum (true) or the mean of the atoms' energies"
    )
    output_init: Literal["he_orthogonal", "zeros"] = "he_orthogonal"
    shared_embedding: bool = Field(
        False, description="elements differ by what they add to one vector, which unseen elements keep"
    )
    unseen_pairs: Literal["trust", "damp"] = Field(
        "trust",
        description="damp: the direct force on an atom is multiplied by the share of its neighbours whose element "
        "occurs together with its own in a system of the training data",
    )
    n_elements: int = Field(83, ge=1, le=118, description="largest atomic number with an embedding")

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_variant(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        variant = values.get("variant", "gemnet_dT")
        return _laid_over(DEFAULTS.get(variant, {}) if isinstance(variant, str) else {}, values)

    def contradictions(self) -> Iterator[Contradiction]:
        """The parts fit together."""
        yield from self._of_the_variant()
        if self.atom_edge is not None and not (self.atom_edge.to_edges or self.atom_edge.to_atoms):
            yield (
                ("atom_edge.to_edges", "atom_edge.to_atoms"),
                "atom_edge has neither to_edges nor to_atoms; write atom_edge: null instead",
            )
        if self.unseen_pairs == "damp" and not self.has_direct_forces:
            yield (
                ("unseen_pairs", "forces", "variant"),
                f"unseen_pairs: damp needs direct forces, but forces is {self.forces!r}: "
                "damped forces are no gradient of an energy",
            )
        if self.force_radial == "before_layers" and self.global_head is not None:
            yield (
                ("force_radial", "global_head", "variant"),
                "force_radial: before_layers cannot be combined with global_head",
            )
        angular = self.angular_basis
        if (
            angular.radial == "bessel_by_degree"
            and angular.two_angle == "legendre_outer"
            and self.quadruplets
        ):
            yield (
                ("angular_basis.radial", "angular_basis.two_angle", "quadruplets", "variant"),
                "angular_basis.radial: bessel_by_degree has functions of one degree l each, "
                "which angular_basis.two_angle: legendre_outer has not; use spherical_harmonics",
            )
        try:
            _ = self.graph_spec
        except RequestError as error:
            graphs = ("neighbors", "quadruplets", "atom_edge", "atom_atom")
            limits = [f"{graph}.{limit}" for graph in graphs for limit in ("cutoff", "max_neighbors")]
            yield (*limits, "quadruplets.tags", "variant"), str(error)

    def _of_the_variant(self) -> Iterator[Contradiction]:
        allowed = _FORCES[self.variant]
        if self.forces not in allowed:
            yield (
                ("forces", "variant"),
                f"forces is {self.forces!r}, but {self.variant} allows only {' or '.join(allowed)}",
            )
        if self.variant.endswith("Q") and self.quadruplets is None:
            yield (
                ("quadruplets", "variant"),
                f"{self.variant} needs quadruplets; without them it is gemnet_T or gemnet_dT",
            )
        if self.variant.endswith("T") and self.quadruplets is not None:
            yield (
                ("quadruplets", "variant"),
                f"{self.variant} has no quadruplets; with them it is gemnet_Q or gemnet_dQ",
            )

    @property
    def graph_spec(self) -> GraphSpec:
        """The graphs that a model of this configuration reads."""

        def limit(graph: GraphLimit | None) -> Limit | None:
            return None if graph is None else Limit(graph.cutoff, graph.max_neighbors)

        quadruplets, neighbors = self.quadruplets, self.neighbors
        tags = None if quadruplets is None or quadruplets.tags is None else tuple(quadruplets.tags)
        return GraphSpec(
            neighbors.cutoff,
            neighbors.max_neighbors,
            strict=neighbors.strict,
            truncation=neighbors.truncation,
            self_images="positive" if self.variant.startswith("gemnet_OC") else "negative",
            quadruplet=limit(quadruplets),
            quadruplet_tags=tags,
            atom_edge=limit(self.atom_edge),
            atom_atom=limit(self.atom_atom),
        )

    @property
    def has_direct_forces(self) -> bool:
        """Whether forces come from output heads of their own."""
        return self.forces in ("direct", "direct_coupled")


def _laid_over(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what they leave out taken from `defaults`; maps merge."""
    merged = dict(defaults)
    for key, value in values.items():
        base = merged.get(key)
        merged[key] = _laid_over(base, value) if isinstance(base, dict) and isinstance(value, dict) else value
    return merged
