"""Systems per second and core from a file to a batch with its graph, searched or from stored edges.

    python benchmarks/loader_throughput.py

The records of `records.py` (75 atoms; 6 A, nearest 50), in one process and thread, from a warm file:

- search: ocpgem's loader as it is; edges are searched for every record it reads;
- stored edges: the same, but the edges come out of a second LMDB (source, offset and reverse, 7 bytes an edge). This is
  a prototype in this script, to know what storing them would bring; ocpgem's data sets do not have it;
- pickled with edges: records in the layout of the released LMDBs (pickled PyG objects with edge_index, cell_offsets and
  distances), unpickled and collated by PyG, without the topology that a model needs: what the released reader does.

Writes benchmarks/results/loader_throughput.md. Every figure is the median of five passes over 640 systems.
"""

import os
import pickle
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np
import torch
from records import slab
from torch_geometric.data import Batch, Data

from ocpgem.data.batch import collate
from ocpgem.data.lmdb_store import LmdbDataset, ShardWriter
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.data.system import System
from ocpgem.graph.edges import SymmetricEdges
from ocpgem.graph.topology import GraphSpec, SystemEdges, concat, system_edges

RESULT = Path(__file__).parent / "results" / "loader_throughput.md"
N, BATCH, PASSES = 640, 32, 5
GRAPH = GraphSpec(6.0, 50)


def encoded(edges: SymmetricEdges, n_atoms: int) -> bytes:
    """Edges as bytes: number per target, source, offset, position of the reverse edge."""
    counts = np.bincount(edges.target, minlength=n_atoms)
    parts = [
        counts.astype("<u2"),
        edges.source.astype("<u2"),
        edges.offset.astype("i1"),
        edges.reverse.astype("<u2"),
    ]
    return b"".join(part.tobytes() for part in parts)


def decoded(content: bytes, n_atoms: int) -> SystemEdges:
    """The inverse of `encoded`."""
    counts = np.frombuffer(content, "<u2", n_atoms)
    n_edges = int(counts.sum())
    source = np.frombuffer(content, "<u2", n_edges, 2 * n_atoms).astype(np.int64)
    offset = (
        np.frombuffer(content, "i1", 3 * n_edges, 2 * (n_atoms + n_edges)).reshape(-1, 3).astype(np.int64)
    )
    reverse = np.frombuffer(content, "<u2", n_edges, 2 * n_atoms + 5 * n_edges).astype(np.int64)
    target = np.repeat(np.arange(n_atoms), counts)
    return SystemEdges(n_atoms, SymmetricEdges(source, target, offset, reverse))


def per_second(work: Callable[[], object]) -> float:
    """Systems per second, each pass going through all."""
    seconds = []
    for _ in range(PASSES):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return N / statistics.median(seconds)


def put_all(path: Path, values: list[bytes]) -> lmdb.Transaction:
    """A read transaction of a new LMDB with these values."""
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 30, lock=False)
    with environment.begin(write=True) as transaction:
        for number, value in enumerate(values):
            transaction.put(b"%d" % number, value)
    return environment.begin()


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


def measure(folder: Path) -> dict[str, float]:
    with ShardWriter(folder / "data.0000.lmdb") as writer:
        for seed in range(N):
            writer.add(slab(seed), n_edges=3000)
    dataset = LmdbDataset(folder / "data.0000.lmdb")
    systems = [dataset[index] for index in range(N)]
    edges = [system_edges(s.pos, s.cell, s.pbc, GRAPH).main for s in systems]
    stored = put_all(
        folder / "edges.lmdb", [encoded(e, s.n_atoms) for e, s in zip(edges, systems, strict=True)]
    )
    pickled = put_all(folder / "old.lmdb", [released(s, e) for s, e in zip(systems, edges, strict=True)])
    batches = np.random.default_rng(0).permutation(N).reshape(-1, BATCH).tolist()
    loader = TrainLoader(Recipe(dataset, GRAPH), BATCH, 0)

    def with_stored() -> None:
        for batch in batches:
            read = [dataset[index] for index in batch]
            collate(read)
            concat([decoded(stored.get(b"%d" % i), s.n_atoms) for i, s in zip(batch, read, strict=True)])

    def as_released() -> None:
        for batch in batches:
            Batch.from_data_list([pickle.loads(pickled.get(b"%d" % index)) for index in batch])

    steps = loader.steps()
    return {
        "search": per_second(lambda: list(islice(steps, N // BATCH))),
        "stored edges": per_second(with_stored),
        "pickled with edges": per_second(as_released),
        "edges a system": float(np.mean([len(e) for e in edges])),
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    lines = [
        "# From a file to a batch, systems per second and core",
        "",
        f"`python benchmarks/loader_throughput.py`; 75 atoms and {figures.pop('edges a system'):,.0f} edges a system, "
        f"batches of {BATCH}; {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "",
        "| what | systems/s |",
        "|---|---|",
        *[f"| {name} | {value:,.0f} |" for name, value in figures.items()],
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
