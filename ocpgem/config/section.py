"""The base of every part of a configuration, names, and how a section says that right values do not go together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

Contradiction = tuple[tuple[str, ...], str]
"""The keys that do not go together, dotted and as seen from the section that says so, and a sentence about them."""


def _checked_name(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", value) is None:
        raise ValueError(
            "a name begins with a letter (a to z, A to Z) or digit, holds only those, '_', '-' and '.', "
            "and has at most 100 characters"
        )
    return value


Name = Annotated[str, AfterValidator(_checked_name)]
"""What something is called in file names, tags of figures and tables."""


class ContradictionError(ValueError):
    """Everything that a section has found not to go together."""

    def __init__(self, found: Sequence[Contradiction]) -> None:
        super().__init__("; ".join(sentence for _, sentence in found))
        self.found = tuple(found)


class Section(BaseModel):
    """Base of every part of a configuration: unknown keys are refused, values are finite and never change.

    A validator of one field raises ValueError with a full sentence that names the value and the limit.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Yield each rule between keys that the values break, though each is right by itself."""
        yield from ()

    @model_validator(mode="after")
    def _has_no_contradictions(self) -> Self:
        found = tuple(self.contradictions())
        if found:
            raise ContradictionError(found)
        return self
