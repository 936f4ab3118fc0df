"""An optimiser after its state was restored: it holds what it would have made itself, where it needs it."""

import pytest
import torch

from ocpgem.data.batch import collate
from ocpgem.errors import CheckpointError
from ocpgem.graph.topology import build_topology
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.config import OptimSection
from ocpgem.train.engine import Engine
from ocpgem.train.engine_state import OptimizerState, restore
from ocpgem.train.parallel_section import ParallelSection
from tests.tiny_runs import random_systems, tiny_config

pytestmark = pytest.mark.usefixtures("process_group")


def engine_of(stage: int) -> Engine:
    parallel = ParallelSection.model_validate({"zero_stage": stage})
    potential = Potential(tiny_config().model, Normalization())
    return Engine(potential, OptimSection(), parallel, torch.device("cpu"))


def take_a_step(engine: Engine) -> None:
    batch = collate(list(random_systems(2)))
    spec = engine.potential.graph_spec
    topology = build_topology(batch.pos, batch.cell, batch.pbc, batch.natoms, spec)
    engine.backward(engine.forward(batch, topology).forces.square().sum(), last=True)
    engine.step(1e-3)


def kinds(engine: Engine) -> list[dict[str, tuple[torch.dtype, torch.Size, torch.device]]]:
    """Of the tensors that the optimiser keeps."""
    return [
        {name: (value.dtype, value.shape, value.device) for name, value in state.items()}
        for state in engine._optimizer.state.values()
    ]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_restored_optimiser_holds_what_one_that_has_taken_a_step_holds(stage: int) -> None:
    stepped, restored = engine_of(stage), engine_of(stage)
    take_a_step(stepped)
    restored.load_state(stepped.state())
    assert kinds(stepped)
    assert kinds(restored) == kinds(stepped)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_state_of_other_shapes_is_refused(stage: int) -> None:
    engine = engine_of(stage)
    take_a_step(engine)
    name = "model.atom_embedding.weight"
    wrong = engine.state()
    wrong.optimizer.moments["exp_avg"][name] = wrong.weights[name][:1]  # copying it would fill all rows
    with pytest.raises(CheckpointError, match=r"its optimiser state \(exp_avg\) is that of another model"):
        engine.load_state(wrong)
    wrong.weights[name] = wrong.weights[name][:1]
    with pytest.raises(CheckpointError, match="its weights are those of another model"):
        engine.load_state(wrong)


def test_a_restored_optimiser_counts_steps_where_its_parameters_are() -> None:
    """As the fused kernels of a GPU need it; a device without memory shows it on every machine."""
    module = torch.nn.Linear(2, 1, device="meta")
    optimizer = torch.optim.AdamW(module.parameters())
    moments = {name: torch.ones(parameter.shape) for name, parameter in module.named_parameters()}
    saved = OptimizerState({"exp_avg": moments, "exp_avg_sq": moments}, {"step": 3.0})
    restore(module, optimizer, 0, saved)
    steps = [state["step"] for state in optimizer.state.values()]
    assert [(step.device.type, step.dtype) for step in steps] == [("meta", torch.float32)] * 2
