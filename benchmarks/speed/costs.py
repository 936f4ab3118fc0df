"""What does not depend on the machine: operations, bytes, kernels and host synchronisations of a training step.

    python benchmarks/speed/costs.py --record

writes benchmarks/results/step_costs.json, which tests/unit/models/test_step_costs.py compares with the code as it is.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.speed.structures import SIZES, molecule, prepared, slabs
from ocpgem.kernels import torch_only
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.layers import Frugal
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.config import TrainConfig
from ocpgem.train.host_waits import HostWaits
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.step_cost import step_cost

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "benchmarks" / "results" / "step_costs.json"
MODELS: dict[str, dict[str, Any]] = {
    "GemNet-dT": {"variant": "gemnet_dT"},
    "GemNet-OC": {"variant": "gemnet_OC"},
    "GemNet-OC-Large": {"variant": "gemnet_OC_large"},
    "GemNet-XL": {"variant": "gemnet_XL"},
    "GemNet-T (gradient forces)": {"variant": "gemnet_T"},
    "TUM GemNet-T": {
        "variant": "gemnet_T",
        "n_blocks": 4,
        "atom_dim": 128,
        "edge_dim": 128,
        "radial_basis": {"name": "spherical_bessel", "n_radial": 6},
        "neighbors": {"cutoff": 5.0, "max_neighbors": 0},
        "layers": {"after_skip": 1, "atom": 2},
    },
    "TUM GemNet-Q": {"variant": "gemnet_Q"},
    "GemNet-Q in the OC code": {
        "variant": "gemnet_OC",
        "forces": "gradient",
        "atom_dim": 128,
        "edge_dim": 128,
        "radial_basis": {"name": "spherical_bessel", "n_radial": 6},
        "angular_basis": {"two_angle": "spherical_harmonics"},
        "neighbors": {"cutoff": 5.0, "max_neighbors": 0},
        "quadruplets": {"cutoff": 5.0, "max_neighbors": 0, "tags": None},
        "atom_edge": None,
        "atom_atom": None,
    },
}
"""Published sizes. The original GemNet-Q is no model of fairchem's; the last one comes nearest to it among those that
fairchem's GemNet-OC can be: its triplets and quadruplets alone."""
MOLECULE_MODELS = ("TUM GemNet-T", "TUM GemNet-Q", "GemNet-Q in the OC code")
LARGE_MODELS = ("GemNet-OC-Large", "GemNet-XL", "GemNet-Q in the OC code")
"""Beside the released code, two systems of these need more than 24 GB."""
GUARDED = (
    "GemNet-dT",
    "GemNet-OC",
    "TUM GemNet-T",
    "TUM GemNet-Q",
    "GemNet-T (gradient forces)",
    "GemNet-OC-Large",
    "GemNet-XL",
)


NO_KERNELS = ("empty", "new_empty", "promote_types", "result_type")
"""How the names of operations begin that start nothing on a device."""


class Operations(TorchDispatchMode):
    """Counts torch's operations that start a kernel on a GPU: no views, and nothing that only takes memory."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        is_view = any(
            returned.alias_info is not None and not returned.alias_info.is_write
            for returned in func._schema.returns  # type: ignore[attr-defined]
        )
        name = func.overloadpacket.__name__  # type: ignore[attr-defined]
        self.kernels += not is_view and not name.startswith(NO_KERNELS)
        return func(*args, **(kwargs or {}))


def systems_of(model: str, sizes: tuple[int, ...] = SIZES) -> list[Any]:
    """The systems a model is measured on: slabs or, for the molecule models, a molecule of 21 atoms per ten atoms."""
    if model in MOLECULE_MODELS:
        return [molecule(21, seed) for seed in range(sum(sizes) // 10)]
    return slabs(sizes)


def default_sizes(model: str) -> tuple[int, ...]:
    """Atoms of the systems of a step, where nothing else is asked for."""
    return SIZES[:1] if model in LARGE_MODELS else SIZES


def train_config(model: dict[str, Any], **changes: Any) -> TrainConfig:
    """A training configuration around a model."""
    settings = {"model": model, "data": {"train": "none", "batch_size": 2}, "steps": 1}
    return TrainConfig.model_validate(settings | changes)


def costs(name: str, checkpointing: bool = False) -> dict[str, int]:
    """Operations, kept and peak bytes of a step of one of `MODELS`, found without computing anything."""
    config = train_config(MODELS[name], activation_checkpointing=checkpointing)
    batch, topology = prepared(systems_of(name), config.model.graph_spec)
    found = step_cost(config, batch, topology, Normalization())
    return {
        "edges": topology.main.n_edges,
        "flops": found.flops,
        "kept_bytes": found.kept_bytes,
        "peak_bytes": found.peak_bytes,
    }


def keep_as_autograd(potential: Potential) -> None:
    """Let dense chains keep for the gradient what autograd would keep."""
    for part in potential.modules():
        if isinstance(part, Frugal):
            part.as_autograd = True


def operations(name: str, plain: bool = False) -> dict[str, int]:
    """Kernels and waits of a forward and a backward pass of a narrow model with the paths of one of `MODELS`.

    Kernels are those of torch's own operations, as a GPU has them. plain: dense chains as autograd would keep them.
    """
    config = GemNetConfig.model_validate(MODELS[name] | {"atom_dim": 8, "edge_dim": 8})
    batch, topology = prepared(systems_of(name, (20, 24))[:2], config.graph_spec)
    potential = Potential(config, Normalization()).train()
    if plain:
        keep_as_autograd(potential)
    counts = GlobalCounts(topology.n_systems, topology.n_atoms)
    loss_weights = train_config(MODELS[name]).loss
    with torch_only(), HostWaits() as waits, Operations() as forward:
        loss = loss_share(potential(batch, topology), batch, loss_weights, potential.normalization, counts)
    with torch_only(), waits, Operations() as backward:
        torch.autograd.grad(loss, list(potential.parameters()), allow_unused=True)
    return {
        "kernels_forward": forward.kernels,
        "kernels_backward": backward.kernels,
        "waits": waits.n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.relative_to(ROOT)}")
    arguments = parser.parse_args()
    found = {name: costs(name) | operations(name) for name in GUARDED}
    for name in GUARDED:
        found[name]["peak_bytes_with_activation_checkpointing"] = costs(name, checkpointing=True)[
            "peak_bytes"
        ]
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if arguments.record:
        RECORDED.write_text(text)


if __name__ == "__main__":
    main()
