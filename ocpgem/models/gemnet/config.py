"""What a GemNet is made of: sizes, bases, cutoffs and heads, checked when the configuration is read."""

from typing import Literal

from pydantic import Field, model_validator

from ocpgem.config import Section
from ocpgem.models.gemnet.basis import RadialBasisConfig

Forces = Literal["direct", "gradient", "none"]
FORCES_OF_VARIANT: dict[str, tuple[Forces, ...]] = {
    "gemnet_T": ("gradient", "none"),
    "gemnet_dT": ("direct",),
}
"""The ways of getting forces that each variant allows, its default first."""


class NeighborConfig(Section):
    """Which pairs of atoms are edges."""

    cutoff: float = Field(6.0, gt=0, le=50, description="A")
    max_neighbors: int = Field(50, ge=1, le=100_000, description="nearest neighbours kept per atom")


class TripletConfig(Section):
    """Sizes of the interaction over triplets b -> a <- c."""

    in_dim: int = Field(64, ge=1, description="channels of the edges b -> a that are summed")
    out_dim: int = Field(64, ge=1, description="channels after the bilinear layer")
    circular_dim: int = Field(
        16, ge=1, description="channels of the projected radial part of the circular basis"
    )


class LayerConfig(Section):
    """How many residual blocks stand where."""

    before_skip: int = Field(1, ge=0, le=20)
    after_skip: int = Field(2, ge=0, le=20)
    concat: int = Field(1, ge=0, le=20, description="after the edge update from the new atom embeddings")
    atom: int = Field(3, ge=0, le=20, description="in atom updates and output heads")


class GemNetConfig(Section):
    """One GemNet; every variant is a choice of these fields. Defaults are the released GemNet-dT for OC20."""

    variant: Literal["gemnet_T", "gemnet_dT"] = "gemnet_dT"
    forces: Forces = Field("direct", description="default: direct for d-variants, else gradient")
    n_blocks: int = Field(3, ge=1, le=50)
    atom_dim: int = Field(512, ge=1)
    edge_dim: int = Field(512, ge=1)
    radial_dim: int = Field(16, ge=1, description="channels of the projected radial basis")
    n_spherical: int = Field(7, ge=1, le=10, description="degrees l of the angular basis")
    radial_basis: RadialBasisConfig = RadialBasisConfig()
    neighbors: NeighborConfig = NeighborConfig()
    triplets: TripletConfig = TripletConfig()
    layers: LayerConfig = LayerConfig()
    extensive: bool = Field(
        True, description="the energy is the sum (true) or the mean of the atoms' energies"
    )
    output_init: Literal["he_orthogonal", "zeros"] = "he_orthogonal"
    n_elements: int = Field(83, ge=1, le=118, description="largest atomic number with an embedding")

    @model_validator(mode="before")
    @classmethod
    def _forces_follow_the_variant(cls, values: object) -> object:
        if isinstance(values, dict) and "forces" not in values:
            allowed = FORCES_OF_VARIANT.get(values.get("variant", "gemnet_dT"))
            if allowed:
                values = {**values, "forces": allowed[0]}
        return values

    @model_validator(mode="after")
    def _forces_fit_the_variant(self) -> "GemNetConfig":
        allowed = FORCES_OF_VARIANT[self.variant]
        if self.forces not in allowed:
            raise ValueError(
                f"forces is {self.forces!r}, but {self.variant} allows only {' or '.join(allowed)}"
            )
        return self
