"""What a training step keeps and sends where ranks share the edges of a batch, at published sizes.

    python benchmarks/graph_parallel.py [--out FOLDER]            (about 10 minutes on one core, 6 GB)

Writes graph_parallel.json and graph_parallel.md. **Kept and sent**: the model, its loss and gradients run as they are
with torch's fake tensors, which have sizes and no content, for every rank of groups of 1, 2 and 4; the rank with most
counts. One system: a copper slab of 96 atoms with CO, as the models are published otherwise.

**Released scheme**: the edge embeddings that a block makes are gathered by all ranks, and their gradients summed and
divided: 2 x blocks x edges x edge_dim x 4 bytes x (n - 1)/n from each rank. Its code no longer runs, so this is
computed; what else it sends is left out.

**Process memory**: n real gloo processes take one step on a slab of 48 atoms with CO. They are forked from one that has
the weights, which they read and so share. A gradient of a weight is dropped when it is complete: groups do not divide
weights. Counted is by how much the largest process grows (VmHWM after the step minus VmRSS before it), with
MALLOC_MMAP_THRESHOLD_=65536, so that glibc's heap keeps no gaps between tensors. The largest process also shows what
atoms do not allow: of 50 atoms a fourth is 12 or 13, and every process has buffers of its own.
"""

import os

if __name__ == "__main__":  # not where functions are imported
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import ctypes
import json
import socket
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch.distributed as dist
from ase.build import add_adsorbate, fcc111, molecule

from benchmarks.recorded import RESULTS, write
from benchmarks.speed.machine import as_words, machine
from ocpgem.config import load_config
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe
from ocpgem.data.system import System
from ocpgem.graph.topology import Topology
from ocpgem.models.potential import Normalization, Potential
from ocpgem.parallel.graph import GraphGroup
from ocpgem.parallel.partition import partition
from ocpgem.train.config import TrainConfig
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.step_cost import step_cost

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"GemNet-XL": "s2ef/all/gemnet_xl.yml", "GemNet-OC-Large": "s2ef/all/gemnet_OC_large.yml"}
SIZES = (1, 2, 4)
COUNTED, MEASURED, WARM_UP = (4, 6, 4), (3, 4, 4), (1, 1, 4)
"""Copper atoms along the edges of the slabs."""


def slab(size: tuple[int, int, int]) -> System:
    """Copper, the lower two layers fixed, and a CO molecule."""
    atoms = fcc111("Cu", size, vacuum=10)
    n_metal = len(atoms)
    add_adsorbate(atoms, molecule("CO"), 1.9, "ontop")
    atoms.pbc = True
    layer = atoms.get_tags()
    tags = np.where(np.arange(len(atoms)) >= n_metal, 2, np.where(layer == 1, 1, 0))
    noise = np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    return System(
        pos=(atoms.positions + noise).astype(np.float32),
        cell=atoms.cell.array.astype(np.float32),
        pbc=np.ones(3, dtype=bool),
        atomic_numbers=atoms.numbers.astype(np.uint8),
        tags=tags.astype(np.uint8),
        fixed=(layer > 2),
        energy=-1.0,
        forces=np.zeros((len(atoms), 3), dtype=np.float32),
        sid=0,
        fid=0,
    )


def settings_of(name: str) -> TrainConfig:
    return load_config(ROOT / "configs" / MODELS[name], [], TrainConfig)


def prepared(config: TrainConfig, size: tuple[int, int, int]) -> tuple[Any, Topology]:
    recipe = Recipe(InMemoryDataset([slab(size)]), config.model.graph_spec, config.model.n_elements)
    return recipe.prepare(np.array([0]))


def counted(name: str) -> list[dict[str, Any]]:
    """What a rank keeps and sends, for each size of a group."""
    config, found = settings_of(name), []
    batch, topology = prepared(config, COUNTED)
    for size in SIZES:
        divided = config.model_copy(update={"parallel": config.parallel.model_copy(update={"graph": size})})
        costs = [step_cost(divided, batch, topology, Normalization(), rank) for rank in range(size)]
        edges = topology.main.n_edges * config.model.edge_dim * 4
        found.append(
            {
                "model": name,
                "edges": topology.main.n_edges,
                "ranks": size,
                "kept_bytes": max(cost.kept_bytes for cost in costs),
                "sent_bytes": max(cost.sent_bytes for cost in costs),
                "sent_messages": max(cost.sent_messages for cost in costs),
                "released_bytes": 2 * config.model.n_blocks * edges * (size - 1) // size,
            }
        )
        print(found[-1], flush=True)
    return found


def counted_rows(found: list[dict[str, Any]]) -> list[str]:
    """Lines of the first table."""
    rows = []
    for each in found:
        kept, sent, released = each["kept_bytes"], each["sent_bytes"], each["released_bytes"]
        less = f"{released / sent:.1f} x" if sent else ""
        rows.append(
            f"| {each['model']} | {each['edges']:,} | {each['ranks']} | {kept / 1e9:.3f} | "
            f"{share(kept, found[0]['kept_bytes'], each['ranks'])} | {sent / 1e6:.1f} | {each['sent_messages']:,} | "
            f"{released / 1e6:.1f} | {less} |"
        )
    return rows


def share(part: float, alone: float, size: int) -> str:
    """A rank's share of what one rank needs alone, and whether it is at most 1/n and a tenth of it."""
    if size == 1:
        return "1 | "
    met = (
        "yes" if part / alone <= 1.1 / size else "below 1/n + 0.1" if part / alone <= 1 / size + 0.1 else "NO"
    )
    return f"{part / alone:.3f} | {met} ({1.1 / size:.3f})"


def measured(name: str) -> list[dict[str, Any]]:
    """By how much processes grow, for each size of a group."""
    environ = os.environ | dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    words = [sys.executable, __file__, "--growth", name]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    edges = prepared(settings_of(name), MEASURED)[1].main.n_edges
    found = [
        {"model": name, "edges": edges, "processes": int(size), "grown_bytes": values}
        for size, values in json.loads(done.stdout).items()
    ]
    print(*found, sep="\n", flush=True)
    return found


def measured_rows(found: list[dict[str, Any]]) -> list[str]:
    """Lines of the second table."""
    rows, alone = [], max(found[0]["grown_bytes"])
    for each in found:
        grown = ", ".join(f"{value / 1e9:.3f}" for value in each["grown_bytes"])
        part = share(max(each["grown_bytes"]), alone, each["processes"])
        rows.append(f"| {each['model']} | {each['edges']:,} | {each['processes']} | {grown} | {part} |")
    return rows


def growth(name: str) -> dict[int, list[int]]:
    """Size of a group -> bytes by which each of its processes grows in a step."""
    config = settings_of(name)
    data = {slab_size: prepared(config, slab_size) for slab_size in (WARM_UP, MEASURED)}
    potential = Potential(config.model, Normalization()).train()
    for parameter in potential.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    trim_heap()
    return {size: group_step(size, potential, config, data) for size in SIZES}


def group_step(size: int, potential: Potential, config: TrainConfig, data: dict[Any, Any]) -> list[int]:
    """Fork the ranks of a group, let each take a step; by how many bytes each has grown."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = []
    for rank in range(size):
        read, write = os.pipe()
        if os.fork() == 0:
            os._exit(rank_step(rank, size, port, write, potential, config, data))
        os.close(write)
        ends.append(read)
    said = []
    for end in ends:
        with os.fdopen(end) as file:
            said.append(file.read())
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(size)]
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")
    return [int(each) for each in said]


def rank_step(
    rank: int, size: int, port: int, out: int, potential: Potential, config: TrainConfig, data: dict[Any, Any]
) -> int:
    """What a forked rank does; returns its exit code."""
    try:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(
            "gloo", init_method=address, rank=rank, world_size=size, timeout=timedelta(minutes=10)
        )
        graph = None if size == 1 else GraphGroup(rank, size, dist.group.WORLD)
        before = 0
        for slab_size in (WARM_UP, MEASURED):
            batch, topology = data[slab_size]
            own = partition(topology, graph)
            trim_heap()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = memory("VmRSS")
            counts = GlobalCounts(topology.n_systems, topology.n_atoms)
            loss_share(potential(batch, own), batch, config.loss, Normalization(), counts).backward()
        os.write(out, str(memory("VmHWM") - before).encode())
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def memory(which: str) -> int:
    """Bytes of this process, now (VmRSS) or at most so far (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status does not tell {which}; process memory is measured on Linux only")


def trim_heap() -> None:
    """Give free memory of the heap back, so that what is allocated later shows."""
    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--growth", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.growth is not None:
        print(json.dumps(growth(arguments.growth)))
        return
    where = machine()
    kept, grown = ({name: of(name) for name in MODELS} for of in (counted, measured))
    text = [
        "# Graph groups: memory and communication",
        "",
        as_words(where) + ".",
        "",
        (__doc__ or "").partition("Writes graph_parallel.json and graph_parallel.md. ")[2],
        "| model | edges | ranks of a group | kept by a rank, GB | of one rank's | at most 1.1/n | "
        "sent by a rank in a step, MB | in messages | released scheme, MB | less by |",
        "|---" * 10 + "|",
        *(line for found in kept.values() for line in counted_rows(found)),
        "",
        "| model | edges | processes | growth of each in a step, GB | largest / one process | at most 1.1/n |",
        "|---" * 6 + "|",
        *(line for found in grown.values() for line in measured_rows(found)),
    ]
    record = {"machine": where, "counted": kept, "measured": grown}
    write(arguments.out, "graph_parallel", record, text)


if __name__ == "__main__":
    main()
