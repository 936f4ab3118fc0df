"""The part of a configuration that says where the normalisation of the targets comes from."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ocpgem.config import Contradiction, Section
from ocpgem.models.normalization import MAX_ATOMIC_NUMBER


class ElementReferencesSection(Section):
    """Energies of elements that are fitted to the training energies, or read from a file."""

    fit: Literal["least_squares", "ridge"] | None = None
    ridge: float = Field(
        1e-3,
        gt=0,
        description="ridge: the fit minimises the mean squared error + ridge * the sum of squared energies",
    )
    file: str | None = Field(None, description=".npz (coeff), .pt (fairchem) or .json, instead of a fit")

    def contradictions(self) -> Iterator[Contradiction]:
        """They have one source."""
        if (self.fit is None) == (self.file is None):
            yield ("fit", "file"), "element_references needs either fit or file"


class NormalizationSection(Section):
    """Where mean, standard deviations and energies of elements come from: numbers, files, or a fit.

    Model values become physical ones as value * std + mean, + the energies of the elements. What is neither given nor
    fitted is mean 0, standard deviation 1, and no energies of elements. The words `fit` and `keep` stand for
    `{fit: true}` and `{keep: true}`.
    """

    keep: bool = Field(
        False, description="with start_from, where it is the default: everything as in the checkpoint"
    )
    fit: bool = Field(
        False, description="fit the mean and the standard deviations that neither a number nor a file gives"
    )
    sample: int | None = Field(
        None, ge=1, description="records that a fit reads, evenly spaced; all training records if null"
    )
    energy_mean: float | None = Field(None, description="eV")
    energy_std: float | None = Field(None, gt=0, description="eV")
    forces_std: float | None = Field(None, gt=0, description="eV/A")
    element_energies: dict[Annotated[int, Field(ge=1, le=MAX_ATOMIC_NUMBER)], float] = Field(
        default={}, description="eV by atomic number, added once per atom"
    )
    element_references: ElementReferencesSection | None = None
    energy_file: str | None = Field(
        None, description="mean and standard deviation of the energy (.pt, .json)"
    )
    forces_file: str | None = Field(None, description="standard deviation of force components (.pt, .json)")
    file: str | None = Field(None, description="everything, as fit-targets has written it")

    @property
    def fits_something(self) -> bool:
        """Whether training records are read for it."""
        references = self.element_references
        return self.fit or (references is not None and references.fit is not None)

    @property
    def files(self) -> list[str]:
        """Every path that this section names."""
        references = self.element_references.file if self.element_references is not None else None
        named = (self.file, self.energy_file, self.forces_file, references)
        return [path for path in named if path is not None]

    def contradictions(self) -> Iterator[Contradiction]:
        """Each number has one source."""
        given = {name for name in type(self).model_fields if getattr(self, name) not in (None, False, {})}
        for one, other in (
            ("energy_file", "energy_mean"),
            ("energy_file", "energy_std"),
            ("forces_file", "forces_std"),
            ("element_references", "element_energies"),
        ):
            if {one, other} <= given:
                yield (one, other), f"{one} and {other} give the same numbers; keep one of them"
        for everything in ("file", "keep"):
            if everything in given and given != {everything}:
                others = sorted(given - {everything})
                yield (everything, *others), f"{everything} gives everything; leave out {', '.join(others)}"
        energy = "energy_file" in given or {"energy_mean", "energy_std"} <= given
        if self.fit and energy and given & {"forces_std", "forces_file"}:
            yield (
                ("fit", *sorted(given - {"fit"})),
                "fit: true has nothing to fit, because mean and standard deviations are all given",
            )
        if self.sample is not None and not self.fits_something:
            yield (
                ("sample", "fit", "element_references.fit"),
                "sample belongs to a fit; set fit: true or element_references.fit",
            )


def _from_word(value: Any) -> Any:
    return {value: True} if value in ("fit", "keep") else value


NormalizationEntry = Annotated[NormalizationSection, BeforeValidator(_from_word)]
