"""The engine: fused updates, gradients that are not finite, precision, and what DeepSpeed is told."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe, TrainLoader
from tests.tiny_runs import random_systems
from tests.unit.train.engine_run import Run, same

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_gradient_that_is_not_finite_is_noticed_before_the_update_and_can_be_forgotten(stage: int) -> None:
    run, other = Run(stage=stage), Run(stage=stage)
    batch, topology = next(
        TrainLoader(
            Recipe(InMemoryDataset(list(random_systems(2))), run.potential.graph_spec), 2, seed=0
        ).steps()
    ).micro_batches[0]
    energy = run.engine.forward(batch, topology).energy.sum()
    share = torch.sqrt(energy * 0)  # finite, unlike its gradient
    assert torch.isfinite(share)
    run.engine.backward(share, last=True)
    assert not run.engine.gradient_is_finite()
    run.engine.discard()
    assert run.engine.gradient_is_finite()
    run.train(0, 2)
    other.train(0, 2)
    assert same(run.weights(), other.weights())


def test_bf16_reaches_the_dense_layers_inside_the_engine_and_only_in_training() -> None:
    run = Run()
    found = []
    dense = run.potential.model.blocks[0].dense
    handle = dense.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
    dataset = InMemoryDataset(list(random_systems(2)))
    (batch, topology), *_ = next(
        TrainLoader(Recipe(dataset, run.potential.graph_spec), 2, seed=0).steps()
    ).micro_batches
    run.potential.train_in_bf16 = True
    try:
        predicted = run.engine.forward(batch, topology)
        run.potential.eval()(batch, topology)
    finally:
        run.potential.train_in_bf16 = False
        run.potential.train()
        handle.remove()
    assert found == [torch.bfloat16, torch.float32]
    assert (predicted.energy.dtype, predicted.forces.dtype) == (torch.float64, torch.float32)


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.calls[func._schema.name.removeprefix("aten::")] += 1  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_weights_are_updated_by_fused_kernels_and_averaged_in_one_call(stage: int) -> None:
    run = Run(stage=stage)
    with Operations() as operations:
        run.train(0, 1)
    assert operations.calls["_fused_adamw_"] >= 1
    assert operations.calls["_foreach_lerp_"] == 1
    assert not {"addcdiv_", "_foreach_addcdiv_", "lerp_"} & set(operations.calls)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("overlap", [False, True])
def test_bucket_and_overlap_reach_deepspeed(stage: int, overlap: bool) -> None:
    engine = Run(stage=stage, exchange={"reduce_bucket": 123, "overlap": overlap}).engine
    assert engine._engine.zero_reduce_bucket_size() == engine._zero.reduce_bucket_size == 123
    assert engine._engine.zero_overlap_comm() is engine._zero.overlap_comm is overlap
    assert engine.sends_at_once is overlap
    assert engine.local_first is not overlap


def test_a_bucket_is_not_larger_than_the_model() -> None:
    engine = Run().engine
    assert engine._zero.reduce_bucket_size == sum(p.numel() for p in engine.potential.parameters())
