"""Memory and start-up of the sampler and the index for the 134 million frames of OC20 S2EF.

    python benchmarks/index_134m.py build FOLDER        (2 minutes; 5 GB of disk)
    python benchmarks/index_134m.py measure FOLDER

`build` makes a data set of 133,934,018 records of 75 atoms in 2,679 shards: the side table has that many rows, but a
shard holds only 100 records, which stand for all the 50,000 that the description counts in it (550 GB would not fit).

`measure` starts 2 ranks with 2 workers each as separate processes, as a node does, on a warm index (each is run once
before it counts). They fill steps up to a budget of edges from a random place in the middle of an epoch and stop after
300 steps. Reported:

- seconds from the start of the process to its first batch, Python and torch imported;
- the proportional set size (PSS, /proc/PID/smaps: a page shared by n processes counts 1/n in each) of all six processes
  together, by what is mapped: the shards are pages of the page cache that hold records; the side table must not show;
- the same of a data set of one shard (50,000 records): what is beyond that is the cost of the index.

Writes benchmarks/results/index_134m.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "index_134m.md"
N_RECORDS = 133_934_018
PER_SHARD = 50_000
IN_SHARD = 100
N_RANKS, N_WORKERS, N_STEPS = 2, 2, 300


def build(folder: Path) -> None:
    """Write the data set of 134 million records, and beside it one of a single shard."""
    import numpy as np
    from balance import oc20_sizes
    from records import slab

    from ocpgem.data.lmdb_store import ShardWriter, finish_dataset, shard_name

    small, large = folder / "small", folder / "large"
    for path in (small, large):
        path.mkdir(parents=True)
    systems = [slab(seed) for seed in range(200)]
    with ShardWriter(small / shard_name(0)) as writer:
        for number in range(PER_SHARD):
            writer.add(systems[number % len(systems)], n_edges=3000)
    finish_dataset(small, [small / shard_name(0)])
    first = large / shard_name(0)
    with ShardWriter(first) as writer:
        for system in systems[:IN_SHARD]:
            writer.add(system, n_edges=3000)
    shards = []
    for number, start in enumerate(range(0, N_RECORDS, PER_SHARD)):
        file = large / shard_name(number)
        if number:
            shutil.copy(first, file)
        count = min(PER_SHARD, N_RECORDS - start)
        shards.append({"file": file.name, "count": count, "bytes": file.stat().st_size})
    metadata = json.loads((small / "metadata.json").read_text()) | {"count": N_RECORDS, "shards": shards}
    rows = oc20_sizes(1_000_000)
    table = np.lib.format.open_memmap(large / "sizes.npy", "w+", rows.dtype, (N_RECORDS,))
    for start in range(0, N_RECORDS, len(rows)):
        part = table[start : start + len(rows)]
        part[:] = rows[: len(part)]
        part["sid"] = np.arange(start, start + len(part))
        table.flush()
    (large / "metadata.json").write_text(json.dumps(metadata))


def rank(path: Path, number: int, started: float) -> None:
    """One rank: goes through its steps, says how long they took and waits."""
    from ocpgem.data.cost import STORED_EDGES, Batching, Budget
    from ocpgem.data.lmdb_store import LmdbDataset
    from ocpgem.data.loader import Recipe, TrainLoader, WorkerSettings
    from ocpgem.graph.topology import GraphSpec

    class Repeated(LmdbDataset):
        """The data set that the description speaks of: records of a shard stand for others of it."""

        def _read(self, shard: Any, place: int, index: int) -> Any:
            return super()._read(shard, place % IN_SHARD, index)

    imported = time.time()
    dataset = Repeated(path)
    opened = time.time()
    budget = Budget(STORED_EDGES, 16 * 2400 * N_RANKS)
    loader = TrainLoader(
        Recipe(dataset, GraphSpec(6.0, 50)),
        Batching(budget),
        0,
        number,
        N_RANKS,
        WorkerSettings(workers=N_WORKERS),
    )
    steps = loader.steps(1_000_000, drawn=len(dataset) * 3 + len(dataset) // 2)
    next(steps)
    first = time.time()
    n_systems = sum(batch.num_graphs for step in islice(steps, N_STEPS) for batch, _ in step.micro_batches)
    facts = {
        "imports": imported - started,
        "open": opened - imported,
        "first batch": first - opened,
        "all": first - started,
        "rate": n_systems / (time.time() - first),
    }
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()  # the memory is measured now
    os._exit(0)


def memory_of(processes: list[int]) -> dict[str, float]:
    """PSS in MB of some processes together, by what is mapped."""
    found = {
        "side table": 0.0,
        "records in the page cache": 0.0,
        "libraries and other files": 0.0,
        "private": 0.0,
    }
    for process in processes:
        kind = "private"
        for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                name = words[5] if len(words) > 5 else ""
                kind = (
                    "side table"
                    if name.endswith("sizes.npy")
                    else "records in the page cache"
                    if name.endswith(".lmdb")
                    else "libraries and other files"
                    if name.startswith("/") and not name.startswith("/dev/shm")
                    else "private"
                )
            elif words[0] == "Pss:":
                found[kind] += int(words[1]) / 1000
    return found | {"sum": sum(found.values())}


def children(process: int) -> list[int]:
    """A process and those it started."""
    return [
        process,
        *map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()),
    ]


def run(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Start the ranks; the slowest of their times, and their memory."""
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                "rank",
                str(path),
                "--number",
                str(number),
                "--started",
                str(time.time()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for number in range(N_RANKS)
    ]
    facts: list[dict[str, float]] = []
    for each in ranks:
        assert each.stdout is not None
        facts.append(json.loads(each.stdout.readline()))
    memory = memory_of([process for each in ranks for process in children(each.pid)])
    for each in ranks:
        each.communicate("\n")
    slowest = {name: max(fact[name] for fact in facts) for name in facts[0] if name != "rate"}
    return slowest | {"rate": sum(fact["rate"] for fact in facts)}, memory


def measure(folder: Path) -> None:
    """Run small and large data set, each twice, the second time to count."""
    results: dict[str, Any] = {}
    for name in ("small", "large"):
        run(folder / name)
        results[name] = run(folder / name)
    header = ["", "50,000 records", f"{N_RECORDS:,} records"]
    columns = [{**{f"{key}, s": value for key, value in times.items() if key != "rate"},
                **{f"PSS, {key}, MB": value for key, value in memory.items()}}
               for times, memory in results.values()]  # fmt: skip
    rows = [
        f"| {key} | " + " | ".join(f"{column[key]:,.2f}" for column in columns) + " |" for key in columns[0]
    ]
    lines = [
        f"# Index of {N_RECORDS:,} records",
        "",
        f"`python benchmarks/index_134m.py measure FOLDER`; {N_RANKS} ranks x {N_WORKERS} workers "
        f"({N_RANKS * (1 + N_WORKERS)} processes), {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"times of the slower rank from the start of its process; memory after {N_STEPS} steps",
        "",
        "| " + " | ".join(header) + " |",
        "|---|---|---|",
        *rows,
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["build", "measure", "rank"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.action == "build":
        build(args.folder)
    elif args.action == "measure":
        measure(args.folder)
    else:
        rank(args.folder, args.number, args.started)


if __name__ == "__main__":
    main()
