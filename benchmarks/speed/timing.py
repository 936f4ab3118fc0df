"""Seconds and memory of the parts of a training step, on this machine."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.costs import MODELS, train_config
from benchmarks.speed.process import NotMeasuredError, seconds, times
from benchmarks.speed.structures import prepared, slabs
from ocpgem.graph.neighbors import neighbor_search
from ocpgem.graph.spec import GraphSpec
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.step_cost import step_cost

ROOT = Path(__file__).resolve().parents[2]
GRAPH_SIZES = tuple(60 + 2 * number for number in range(16))
"""Atoms of the systems whose graphs are measured."""
GRAPHS: dict[str, tuple[str, float | None]] = {
    "all pairs within 6 A": ("GemNet-dT", 6.0),
    "all pairs within 12 A": ("GemNet-dT", 12.0),
    "graphs and indices of GemNet-dT": ("GemNet-dT", None),
    "graphs and indices of GemNet-OC": ("GemNet-OC", None),
}
"""What is measured of graphs: the model they are for, and the cutoff of a search, else the whole of its graphs."""


def product_rate(device: str, repeats: int = 5) -> float:
    """GFLOP/s of the fastest of some [15000, 512] x [512, 512] products in float32."""
    left, right = torch.randn(15000, 512, device=device), torch.randn(512, 512, device=device)
    return 2e-9 * 15000 * 512 * 512 / min(times(lambda: left @ right, repeats))


def of_graphs(n_systems: int, repeats: int) -> dict[str, dict[str, float]]:
    """Search for all pairs within a cutoff, and all graphs and indices of a model, of the first of `GRAPH_SIZES`.

    Seconds, and the number of edges: of all pairs, or of the main graph. Names are those of `GRAPHS`.
    """
    systems = slabs(GRAPH_SIZES[:n_systems])
    found = {}
    for name, (model, cutoff) in GRAPHS.items():
        graph = GemNetConfig.model_validate(MODELS[model]).graph_spec

        def search(cutoff: float | None = cutoff) -> int:
            assert cutoff is not None
            lists = [neighbor_search(each.pos, each.cell, each.pbc, cutoff) for each in systems]
            return sum(len(each.source) for each in lists)

        def indices(graph: GraphSpec = graph) -> int:
            return prepared(systems, graph)[1].main.n_edges

        call = indices if cutoff is None else search
        found[name] = {"edges": call(), "seconds": seconds(call, repeats)}
    return found


AXES: dict[str, list[tuple[int, tuple[int, ...]]]] = {
    "neighbors": [(k, (100,)) for k in (10, 20, 30, 50, 70, 100)],
    "atoms": [(50, (n,)) for n in (20, 50, 100, 150, 225)],
    "batch": [(50, (75,) * n) for n in (1, 2, 4, 8, 16)],
}
"""Limits of neighbours, and atoms of each system, at which scaling is measured."""


def scaling(device: str, repeats: int, quick: bool) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Narrow models against neighbours, atoms and batch: seconds forward and backward, and tensors of a step."""
    return {
        model: {
            axis: [
                at_point(model, axis, k, sizes, device, repeats)
                for k, sizes in points[: 2 if quick else None]
            ]
            for axis, points in AXES.items()
        }
        for model in ("GemNet-dT", "GemNet-OC")
    }


def at_point(
    model: str, axis: str, n_neighbors: int, sizes: tuple[int, ...], device: str, repeats: int
) -> dict[str, float]:
    """One of `MODELS` with a width of 64 within 10 A, on slabs of some numbers of atoms."""
    neighbors = {"cutoff": 10.0, "max_neighbors": n_neighbors}
    config = train_config(MODELS[model] | {"atom_dim": 64, "edge_dim": 64, "neighbors": neighbors})
    batch, topology = prepared(slabs(sizes), config.model.graph_spec)
    cost = step_cost(config, batch, topology, Normalization())
    torch.manual_seed(0)
    potential = Potential(config.model, Normalization()).to(device)
    batch, on_device = batch.to(device), topology.to(device)
    counts = GlobalCounts(topology.n_systems, topology.n_atoms)

    def forward_and_backward() -> None:
        predictions = potential(batch, on_device)
        loss_share(predictions, batch, config.loss, potential.normalization, counts).backward()

    return {
        axis: {"neighbors": n_neighbors, "atoms": sizes[0], "batch": len(sizes)}[axis],
        "edges": topology.main.n_edges,
        "forward_backward_s": seconds(forward_and_backward, repeats),
        "kept_gb": cost.kept_bytes / 1e9,
        "peak_counted_gb": cost.peak_bytes / 1e9,
    }


def of_program(name: str, folder: Path, quick: bool, *options: str) -> dict[str, Any]:
    """What another benchmark, a file beside run.py, writes into the folder; raises NotMeasuredError if it fails."""
    command = [sys.executable, f"benchmarks/{name}.py", "--out", str(folder.resolve()), *options]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasuredError(done.stderr.strip() or f"{command[1]} ended with code {done.returncode}")
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def start_up(repeats: int) -> dict[str, float]:
    """Seconds until `import ocpgem` and `main.py --help` are done; the median."""
    commands = {
        "import_ocpgem_s": [sys.executable, "-c", "import ocpgem"],
        "main_help_s": [sys.executable, "main.py", "--help"],
    }
    found = {}
    for name, command in commands.items():
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        found[name] = statistics.median(times)
    return found
