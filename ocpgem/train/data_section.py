"""The part of a configuration that says which records of which data sets are used, and as what."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ocpgem.config import Contradiction, Section


class SubsetSection(Section):
    """Which records of a data set are used; exactly one of `first`, `fraction` and `indices`."""

    first: int | None = Field(None, ge=1, description="the first records")
    fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="this share of the records, chosen at random; a larger one holds the smaller",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the random choice of `fraction`")
    indices: str | None = Field(
        None, description="file with the numbers of the records, from 0 (text or .npy)"
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """There is one rule."""
        rules = ("first", "fraction", "indices")
        if sum(getattr(self, rule) is not None for rule in rules) != 1:
            yield rules, "a subset needs exactly one of first, fraction and indices"
        if self.seed and self.fraction is None:
            yield ("seed", "fraction"), "seed belongs to fraction, which is not given"


class DataSetSection(Section):
    """A data set, which part of it is used, how often, and what its energies are."""

    path: str
    weight: float = Field(
        1.0,
        gt=0,
        le=10_000,
        description="how often it is drawn relative to its size: 2 draws each record twice an epoch, 0.1 a tenth of "
        "them; must stay 1 in validation",
    )
    subset: SubsetSection | None = Field(None, description="all records if not given")
    energy: Literal["structure", "relaxed"] = Field(
        "structure",
        description="relaxed: the target is the energy of the relaxed structure (IS2RE), without forces",
    )
    add_references: str | None = Field(
        None,
        description="file of energies in eV by system (the oc20_ref.pkl of OCP, or JSON), added to those of the "
        "records: adsorption energies become total energies",
    )

    @property
    def files(self) -> list[str]:
        """Every path that this section names."""
        indices = self.subset.indices if self.subset is not None else None
        return [path for path in (self.path, indices, self.add_references) if path is not None]


class SkipSection(Section):
    """Whether records that cannot be used are left out, and what counts as such besides broken ones."""

    allow: bool = Field(
        False, description="leave out, count and list records that cannot be used; otherwise they end the run"
    )
    at_most: float = Field(
        0.1, ge=0, le=1, description="share of a data set that may be left out; more ends the run"
    )
    max_atoms: int | None = Field(None, ge=1, description="larger training records are left out")
    max_force: float | None = Field(
        None, gt=0, description="training records with a larger force on a free atom are left out, eV/A"
    )
    max_energy_per_atom: float | None = Field(
        None, gt=0, description="training records with a larger absolute energy per atom are left out, eV"
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Limits need permission."""
        for limit in ("max_atoms", "max_force", "max_energy_per_atom"):
            if getattr(self, limit) is not None and not self.allow:
                yield (limit, "allow"), f"{limit} leaves records out, which needs allow: true"


DataSetEntry = str | DataSetSection


def as_section(entry: DataSetEntry) -> DataSetSection:
    """A data set named by its path alone, as a section."""
    return DataSetSection(path=entry) if isinstance(entry, str) else entry
