"""Whatever computes it, a model gives the numbers of the released code: each kernel, block size, padding, compilation.

`test_released_models.py` takes the way of this machine; here are the others, for one model of each kind of forces and
of graphs: energies, forces and the gradients of the recorded loss by all weights.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from ocpgem import kernels
from ocpgem.graph.buckets import Buckets
from ocpgem.graph.topology import Topology
from ocpgem.kernels import native
from ocpgem.models.gemnet import in_blocks
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.compiling import compile_blocks, compile_full, n_graphs
from tests.parity.reference_cases import ReferenceCase, needs_reference
from tests.parity.test_released_models import config_of, relative, released_model, renamed_gradients

pytestmark = needs_reference
NO_COMPILER = shutil.which("g++") is None
NAMES = ("fc_gemnet_dT", "fc_gemnet_T", "fc_gemnet_oc")
"""Direct forces, gradient forces, and all graphs."""


@dataclass
class Found:
    """What a model computed of a recorded case."""

    energy: Tensor
    forces: Tensor
    gradients: dict[str, Tensor]
    """Of the recorded loss, by the name of the weight."""


def released_potential(case: ReferenceCase, dtype: torch.dtype) -> Potential:
    """In training mode, as what is computed differently for the gradient is so only there."""
    potential = Potential(config_of(case), Normalization())
    potential.model.load_state_dict(released_model(case, torch.float32).state_dict())
    return potential.to(dtype).train()


def found_by(case: ReferenceCase, potential: Potential, topology: Topology) -> Found:
    batch = case.batch(potential.model.atom_embedding.weight.dtype)
    predicted = potential(batch, topology)
    assert predicted.forces is not None
    of_energy, of_forces = (torch.tensor(case.grads[key]) for key in ("_wE", "_wF"))
    loss = (of_energy * predicted.energy).sum() + (of_forces * predicted.forces).sum()
    named = dict(potential.model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    return Found(
        predicted.energy.detach(), predicted.forces.detach(), dict(zip(named, gradients, strict=True))
    )


def assert_gradients_agree(case: ReferenceCase, found: Found, tolerance: float) -> None:
    """Those of each weight, relative to the largest of them."""
    released = {key: torch.tensor(value) for key, value in case.grads.items() if not key.startswith("_")}
    expected = renamed_gradients(case, released)
    assert len(found.gradients) > 50
    for key, gradient in found.gradients.items():
        difference = float((gradient - expected[key]).abs().max())
        assert difference <= tolerance * float(expected[key].abs().max()), key


def assert_agrees_in_float64(case: ReferenceCase, found: Found) -> None:
    """Gradients are stored as float32, to the rounding of which they agree."""
    assert relative(found.energy.numpy(), case.outputs["energy64"]) < 1e-9
    assert relative(found.forces.numpy(), case.outputs["forces64"]) < 1e-9
    assert_gradients_agree(case, found, 1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_float32_differs_no_more_than_three_times_the_released_rounding(
    backend: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled functions compute float32 alone, and some of them only with a gradient ahead."""
    if backend == "native" and native.library()[0] is None:
        pytest.skip(native.library()[1])
    monkeypatch.setattr(kernels, "BACKEND", backend)
    case = ReferenceCase.load(name)
    potential = released_potential(case, torch.float32)
    found = found_by(case, potential, case.topology(potential.graph_spec))
    released = case.meta["f32_vs_f64"]
    assert np.abs(found.energy.numpy() - case.outputs["energy64"]).max() <= 3 * released["dE"]
    assert np.abs(found.forces.numpy() - case.outputs["forces64"]).max() <= 3 * released["dF"]
    assert_gradients_agree(case, found, 1e-4)  # 4e-6 were found for T and dT, 4e-5 for OC


def in_small_blocks(case: ReferenceCase, potential: Potential, topology: Topology) -> Found:
    """Of 256 rows, the fewest there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_blocks, "_CACHED", 1)
        assert topology.main.n_edges > 256
        return found_by(case, potential, topology)


def with_all_rows_together(case: ReferenceCase, potential: Potential, topology: Topology) -> Found:
    """As on a GPU."""
    with in_blocks.rows_as_on_gpu():
        return found_by(case, potential, topology)


def with_activation_checkpointing(case: ReferenceCase, potential: Potential, topology: Topology) -> Found:
    potential.model.checkpoint_activations = True
    return found_by(case, potential, topology)


def filled_up(case: ReferenceCase, potential: Potential, topology: Topology) -> Found:
    filled = Buckets().pad(topology)
    assert filled.padding is not None
    return found_by(case, potential, filled)


def filled_up_with_checkpointing(case: ReferenceCase, potential: Potential, topology: Topology) -> Found:
    potential.model.checkpoint_activations = True
    return filled_up(case, potential, topology)


Way = Callable[[ReferenceCase, Potential, Topology], Found]
WAYS: tuple[Way, ...] = (
    in_small_blocks,
    with_all_rows_together,
    with_activation_checkpointing,
    filled_up,
    filled_up_with_checkpointing,
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_float64_energies_forces_and_gradients_agree(way: Way, name: str) -> None:
    case = ReferenceCase.load(name)
    potential = released_potential(case, torch.float64)
    assert_agrees_in_float64(case, way(case, potential, case.topology(potential.graph_spec)))


@pytest.mark.slow  # makes the graphs of whole models, 20 to 60 s of computing each
@pytest.mark.timeout(900)
@pytest.mark.skipif(NO_COMPILER, reason="needs g++")
@pytest.mark.parametrize("how", ["blocks", "full"])
@pytest.mark.parametrize("name", ["fc_gemnet_dT", "fc_gemnet_oc"])
def test_compiled_models_agree_in_float64(name: str, how: str) -> None:
    """Without the C++ compiler, the last stage; `full` translates batches that are filled up."""
    torch._dynamo.reset()  # else other tests count against the limit of graphs, beyond which nothing is translated
    case = ReferenceCase.load(name)
    potential = released_potential(case, torch.float64)
    topology = case.topology(potential.graph_spec)
    compiling = compile_blocks if how == "blocks" else compile_full
    compiling(potential, torch.device("cpu"), backend="aot_eager")
    before = n_graphs()
    compute = found_by if how == "blocks" else filled_up
    assert_agrees_in_float64(case, compute(case, potential, topology))
    assert n_graphs() - before == 1
