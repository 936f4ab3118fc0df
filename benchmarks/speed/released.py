"""The released models on our weights and systems, in a Python that can import fairchem-core 1.10.0.

`benchmarks.speed.beside` writes a model and its input into a folder and lets the other Python run this file, which
imports nothing of ocpgem:

    PYTHON benchmarks/speed/released.py FOLDER PART REPEATS [--device cuda] [--tf32]
"""

import argparse
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from benchmarks.speed.layers import captured, of_layer
from benchmarks.speed.process import allocator, peaks, seconds

LEARNING_RATE = 1e-6
ALL_NEIGHBORS = 1000
"""For `max_neighbors` 0, which the released code's settings allow and its code does not."""
OPEN_CELL = 100.0
"""The released search wants a cell even of molecules that are not periodic; in A."""


def released_model(folder: Path) -> Any:
    """The released model with its weights, none of fairchem's packages imported but those of the models."""
    root = Path(importlib.util.find_spec("fairchem").submodule_search_locations[0])  # type: ignore[union-attr,index]
    for name in ("core", "core.datasets", "core.models", "core.modules"):
        module = types.ModuleType("fairchem." + name)
        module.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules["fairchem." + name] = module
    container = torch.load(folder / "model.pt", weights_only=True)
    arguments = dict(container["config"]["model"])
    family = arguments.pop("name")
    limits = [key for key in arguments if key.startswith("max_neighbors")]
    arguments |= {key: arguments[key] or ALL_NEIGHBORS for key in limits}
    if family == "gemnet_t":
        from fairchem.core.models.gemnet.gemnet import GemNetT as Released
    else:
        from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC as Released
    model = Released(**arguments)
    state = {key.removeprefix("module."): value for key, value in container["state_dict"].items()}
    state = {key.removeprefix("module."): value for key, value in state.items()}
    missing, unknown = model.load_state_dict(state, strict=False)
    if missing or unknown:
        raise SystemExit(f"weights do not fit: missing {missing}, unknown {unknown}")
    return model


def batch_of(folder: Path) -> Any:
    from torch_geometric.data import Batch, Data

    with np.load(folder / "input.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    owner = tensors.pop("batch")
    cells, periodic = tensors.pop("cell").reshape(-1, 3, 3), tensors.pop("pbc").reshape(-1, 3)
    cells[~periodic.any(dim=1)] = OPEN_CELL * torch.eye(3)
    natoms = tensors.pop("natoms")
    systems = []
    for number, count in enumerate(natoms.tolist()):
        own = {key: value[owner == number] for key, value in tensors.items()}
        one = slice(number, number + 1)
        systems.append(Data(**own, cell=cells[one], pbc=periodic[one], natoms=count))
    batch = Batch.from_data_list(systems)
    batch.atomic_numbers = batch.atomic_numbers.long()
    return batch


def of_step(folder: Path, repeats: int, device: str) -> dict[str, float]:
    """Seconds and bytes of a training step."""
    model, batch = released_model(folder).to(device), batch_of(folder).to(device)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE)  # as fairchem makes it

    def step() -> None:
        outputs = model(batch)
        (outputs["energy"].abs().mean() + outputs["forces"].norm(dim=-1).mean()).backward()
        optimizer.step()
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 0.001)
        optimizer.zero_grad()

    return {"step_s": seconds(step, repeats), **peaks(device)}


def of_forward(folder: Path, repeats: int, device: str) -> dict[str, float]:
    """Seconds and bytes of a forward pass, whose outputs go to `output.npz`."""
    model, batch = released_model(folder).to(device).eval(), batch_of(folder).to(device)

    def forward() -> Any:
        with torch.set_grad_enabled(not model.direct_forces):
            return model(batch)

    found = {"forward_s": seconds(forward, repeats)}
    found |= {f"forward_{key}": peak for key, peak in peaks(device).items()}
    outputs = forward()
    arrays = {key: outputs[key].detach().cpu().numpy() for key in ("energy", "forces")}
    np.savez(folder / "output.npz", **arrays)
    return found


def of_interaction(folder: Path, repeats: int, device: str, name: str) -> dict[str, float]:
    """Seconds of an interaction layer of the first block."""
    model, batch = released_model(folder).to(device), batch_of(folder).to(device)
    layer = getattr(model.int_blocks[0], name)
    return of_layer(layer, *captured(layer, lambda: model(batch)), repeats)


def of_indices(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds of all graphs and indices that the model reads, and the number of its main edges."""
    model, batch = released_model(folder), batch_of(folder)

    def indices() -> int:
        if hasattr(model, "get_graphs_and_indices"):  # GemNet-OC
            return model.get_graphs_and_indices(batch)[0]["edge_index"].shape[1]
        return model.generate_interaction_graph(batch)[0].shape[1]

    return {"edges": indices(), "seconds": seconds(indices, repeats)}


def of_search(folder: Path, repeats: int, cutoff: float) -> dict[str, float]:
    """Seconds of the search for all pairs within a cutoff in A, and their number."""
    released_model(folder)  # makes its packages known
    from fairchem.core.common.utils import radius_graph_pbc

    batch = batch_of(folder)

    def search() -> int:
        return radius_graph_pbc(batch, cutoff, ALL_NEIGHBORS)[0].shape[1]

    return {"edges": search(), "seconds": seconds(search, repeats)}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parts = ("step", "forward", "trip_interaction", "quad_interaction", "indices", "search_6A", "search_12A")
    parser.add_argument("part", choices=parts)
    parser.add_argument("repeats", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tf32", action="store_true", help="multiply in TF32 on a GPU")
    arguments = parser.parse_args(words)
    torch.backends.cuda.matmul.allow_tf32 = arguments.tf32
    folder, repeats, device = arguments.folder, arguments.repeats, arguments.device
    calls: dict[str, Callable[[], dict[str, float]]] = {
        "step": lambda: of_step(folder, repeats, device),
        "forward": lambda: of_forward(folder, repeats, device),
        "indices": lambda: of_indices(folder, repeats),
        "search_6A": lambda: of_search(folder, repeats, 6.0),
        "search_12A": lambda: of_search(folder, repeats, 12.0),
    }
    call = calls.get(arguments.part, lambda: of_interaction(folder, repeats, device, arguments.part))
    print(json.dumps(call() | allocator()))


if __name__ == "__main__":
    main()
