"""Where a batch is divided over ranks by atoms: which rows a rank needs of the others, and which they need of it."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


class OnDevice:
    """Moves every tensor of a dataclass, and every dataclass in it; what is one tensor stays one."""

    def _map(self, how: Callable[[Tensor], Tensor], done: dict[int, Tensor]) -> Self:
        moved: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                if id(value) not in done:
                    done[id(value)] = how(value)
                moved[field.name] = done[id(value)]
            elif isinstance(value, OnDevice):
                moved[field.name] = value._map(how, done)
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same structure on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking), {})

    def pin_memory(self) -> Self:
        """The same structure in page-locked memory, for copies that do not block."""
        return self._map(Tensor.pin_memory, {})


@dataclass(frozen=True)
class Exchange(OnDevice):
    """How a rank gets the rows it needs of a table whose consecutive parts lie on the ranks of a group.

    rows: [W] places in the whole table of the rows that this rank needs, ascending, so those of each rank are
    consecutive; send: [S] of its own rows (from 0) those that each rank needs, by receiving rank; by_row: [S] the
    rows of `send` ordered by row, of which those of own row r are by_row[row_ptr[r]:row_ptr[r + 1]]; send_counts,
    receive_counts: rows per rank; group: the ranks (`parallel.graph.GraphGroup`). Indices int64.
    """

    rows: Tensor
    send: Tensor
    by_row: Tensor
    row_ptr: Tensor
    send_counts: tuple[int, ...]
    receive_counts: tuple[int, ...]
    group: Any


@dataclass(frozen=True)
class Part(OnDevice):
    """The consecutive atoms of a batch that a rank owns, with all edges that end at them.

    first, n_atoms: the atoms; group: the ranks among which the batch is divided.
    """

    first: int
    n_atoms: int
    group: Any


@dataclass(frozen=True)
class Ends(OnDevice):
    """What atom numbers of a rank's edges mean: targets are counted within its part, sources within `sources.rows`."""

    part: Part
    sources: Exchange
