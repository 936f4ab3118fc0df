"""Records per second and milliseconds per batch on one core: 75 atoms with forces, no stored edges.

    python benchmarks/records.py

writes results/records.json and results/records.md beside this file. The records are read from an LMDB data
set in a temporary folder, checksums verified; the file is in the page cache, as for a data set that fits in
memory. Every figure is the median of seven repetitions.
"""

from __future__ import annotations

import argparse
import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch_geometric.data import Batch

from ocpgem.data.batch import collate, to_data
from ocpgem.data.lmdb_store import LmdbDataset, ShardWriter
from ocpgem.data.loader import Recipe, TrainLoader, WorkerSettings
from ocpgem.data.record import decode, encode
from ocpgem.data.system import System
from ocpgem.graph.system_edges import system_edges
from ocpgem.graph.topology import GraphSpec, concat

RESULTS = Path(__file__).parent / "results"
N_ATOMS, N_RECORDS, BATCH, REPETITIONS = 75, 20_000, 32, 7


def slab(seed: int) -> System:
    """75 atoms at the density of a metal slab, jittered from a lattice of 2.6 A."""
    rng = np.random.default_rng(seed)
    lattice = 2.6 * np.stack(np.meshgrid(range(5), range(5), range(3), indexing="ij"), -1).reshape(-1, 3)
    return System(
        pos=(lattice + rng.normal(0, 0.1, (N_ATOMS, 3))).astype(np.float32),
        cell=np.diag([13.0, 13.0, 30.0]).astype(np.float32),
        pbc=np.ones(3, dtype=bool),
        atomic_numbers=rng.integers(1, 80, N_ATOMS).astype(np.uint8),
        tags=rng.integers(0, 3, N_ATOMS).astype(np.uint8),
        fixed=rng.random(N_ATOMS) < 0.6,
        energy=float(rng.normal()),
        forces=rng.normal(size=(N_ATOMS, 3)).astype(np.float32),
        sid=seed,
        fid=0,
    )


def seconds(work: Callable[[], object]) -> float:
    """Median wall time of one call."""
    times = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def loader_seconds(recipe: Recipe, workers: int) -> float:
    """Seconds per system that the training process waits when it does nothing else."""
    loader = TrainLoader(recipe, BATCH, seed=0, settings=WorkerSettings(workers=workers))
    steps = loader.steps()
    next(steps)
    n_steps = 40
    started = time.perf_counter()
    for _ in itertools.islice(steps, n_steps):
        pass
    return (time.perf_counter() - started) / (n_steps * BATCH)


def measure(folder: Path) -> dict[str, float]:
    systems = [slab(seed) for seed in range(500)]
    path = folder / "data.0000.lmdb"
    with ShardWriter(path) as writer:
        for system in itertools.islice(itertools.cycle(systems), N_RECORDS):
            writer.add(system, n_edges=3000)
    dataset = LmdbDataset(path)
    records = [encode(system) for system in systems]
    shuffled = np.random.default_rng(0).permutation(N_RECORDS).tolist()
    batch = [dataset[index] for index in range(BATCH)]
    recipe = Recipe(dataset, GraphSpec(6.0, 50))
    edges = [system_edges(s.pos, s.cell, s.pbc, recipe.graph) for s in batch]

    def read(order: list[int]) -> None:
        for index in order:
            dataset[index]

    return {
        "bytes per record": len(records[0]),
        "bytes per record in the file": path.stat().st_size / N_RECORDS,
        "encode, records/s": 500 / seconds(lambda: [encode(system) for system in systems]),
        "decode alone, records/s": 500 / seconds(lambda: [decode(record, "x") for record in records]),
        "LMDB and decode in order, records/s": N_RECORDS / seconds(lambda: read(list(range(N_RECORDS)))),
        "LMDB and decode shuffled, records/s": N_RECORDS / seconds(lambda: read(shuffled)),
        "collate 32 systems, ms": 1e3 * seconds(lambda: collate(batch)),
        "PyG's collate of the same 32, ms": 1e3
        * seconds(lambda: Batch.from_data_list([to_data(system) for system in batch])),
        "edges of 32 systems (6 A, nearest 50), ms": 1e3
        * seconds(lambda: [system_edges(s.pos, s.cell, s.pbc, recipe.graph) for s in batch]),
        "topology from these edges, ms": 1e3 * seconds(lambda: concat(edges)),
        "loader without workers, systems/s": 1 / loader_seconds(recipe, 0),
        "loader with one worker, systems/s": 1 / loader_seconds(recipe, 1),
        "loader with two workers, systems/s": 1 / loader_seconds(recipe, 2),
    }


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load when finished": os.getloadavg()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "records.json").write_text(
        json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n"
    )
    rows = [
        f"| {name} | {value:,.2f} |" if value < 100 else f"| {name} | {value:,.0f} |"
        for name, value in figures.items()
    ]
    title = f"# Records: {N_ATOMS} atoms, {machine['cores']} cores, load {machine['load when finished']:.1f}"
    table = "\n".join([title, "", "| what | value |", "|---|---|", *rows])
    (RESULTS / "records.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
