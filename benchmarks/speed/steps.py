"""Seconds, memory and accuracy of a training step of a model of published size, on this machine."""

from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.speed.costs import operations, systems_of
from benchmarks.speed.layers import captured, of_layer
from benchmarks.speed.process import held_gb, peaks, seconds
from benchmarks.speed.ready import config_of, ready
from benchmarks.speed.structures import prepared
from benchmarks.speed.tf32 import Tf32Products
from benchmarks.speed.timing import product_rate
from ocpgem.models.potential import Normalization
from ocpgem.train.step_cost import operations_of, step_cost


def of_step(model: str, sizes: list[int], device: str, repeats: int, way: str) -> dict[str, Any]:
    """A training step of one of `MODELS`; memory is read before anything else is done.

    way: one of `WAYS`. What does not depend on how dense chains are kept is left out of "plain".
    """
    runtime_gb = held_gb()
    own = ready(model, tuple(sizes), device, way)
    weights = sum(weight.numel() * weight.element_size() for weight in own.potential.parameters())
    found = {"atoms": own.topology.n_atoms, "edges": own.topology.main.n_edges}
    # weights, both moments of AdamW, and the moving average
    found |= {"runtime_gb": runtime_gb, "state_gb": 4 * weights / 1e9}
    found |= {"step_s": seconds(own.training_step(), repeats), **peaks(device)}
    if way in ("highest", "plain", "checkpointing"):
        found |= counted(model, sizes, device, way)
    return found


def of_forward(model: str, sizes: list[int], device: str, repeats: int, way: str) -> dict[str, float]:
    """A forward pass of an evaluation, its products and the memory that it takes; way: "highest" or "high"."""
    own = ready(model, tuple(sizes), device, way)
    own.potential.eval()
    found = {"forward_s": seconds(own.predictions, repeats)}
    found |= {f"forward_{key}": peak for key, peak in peaks(device).items()}
    products = operations_of(own.predictions) / 1e9
    return found | {"products_of_forward_gflop": products, "gflops_of_product": product_rate(device)}


def counted(model: str, sizes: list[int], device: str, way: str) -> dict[str, Any]:
    """What does not depend on the clock, and how fast a product is."""
    config = config_of(model, way)
    batch, topology = prepared(systems_of(model, tuple(sizes)), config.model.graph_spec)
    cost = step_cost(config, batch, topology, Normalization())
    found: dict[str, Any] = {
        "gflops_of_product": product_rate(device),
        "products_of_step_gflop": cost.flops / 1e9,
    }
    if way != "plain":  # counted on a model as it is
        found |= {"kept_gb": cost.kept_bytes / 1e9, "peak_counted_gb": cost.peak_bytes / 1e9}
    return found if way == "checkpointing" else found | operations(model, way == "plain")


def errors(model: str, sizes: list[int], device: str, precisions: list[str]) -> dict[str, dict[str, float]]:
    """How far energies and forces of each precision are from those of the same weights in float64.

    Differences are relative to the mean magnitude of the float64 energies (eV) or force vectors (eV/A).
    """
    own = ready(model, tuple(sizes), device)
    own.potential.double()
    exact = own.predictions()
    assert exact.forces is not None
    found = {}
    for precision in precisions:
        rounds = precision == "high" and device == "cpu"
        with Tf32Products() if rounds else nullcontext():
            near = ready(model, tuple(sizes), device, precision).predictions()
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


def of_interaction(model: str, name: str, sizes: list[int], device: str, repeats: int) -> dict[str, float]:
    """Seconds of an interaction layer of the first block alone; name: its attribute.

    `products_gflop`: of its forward pass.
    """
    own = ready(model, tuple(sizes), device)
    layer = getattr(own.potential.model.blocks[0], name)
    args, kwargs = captured(layer, lambda: own.potential(own.batch, own.topology))
    with torch.no_grad():
        products = operations_of(lambda: layer(*args, **kwargs)) / 1e9
    found = of_layer(layer, args, kwargs, repeats)
    return found | {"products_gflop": products, "gflops_of_product": product_rate(device)}
