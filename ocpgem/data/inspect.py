"""What a data set holds, as a table for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.open import open_dataset
from ocpgem.data.system import System

SAMPLE = 2000
BAR = 40


def describe(path: str | Path) -> None:
    """Print a summary of the data set at `path`; raises as `open_dataset` does."""
    from rich.console import Console
    from rich.table import Table

    dataset = open_dataset(path)
    table = Table(title=str(path), show_header=False, title_justify="left")
    for key, value in summarize(dataset).items():
        table.add_row(key, value)
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)


def summarize(dataset: Dataset) -> dict[str, str]:
    """Counts over all records; labels, elements and tags over a sample of 2000 spread evenly."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int))
    sample = [dataset[index] for index in chosen.tolist()]
    frames_per_system = np.unique(dataset.sids, return_counts=True)[1]
    lines = {
        "records": f"{len(dataset)} of {len(frames_per_system)} systems",
        "frames of a system": _spread(frames_per_system),
        "atoms": _spread(dataset.n_atoms),
        "free atoms": _spread(dataset.n_free),
        "edges (6 A, nearest 50)": _spread(dataset.n_edges),
        "edges per atom": _spread(dataset.n_edges / dataset.n_atoms, decimals=1),
    }
    if isinstance(dataset, LmdbDataset):
        lines |= _origin(dataset)
    lines |= {
        "sample": f"{len(sample)} records, which the lines below describe",
        "elements": _elements(sample),
        "tags": _tags(sample),
        "periodic": _periodic(sample),
        "energy": _energies(sample, "energy"),
        "energy per atom": _energies(sample, "energy", per_atom=True),
        "energy_relaxed": _energies(sample, "energy_relaxed"),
        "forces": _forces(sample),
        "pos_relaxed": _present([s.pos_relaxed is not None for s in sample]) or "present",
    }
    return lines


def _spread(values: NDArray[Any], decimals: int = 0) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return (
        f"{low:.{decimals}f} to {high:.{decimals}f}, median {middle:.{decimals}f}, mean {values.mean():.1f}"
    )


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


def _elements(sample: list[System]) -> str:
    """A histogram: every element with its share of the atoms and of the records, the most frequent first."""
    from ase.data import chemical_symbols

    atoms = Counter(np.concatenate([system.atomic_numbers for system in sample]).tolist())
    records = Counter(z for system in sample for z in set(system.atomic_numbers.tolist()))
    total, most = sum(atoms.values()), max(atoms.values())
    lines = [f"{len(atoms)}; share of the atoms, and of the records that hold it"]
    for z, count in sorted(atoms.items(), key=lambda item: (-item[1], item[0])):
        share, held_by = 100 * count / total, 100 * records[z] / len(sample)
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


def _forces(sample: list[System]) -> str:
    free = [s.forces[~s.fixed] for s in sample if s.forces is not None]
    if not free or not sum(map(len, free)):
        return "none"
    forces = np.concatenate(free).astype(np.float64)
    norms = np.linalg.norm(forces, axis=1)
    missing = _present([system.forces is not None for system in sample])
    return (
        f"free atoms: mean |component| {np.abs(forces).mean():.4f}, std {forces.std():.4f}, "
        f"norm mean {norms.mean():.4f}, 99 % below {np.quantile(norms, 0.99):.2f}, largest {norms.max():.2f} eV/A"
        + (f"; {missing}" if missing else "")
    )
