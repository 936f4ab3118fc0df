"""The released models on the same weights and systems, in a Python that can import fairchem-core 1.10.0.

`compare` writes a model and its input for the released code and lets another Python run this file, which imports
nothing of ocpgem:

    PYTHON benchmarks/speed/released.py FOLDER REPEATS
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEARNING_RATE = 1e-6


def compare(
    python: str, potential: Any, batch: Any, predicted: dict[str, Any], repeats: int
) -> dict[str, float]:
    """Seconds and bytes of the released code in the Python interpreter `python`, and by how much its outputs differ.

    predicted: ours of `potential` on `batch`, energies and forces. Raises SystemExit if the other Python fails.
    """
    from ocpgem.models.import_weights.export import export_released

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_released(potential, folder / "model.pt")
        arrays = {
            key: batch[key].numpy()
            for key in ("pos", "cell", "natoms", "atomic_numbers", "tags", "fixed", "batch")
        }
        np.savez(folder / "input.npz", **arrays)
        command = [python, __file__, name, str(repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{python} could not run the released model:\n{done.stderr}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        with np.load(folder / "output.npz") as output:
            for key, value in predicted.items():
                ours = value.detach().cpu().numpy()
                # the released energies are [n_systems, 1] or [n_systems]
                difference = np.abs(ours - output[key].reshape(ours.shape)).max()
                found[f"released_{key}_relative_difference"] = float(difference / np.abs(output[key]).max())
        return found


def _released_model(folder: Path) -> torch.nn.Module:
    """The released model with its weights, none of fairchem's packages imported but those of the models."""
    root = Path(importlib.util.find_spec("fairchem").submodule_search_locations[0])  # type: ignore[union-attr,index]
    for name in ("core", "core.datasets", "core.models", "core.modules"):
        module = types.ModuleType("fairchem." + name)
        module.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules["fairchem." + name] = module
    container = torch.load(folder / "model.pt", weights_only=True)
    arguments = dict(container["config"]["model"])
    family = arguments.pop("name")
    if family == "gemnet_t":
        from fairchem.core.models.gemnet.gemnet import GemNetT as Released
    else:
        from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC as Released
    model = (
        Released(**arguments, otf_graph=True, use_pbc=True)
        if "otf_graph" not in arguments
        else Released(**arguments)
    )
    state = {key.removeprefix("module."): value for key, value in container["state_dict"].items()}
    state = {key.removeprefix("module."): value for key, value in state.items()}
    missing, unknown = model.load_state_dict(state, strict=False)
    if missing or unknown:
        raise SystemExit(f"weights do not fit: missing {missing}, unknown {unknown}")
    return model


def _batch(folder: Path) -> Any:
    from torch_geometric.data import Batch, Data

    with np.load(folder / "input.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    owner = tensors.pop("batch")
    cells = tensors.pop("cell").reshape(-1, 3, 3)
    natoms = tensors.pop("natoms")
    systems = []
    for number, count in enumerate(natoms.tolist()):
        own = {key: value[owner == number] for key, value in tensors.items()}
        systems.append(Data(**own, cell=cells[number : number + 1], natoms=count))
    batch = Batch.from_data_list(systems)
    batch.atomic_numbers = batch.atomic_numbers.long()
    return batch


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """As `timing.seconds`."""
    call()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _measure(folder: Path, repeats: int) -> dict[str, float]:
    model, batch = _released_model(folder), _batch(folder)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE)  # as fairchem makes it

    def forward() -> dict[str, torch.Tensor]:
        if model.regress_forces and not model.direct_forces:
            return model(batch)  # type: ignore[no-any-return]
        with torch.no_grad():
            return model(batch)  # type: ignore[no-any-return]

    def step() -> None:
        outputs = model(batch)
        (outputs["energy"].abs().mean() + outputs["forces"].norm(dim=-1).mean()).backward()
        optimizer.step()
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 0.001)
        optimizer.zero_grad()

    outputs = forward()
    np.savez(folder / "output.npz", **{key: outputs[key].detach().numpy() for key in ("energy", "forces")})
    return {
        "released_forward_s": _seconds(forward, repeats),
        "released_step_s": _seconds(step, repeats),
        "released_peak_process_gb": _peak_gb(),
    }


def _peak_gb() -> float:
    """Memory this process held at most; `ru_maxrss` would begin with that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("repeats", type=int)
    arguments = parser.parse_args(words)
    print(json.dumps(_measure(arguments.folder, arguments.repeats)))


if __name__ == "__main__":
    main()
