"""What a data set holds, as a table for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.open import open_dataset
from ocpgem.data.system import System

SAMPLE = 2000


def describe(path: str | Path) -> None:
    """Print a summary of the data set at `path`; raises as `open_dataset` does."""
    from rich.console import Console
    from rich.table import Table

    dataset = open_dataset(path)
    table = Table(title=str(path), show_header=False, title_justify="left")
    for key, value in summarize(dataset).items():
        table.add_row(key, value)
    Console().print(table)


def summarize(dataset: Dataset) -> dict[str, str]:
    """Counts over all records; labels, elements and tags over a sample of 2000 spread evenly."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int))
    sample = [dataset[index] for index in chosen.tolist()]
    lines = {
        "records": f"{len(dataset)} of {len(np.unique(dataset.sids))} systems",
        "atoms": _spread(dataset.n_atoms),
        "free atoms": _spread(dataset.n_free),
        "edges (6 A, nearest 50)": _spread(dataset.n_edges),
        "sample": f"{len(sample)} records, which the lines below describe",
        "elements": _elements(sample),
        "tags": _tags(sample),
        "periodic": ", ".join(sorted({"".join("TF"[not axis] for axis in system.pbc) for system in sample})),
    }
    for key, unit in (("energy", "eV"), ("energy_relaxed", "eV")):
        values = np.array([getattr(s, key) for s in sample if getattr(s, key) is not None])
        lines[key] = (
            "none" if len(values) == 0 else f"mean {values.mean():.4f}, std {values.std():.4f} {unit}"
        )
    lines["forces"] = _forces(sample)
    lines["pos_relaxed"] = "present" if all(s.pos_relaxed is not None for s in sample) else "none"
    return lines


def _spread(values: NDArray[np.int32]) -> str:
    return f"{values.min()} to {values.max()}, mean {values.mean():.1f}"


def _elements(sample: list[System]) -> str:
    from ase.data import chemical_symbols

    counts = Counter(np.concatenate([system.atomic_numbers for system in sample]).tolist())
    return f"{len(counts)}: " + " ".join(chemical_symbols[number] for number in sorted(counts))


def _tags(sample: list[System]) -> str:
    counts = Counter(np.concatenate([system.tags for system in sample]).tolist())
    total = sum(counts.values())
    return ", ".join(f"{tag}: {100 * count / total:.0f} %" for tag, count in sorted(counts.items()))


def _forces(sample: list[System]) -> str:
    free = [s.forces[~s.fixed] for s in sample if s.forces is not None]
    if not free:
        return "none"
    forces = np.concatenate(free)
    return (
        f"free atoms: mean |component| {np.abs(forces).mean():.4f}, "
        f"largest norm {np.linalg.norm(forces, axis=1).max():.2f} eV/A"
    )
