"""Systems per second and core from a file to a batch with its graph, searched or from stored edges.

    python benchmarks/loader_throughput.py [--fairchem PYTHON] [--quick] [--out FOLDER]

The records of `records.py` (75 atoms; 6 A, nearest 50), in one process and thread, from a warm file:

- search: the edges are searched for every record that is read;
- stored edges: `data.stored_edges`, from what `data edges` has written beside the data set;
- pickled with edges: records in the layout of the released LMDBs (pickled PyG objects with edge_index, cell_offsets and
  distances), unpickled and collated by PyG, without the topology that a model needs: what the released reader does;
- fairchem-core: the same file through fairchem's own LmdbDataset and data_list_collater, where PYTHON can import
  fairchem-core 1.10.0 (pip install --no-deps, in a virtual environment that sees torch and PyG).

Writes loader_throughput.json and loader_throughput.md. Every figure is the median of five passes over 640 systems
(--quick: one over 64).
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lmdb
import numpy as np
import torch
from torch_geometric.data import Batch, Data

from benchmarks.recorded import RESULTS, write
from benchmarks.records import slab
from benchmarks.speed.machine import as_words, machine
from ocpgem.data.edge_store import edges_of, store_edges
from ocpgem.data.lmdb_store import LmdbDataset, write_dataset
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.data.system import System
from ocpgem.graph.edges import SymmetricEdges
from ocpgem.graph.spec import GraphSpec

N, BATCH, PASSES = 640, 32, 5
GRAPH = GraphSpec(6.0, 50)


def per_second(work: Callable[[], object], n: int) -> float:
    """Systems per second, each pass going through all `n`."""
    seconds = []
    for _ in range(passes(n)):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return n / statistics.median(seconds)


def passes(n: int) -> int:
    """How often `n` systems are read."""
    return PASSES if n == N else 1


def put_all(path: Path, values: list[bytes]) -> None:
    """A new LMDB with these values, as the released ones are laid out."""
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 30, lock=False)
    with environment.begin(write=True) as transaction:
        for number, value in enumerate(values):
            transaction.put(b"%d" % number, value)
        transaction.put(b"length", pickle.dumps(len(values)))
    environment.close()


def released(system: System, edges: SymmetricEdges) -> bytes:
    """A record in the layout of the released LMDBs."""
    data = Data(
        pos=torch.from_numpy(np.array(system.pos)),
        cell=torch.from_numpy(np.array(system.cell))[None],
        atomic_numbers=torch.from_numpy(system.atomic_numbers.astype(np.float32)),
        natoms=system.n_atoms,
        tags=torch.from_numpy(system.tags.astype(np.int64)),
        fixed=torch.from_numpy(system.fixed.astype(np.float32)),
        y=system.energy,
        force=torch.from_numpy(np.array(system.forces)),
        edge_index=torch.from_numpy(np.stack([edges.source, edges.target])),
        cell_offsets=torch.from_numpy(edges.offset.astype(np.int64)),
        distances=torch.zeros(len(edges)),
        sid=system.sid,
        fid=system.fid,
    )
    return pickle.dumps(data, protocol=4)


FAIRCHEM = """
import importlib.util, json, statistics, sys, time, types
from pathlib import Path
# The package's own __init__ files import all of it, with what neither reading nor collating needs.
root = Path(importlib.util.find_spec("fairchem").submodule_search_locations[0])
for name in ("core", "core.datasets", "core.models", "core.modules"):
    module = types.ModuleType("fairchem." + name)
    module.__path__ = [str(root.joinpath(*name.split(".")))]
    sys.modules["fairchem." + name] = module
import torch
torch.set_num_threads(1)
from fairchem.core.datasets.lmdb_dataset import LmdbDataset, data_list_collater
file, batches, passes = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
dataset = LmdbDataset({"src": file})
seconds = []
for _ in range(passes):
    started = time.perf_counter()
    for batch in batches:
        data_list_collater([dataset[index] for index in batch], otf_graph=False)
    seconds.append(time.perf_counter() - started)
print(sum(map(len, batches)) / statistics.median(seconds))
"""
"""Run by a Python that can import fairchem-core."""


def with_fairchem(python: str, file: Path, batches: list[list[int]]) -> float:
    """Systems per second of the released reader."""
    arguments = [python, "-c", FAIRCHEM, str(file), json.dumps(batches), str(passes(sum(map(len, batches))))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{python} cannot read with fairchem-core:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def measure(folder: Path, fairchem: str | None, n: int = N) -> dict[str, float]:
    """Systems per second of each way, and the edges of a system and the bytes stored for them."""
    write_dataset(folder / "set", (slab(seed) for seed in range(n)))
    dataset, stored = LmdbDataset(folder / "set"), LmdbDataset(folder / "set")
    store_edges(folder / "set", GRAPH, workers=1)
    stored.use_stored_edges(GRAPH)
    systems = [stored[index] for index in range(n)]
    edges = [edges_of(system, GRAPH).main for system in systems]
    put_all(folder / "old.lmdb", [released(s, e) for s, e in zip(systems, edges, strict=True)])
    batches = np.random.default_rng(0).permutation(n).reshape(-1, BATCH).tolist()

    def as_released() -> None:
        environment = lmdb.open(str(folder / "old.lmdb"), subdir=False, readonly=True, lock=False)
        with environment.begin() as transaction:
            for batch in batches:
                Batch.from_data_list([pickle.loads(transaction.get(b"%d" % index, b"")) for index in batch])
        environment.close()

    found = {}
    for name, source in (("search", dataset), ("stored edges", stored)):
        steps = TrainLoader(Recipe(source, GRAPH), BATCH, 0).steps()
        found[name] = per_second(lambda steps=steps: list(islice(steps, n // BATCH)), n)  # type: ignore[misc]
    found["pickled with edges"] = per_second(as_released, n)
    if fairchem is not None:
        found["fairchem-core 1.10.0"] = with_fairchem(fairchem, folder / "old.lmdb", batches)
    return found | {
        "edges a system": float(np.mean([len(each) for each in edges])),
        "bytes": float(sum(file.stat().st_size for file in (folder / "set" / "edges").rglob("*.lmdb"))) / n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fairchem", metavar="PYTHON")
    parser.add_argument("--quick", action="store_true", help="one pass over few systems")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    fairchem, out = arguments.fairchem, arguments.out
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), fairchem, 2 * BATCH if arguments.quick else N)
    n_edges, n_bytes = figures.pop("edges a system"), figures.pop("bytes")
    facts = machine(fairchem=fairchem)
    found = {"machine": facts, "edges": n_edges, "stored_bytes": n_bytes, "systems_per_second": figures}
    lines = [
        "# From a file to a batch, systems per second and core",
        "",
        f"{as_words(facts)}; 75 atoms and {n_edges:,.0f} edges a system, batches of {BATCH}",
        "",
        "| what | systems/s |",
        "|---|---|",
        *[f"| {name} | {value:,.0f} |" for name, value in figures.items()],
        "",
        f"Stored edges take {n_bytes / 1000:,.1f} kB a system.",
    ]
    if fairchem is None:
        lines.append("fairchem-core was not at hand; `pickled with edges` stands in for its reader.")
    write(out, "loader_throughput", found, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
