"""What a data set holds: counts, elements, labels and edges, as a table for people and as numbers to draw."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.open import open_dataset
from ocpgem.data.sizes import CUTOFF, MAX_NEIGHBORS, SizeTable, size_row, size_table
from ocpgem.data.system import System
from ocpgem.errors import DataError
from ocpgem.graph.neighbors import neighbor_search

SAMPLE = 2000
EDGE_SAMPLE = 200
TABLE_AT_ONCE = 200
"""Records of a data set without a side table whose edges are all counted."""
MOST_ROWS = 1_000_000
"""Rows of the side table that are looked at; one of 134 million takes gigabytes to sort."""
BAR = 40


@dataclass(frozen=True)
class EdgeSample:
    """Neighbours within 6 A of some records, before any limit to their number.

    Attributes:
        n_records: how many records were looked at.
        degrees: [atoms] neighbours of each atom.
        lengths: [edges] in A.
    """

    n_records: int
    degrees: NDArray[np.int64]
    lengths: NDArray[np.float64]


@dataclass(frozen=True)
class Inspection:
    """What was read of a data set.

    Attributes:
        dataset: the data set.
        sample: records spread evenly over it, all of a small one.
        sizes: the side table of all records; of some, evenly spread, of a very large data set, and of one without it.
    """

    dataset: Dataset
    sample: list[System]
    sizes: SizeTable

    @property
    def sizes_of_all(self) -> bool:
        """Whether the sizes are those of all records."""
        return len(self.sizes) == len(self.dataset)

    @cached_property
    def edges(self) -> EdgeSample:
        """Edges of up to 200 records of the sample."""
        systems = [self.sample[index] for index in _spread_out(len(self.sample), EDGE_SAMPLE)]
        degrees, lengths = [], []
        for system in systems:
            found = _neighbors(system)
            degrees.append(np.bincount(found.target, minlength=system.n_atoms))
            lengths.append(found.distance)
        return EdgeSample(len(systems), np.concatenate(degrees), np.concatenate(lengths))

    def energies(self, key: str) -> NDArray[np.float64]:
        """The labels that the sample has, eV."""
        return np.array([value for s in self.sample if (value := getattr(s, key)) is not None], dtype=float)

    @cached_property
    def free_forces(self) -> NDArray[np.float64]:
        """[n, 3] on the free atoms of the sample, eV/A."""
        free = [s.forces[~s.fixed] for s in self.sample if s.forces is not None]
        return np.concatenate([np.zeros((0, 3)), *free]).astype(np.float64)

    def elements(self) -> tuple[Counter[int], Counter[int]]:
        """Atoms of each element, and records that hold it, in the sample."""
        atoms = Counter(np.concatenate([system.atomic_numbers for system in self.sample]).tolist())
        return atoms, Counter(z for system in self.sample for z in set(system.atomic_numbers.tolist()))

    @property
    def notice(self) -> str:
        """What was looked at, for the reader."""
        sample = f"{len(self.sample):,} of {len(self.dataset):,} records"
        if len(self.sample) == len(self.dataset):
            sample = f"all {len(self.dataset):,} records"
        sizes = "all records" if self.sizes_of_all else f"{len(self.sizes):,} records"
        return f"elements and labels of {sample}; sizes of {sizes}; neighbours of {self.edges.n_records:,}"


def inspect(dataset: Dataset) -> Inspection:
    """Read what is needed of a data set; raises DataError naming a record that cannot be used."""
    chosen = _spread_out(len(dataset), SAMPLE)
    sample = [dataset[index] for index in chosen]
    if isinstance(dataset, LmdbDataset) or len(dataset) <= TABLE_AT_ONCE:
        rows = slice(None) if len(dataset) <= MOST_ROWS else _spread_out(len(dataset), MOST_ROWS)
        return Inspection(dataset, sample, dataset.sizes[rows])
    few = [sample[index] for index in _spread_out(len(sample), EDGE_SAMPLE)]
    return Inspection(dataset, sample, size_table([size_row(system, _n_edges(system)) for system in few]))


def describe(path: str | Path) -> Inspection:
    """Print a summary of the data set at `path`; raises as `open_dataset` does."""
    from rich.console import Console
    from rich.table import Table

    found = inspect(open_dataset(path))
    table = Table(title=str(path), show_header=False, title_justify="left")
    for key, value in lines_of(found).items():
        table.add_row(key, value)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
    return found


def summarize(dataset: Dataset) -> dict[str, str]:
    """What `describe` prints."""
    return lines_of(inspect(dataset))


def lines_of(found: Inspection) -> dict[str, str]:
    """The lines of the summary by their names."""
    dataset, sizes, sample = found.dataset, found.sizes, found.sample
    n_systems = len(np.unique(sizes["sid"]))
    some = "" if found.sizes_of_all else f" (of {len(sizes)} records)"
    lines = {"records": f"{len(dataset)} of {n_systems} systems" if found.sizes_of_all else f"{len(dataset)}"}
    if found.sizes_of_all:
        lines["frames of a system"] = _spread(np.unique(sizes["sid"], return_counts=True)[1])
    lines |= {
        f"atoms{some}": _spread(sizes["n_atoms"]),
        f"free atoms{some}": _spread(sizes["n_free"]),
        f"edges ({CUTOFF:g} A, nearest {MAX_NEIGHBORS}){some}": _spread(sizes["n_edges"]),
        f"edges per atom{some}": _spread(sizes["n_edges"] / sizes["n_atoms"], decimals=1),
    }
    if isinstance(dataset, LmdbDataset):
        lines |= _origin(dataset)
    lines |= {
        "sample": _sampled(found),
        "elements": _elements(found),
        "tags": _tags(sample),
        "periodic": _periodic(sample),
        "energy": _energies(sample, "energy"),
        "energy per atom": _energies(sample, "energy", per_atom=True),
        "energy_relaxed": _energies(sample, "energy_relaxed"),
        "forces": _forces(found),
        "pos_relaxed": _present([s.pos_relaxed is not None for s in sample]) or "present",
        f"neighbours within {CUTOFF:g} A": _neighbours(found.edges),
        "edge lengths": _lengths(found.edges),
    }
    return lines


def _sampled(found: Inspection) -> str:
    if len(found.sample) == len(found.dataset):
        return "the lines below describe all records"
    return f"the lines below describe {len(found.sample)} records, spread evenly"


def _spread_out(n: int, most: int) -> list[int]:
    """At most so many numbers below n, evenly spread."""
    indices: list[int] = np.unique(np.linspace(0, n - 1, min(most, n)).astype(int)).tolist()
    return indices


def _neighbors(system: System) -> Any:
    try:
        return neighbor_search(system.pos, system.cell, system.pbc, CUTOFF)
    except DataError as error:
        raise DataError(f"{system.where}: {error}") from None


def _n_edges(system: System) -> int:
    degree = np.bincount(_neighbors(system).target, minlength=system.n_atoms)
    return int(np.minimum(degree, MAX_NEIGHBORS).sum())


def _neighbours(edges: EdgeSample) -> str:
    degrees = edges.degrees
    cut, alone = 100 * np.mean(degrees > MAX_NEIGHBORS), int((degrees == 0).sum())
    return (
        f"{_spread(degrees)} an atom ({edges.n_records} records); {cut:.1f} % of the atoms have more than the nearest "
        f"{MAX_NEIGHBORS}; {alone} have none"
    )


def _lengths(edges: EdgeSample) -> str:
    if len(edges.lengths) == 0:
        return "none"
    return f"{_spread(edges.lengths, decimals=2)} A"


def _spread(values: NDArray[Any], decimals: int = 0) -> str:
    low, middle, high = (f"{value:.{decimals}f}" for value in np.quantile(values, [0, 0.5, 1]))
    return f"{low} to {high}, median {middle}, mean {values.mean():.{max(decimals, 1)}f}"


def _origin(dataset: LmdbDataset) -> dict[str, str]:
    """Shards, and what the data set says about how it was made."""
    shards = dataset.metadata.get("shards")
    lines = {}
    if shards is not None:
        lines["shards"] = f"{len(shards)}, {sum(shard['bytes'] for shard in shards) / 1e6:.1f} MB"
    provenance = dataset.metadata.get("provenance", {})
    if "kind" in provenance:
        lines["made from"] = str(provenance["kind"])
    if "report" in provenance:
        left_out = provenance["report"]["left_out"]["entries"]
        reasons = ", ".join(f"{count}: {reason}" for reason, (count, _) in left_out.items())
        lines["left out then"] = reasons or "nothing"
    return lines


def _elements(found: Inspection) -> str:
    """A histogram: every element with its share of the atoms and of the records, the most frequent first."""
    from ase.data import chemical_symbols

    atoms, records = found.elements()
    total, most = sum(atoms.values()), max(atoms.values())
    lines = [f"{len(atoms)}; share of the atoms, and of the records that hold it"]
    for z, count in sorted(atoms.items(), key=lambda item: (-item[1], item[0])):
        share, held_by = 100 * count / total, 100 * records[z] / len(found.sample)
        bar = "#" * max(1, round(BAR * count / most))
        lines.append(f"{chemical_symbols[z]:2s} {share:5.1f} % {held_by:5.1f} % {bar}")
    return "\n".join(lines)


def _tags(sample: list[System]) -> str:
    counts = Counter(np.concatenate([system.tags for system in sample]).tolist())
    total = sum(counts.values())
    return ", ".join(f"{tag}: {100 * count / total:.0f} %" for tag, count in sorted(counts.items()))


def _periodic(sample: list[System]) -> str:
    counts = Counter("".join("FT"[int(axis)] for axis in system.pbc) for system in sample)
    return ", ".join(f"{axes}: {100 * count / len(sample):.0f} %" for axes, count in sorted(counts.items()))


def _present(flags: list[bool]) -> str:
    """Empty where all records have something, else how many do."""
    if all(flags):
        return ""
    return f"in {sum(flags)} of {len(flags)} records" if any(flags) else "none"


def _energies(sample: list[System], key: str, per_atom: bool = False) -> str:
    known = [system for system in sample if getattr(system, key) is not None]
    if not known:
        return "none"
    values = np.array([getattr(system, key) for system in known])
    if per_atom:
        values = values / np.array([system.n_atoms for system in known])
    missing = _present([getattr(system, key) is not None for system in sample])
    return (
        f"mean {values.mean():.4f}, std {values.std():.4f}, {values.min():.4f} to {values.max():.4f} eV"
        + (f"; {missing}" if missing else "")
    )


def _forces(found: Inspection) -> str:
    forces = found.free_forces
    if not len(forces):
        return "none"
    norms = np.linalg.norm(forces, axis=1)
    missing = _present([system.forces is not None for system in found.sample])
    return (
        f"free atoms: mean |component| {np.abs(forces).mean():.4f}, std {forces.std():.4f}, "
        f"norm mean {norms.mean():.4f}, 99 % below {np.quantile(norms, 0.99):.2f}, largest {norms.max():.2f} eV/A"
        + (f"; {missing}" if missing else "")
    )
