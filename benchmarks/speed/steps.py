"""Seconds, memory and accuracy of a training step of a model of published size, on this machine."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed.costs import MODELS, keep_as_autograd, operations, systems_of, train_config
from benchmarks.speed.layers import captured, of_layer
from benchmarks.speed.process import peaks, seconds
from benchmarks.speed.structures import prepared
from benchmarks.speed.timing import product_rate
from ocpgem.graph.topology import Topology
from ocpgem.models.potential import Normalization, Potential, Predictions
from ocpgem.parallel.device import keep_freed_memory
from ocpgem.train.compiling import compile_blocks
from ocpgem.train.config import TrainConfig
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.run import set_precision
from ocpgem.train.step_cost import operations_of, step_cost

PRECISIONS = ("highest", "high", "bf16")
"""As in a training configuration; "high" is "highest" on a CPU."""
WAYS = (*PRECISIONS, "plain", "checkpointing", "compiled")
"""How a step is computed: in a precision; with dense chains as autograd would keep them; with activations computed
again; or with `compile: blocks`, the last three in float32."""


def potential_of(model: str, device: str) -> Potential:
    """One of `MODELS` with the weights that all measurements share, in training mode."""
    torch.manual_seed(0)
    return Potential(train_config(MODELS[model]).model, Normalization()).to(device)


def config_of(model: str, way: str) -> TrainConfig:
    """A training configuration of one of `MODELS`; way: one of `WAYS`."""
    precision = way if way in PRECISIONS else "highest"
    return train_config(MODELS[model], activation_checkpointing=way == "checkpointing", precision=precision)


def of_step(model: str, sizes: list[int], device: str, repeats: int, way: str) -> dict[str, Any]:
    """A training step of one of `MODELS`; memory is read before anything else is done.

    way: one of `WAYS`. What does not depend on how dense chains are kept is left out of "plain".
    """
    config, potential, batch, topology = _ready(model, sizes, device, way)
    potential.model.checkpoint_activations = config.activation_checkpointing
    if way == "plain":
        keep_as_autograd(potential)
    if way == "compiled":
        compile_blocks(potential, torch.device(device))
    optimizer = torch.optim.AdamW(potential.parameters(), lr=1e-6, fused=True)
    average = ExponentialMovingAverage(potential, 0.999)
    counts = GlobalCounts(topology.n_systems, topology.n_atoms)

    def step() -> None:
        predictions = potential(batch, topology)
        loss_share(predictions, batch, config.loss, potential.normalization, counts).backward()
        optimizer.step()
        average.update(1000)
        optimizer.zero_grad()

    found = {"atoms": topology.n_atoms, "edges": topology.main.n_edges, "step_s": seconds(step, repeats)}
    found |= peaks(device)
    if way in ("highest", "plain", "checkpointing"):
        found |= counted(model, sizes, device, way)
        found["step_over_floor"] = found["step_s"] / found["floor_of_step_s"]
    return found


def of_forward(model: str, sizes: list[int], device: str, repeats: int, way: str) -> dict[str, float]:
    """A forward pass without gradients of weights, its floor and the memory that it takes; way: one of `PRECISIONS`."""
    _, potential, batch, topology = _ready(model, sizes, device, way)

    def forward() -> None:
        _predictions(potential, batch, topology)

    found = {"forward_s": seconds(forward, repeats)}
    found |= {f"forward_{key}": peak for key, peak in peaks(device).items()}
    return found | {"floor_of_forward_s": _floor(forward, device)}


def _floor(call: Callable[[], object], device: str) -> float:
    """Seconds of the dense products of a call, see `product_rate`."""
    return operations_of(call) / product_rate(device)


def _ready(
    model: str, sizes: list[int], device: str, way: str
) -> tuple[TrainConfig, Potential, Any, Topology]:
    """What a run has when it begins to compute, in a process like that of a run."""
    config = config_of(model, way)
    set_precision(config, torch.device(device))
    if device == "cpu":
        keep_freed_memory()
    batch, topology = prepared(systems_of(model, tuple(sizes)), config.model.graph_spec)
    potential = potential_of(model, device)
    potential.train_in_bf16 = config.precision == "bf16"
    return config, potential, batch.to(device), topology.to(device)


def counted(model: str, sizes: list[int], device: str, way: str) -> dict[str, Any]:
    """What does not depend on the clock, and the time that the dense products of the step take alone."""
    config = config_of(model, way)
    batch, topology = prepared(systems_of(model, tuple(sizes)), config.model.graph_spec)
    cost, rate = step_cost(config, batch, topology, Normalization()), product_rate(device)
    found: dict[str, Any] = {
        "gflops_of_product": rate / 1e9,
        "products_of_step_gflop": cost.flops / 1e9,
        "floor_of_step_s": cost.flops / rate,
    }
    if way != "plain":  # counted on a model as it is
        found |= {"kept_gb": cost.kept_bytes / 1e9, "peak_counted_gb": cost.peak_bytes / 1e9}
    return found if way == "checkpointing" else found | operations(model, way == "plain")


def errors(model: str, sizes: list[int], device: str, precisions: list[str]) -> dict[str, dict[str, float]]:
    """How far energies and forces of each precision are from those of the same weights in float64.

    Differences are relative to the mean magnitude of the float64 energies (eV) or force vectors (eV/A).
    """
    batch, topology = prepared(systems_of(model, tuple(sizes)), potential_of(model, "cpu").graph_spec)
    batch, topology = batch.to(device), topology.to(device)
    exact = _predictions(potential_of(model, device).double(), batch, topology)
    assert exact.forces is not None
    found = {}
    for precision in precisions:
        set_precision(config_of(model, precision), torch.device(device))
        potential = potential_of(model, device)
        potential.train_in_bf16 = precision == "bf16"
        near = _predictions(potential, batch, topology)
        assert near.forces is not None
        energy = (near.energy - exact.energy).abs() / exact.energy.abs().mean()
        forces = (near.forces - exact.forces).norm(dim=1) / exact.forces.norm(dim=1).mean()
        found[precision] = {
            "energy_error_max": float(energy.max()),
            "energy_error_mean": float(energy.mean()),
            "forces_error_max": float(forces.max()),
            "forces_error_mean": float(forces.mean()),
        }
    return found


def _predictions(potential: Potential, batch: Any, topology: Any) -> Predictions:
    with torch.no_grad():
        found: Predictions = potential(batch, topology)
    return found


def of_interaction(model: str, name: str, sizes: list[int], device: str, repeats: int) -> dict[str, float]:
    """Seconds of an interaction layer of the first block alone; name: its attribute.

    `floor_s`: of the dense products of its forward pass, see `product_rate`.
    """
    _, potential, batch, topology = _ready(model, sizes, device, "highest")
    layer = getattr(potential.model.blocks[0], name)
    args, kwargs = captured(layer, lambda: potential(batch, topology))
    with torch.no_grad():
        floor = {"floor_s": _floor(lambda: layer(*args, **kwargs), device)}
    return of_layer(layer, args, kwargs, repeats) | floor
