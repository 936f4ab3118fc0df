"""Seconds and memory of the parts of a training step, on this machine."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.costs import MODELS, keep_as_autograd, operations, systems_of, train_config
from benchmarks.speed.released import compare
from benchmarks.speed.structures import prepared, slabs
from ocpgem.graph.neighbors import neighbor_search
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.step_cost import step_cost

ROOT = Path(__file__).resolve().parents[2]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The median of some times, after one call that does not count."""
    call()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def product_rate(device: str, repeats: int = 5) -> float:
    """FLOP/s of a [15000, 512] x [512, 512] product in float32."""
    left, right = torch.randn(15000, 512, device=device), torch.randn(512, 512, device=device)
    return 2 * 15000 * 512 * 512 / seconds(lambda: left @ right, repeats)


def of_model(
    name: str, sizes: tuple[int, ...], device: str, repeats: int, plain: bool, fairchem: str | None
) -> dict[str, Any]:
    """Forward, training step and memory of one of `MODELS`, beside the released code where there is one.

    plain: dense chains as autograd would keep them; what does not depend on that is left out. fairchem: a Python that
    has fairchem-core.
    """
    config = train_config(MODELS[name])
    batch, topology = prepared(systems_of(name, sizes), config.model.graph_spec)
    counted = step_cost(config, batch, topology, Normalization())
    torch.manual_seed(0)
    potential = Potential(config.model, Normalization()).to(device)
    if plain:
        keep_as_autograd(potential)
    batch, on_device = batch.to(device), topology.to(device)
    released = {}
    if fairchem is not None and not name.startswith("TUM"):  # first: little of ours is in memory beside it
        with torch.no_grad():
            predictions = potential(batch, on_device)
        predicted = {"energy": predictions.energy, "forces": predictions.forces}
        released = compare(fairchem, potential, batch, predicted, repeats)
    optimizer = torch.optim.AdamW(potential.parameters(), lr=1e-6, fused=True)
    average = ExponentialMovingAverage(potential, 0.999)
    counts = GlobalCounts(topology.n_systems, topology.n_atoms)

    def forward() -> None:
        with torch.no_grad():
            potential(batch, on_device)

    def step() -> None:
        loss_share(
            potential(batch, on_device), batch, config.loss, potential.normalization, counts
        ).backward()
        optimizer.step()
        average.update(1000)
        optimizer.zero_grad()

    rate = product_rate(device)
    found: dict[str, Any] = {
        "atoms": topology.n_atoms,
        "edges": topology.main.n_edges,
        "step_s": seconds(step, repeats),
        "gflops_of_product": rate / 1e9,
        "products_of_step_gflop": counted.flops / 1e9,
        "peak_process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if not plain:  # counted on a model as it is; without gradient all chains run alike
        found["forward_s"] = seconds(forward, repeats)
        found |= {"kept_gb": counted.kept_bytes / 1e9, "peak_counted_gb": counted.peak_bytes / 1e9}
    if device != "cpu":
        found["peak_device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    found["floor_of_step_s"] = counted.flops / rate
    found["step_over_floor"] = found["step_s"] / found["floor_of_step_s"]
    for part in ("forward", "step") if released else ():
        found[f"released_{part}_over_ours"] = released[f"released_{part}_s"] / found[f"{part}_s"]
    return found | released | operations(name, plain)


def of_graphs(n_systems: int, repeats: int) -> dict[str, float]:
    """Search and topology of some systems, in seconds."""
    systems = slabs(tuple(60 + 2 * (number % 16) for number in range(n_systems)))
    found = {}
    for cutoff in (6.0, 12.0):

        def search(cutoff: float = cutoff) -> None:
            for system in systems:
                neighbor_search(system.pos, system.cell, system.pbc, cutoff)

        found[f"search_{cutoff:g}A_s"] = seconds(search, repeats)
    for name in ("GemNet-dT", "GemNet-OC"):
        graph = GemNetConfig.model_validate(MODELS[name]).graph_spec
        found[f"topology_{name}_s"] = seconds(lambda graph=graph: prepared(systems, graph), repeats)
    return found


def scaling(device: str, repeats: int, quick: bool) -> dict[str, list[dict[str, float]]]:
    """A training step of a GemNet-dT of width 64 against neighbours, atoms and batch."""
    axes: dict[str, list[tuple[int, tuple[int, ...]]]] = {
        "neighbors": [(k, (100,)) for k in (10, 20, 30, 50, 70, 100)],
        "atoms": [(50, (n,)) for n in (20, 50, 100, 150, 225)],
        "batch": [(50, (75,) * n) for n in (1, 2, 4, 8, 16)],
    }
    result: dict[str, list[dict[str, float]]] = {}
    for axis, points in axes.items():
        result[axis] = []
        for k, sizes in points[:2] if quick else points:
            config = train_config(
                {"atom_dim": 64, "edge_dim": 64, "neighbors": {"cutoff": 10.0, "max_neighbors": k}}
            )
            batch, topology = prepared(slabs(sizes), config.model.graph_spec)
            torch.manual_seed(0)
            potential = Potential(config.model, Normalization()).to(device)
            batch, on_device = batch.to(device), topology.to(device)
            counts = GlobalCounts(topology.n_systems, topology.n_atoms)

            def step(
                potential: Potential = potential,
                batch: Any = batch,
                topology: Any = on_device,
                counts: GlobalCounts = counts,
                config: Any = config,
            ) -> None:
                predictions = potential(batch, topology)
                loss_share(predictions, batch, config.loss, potential.normalization, counts).backward()

            x = {"neighbors": k, "atoms": sizes[0], "batch": len(sizes)}[axis]
            result[axis].append({axis: x, "edges": topology.main.n_edges, "step_s": seconds(step, repeats)})
    return result


def of_program(name: str, quick: bool) -> dict[str, Any] | str:
    """What another benchmark, a file beside run.py, writes as JSON, or why it failed; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, f"benchmarks/{name}.py", "--out", folder, *(["--quick"] if quick else [])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr.strip() or f"{command[1]} ended with code {done.returncode}"
        found: dict[str, Any] = json.loads((Path(folder) / f"{name}.json").read_text())
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
