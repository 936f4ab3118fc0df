"""Operations and bytes of a training step must not grow: counted at published sizes, so no clock is involved."""

import json

import pytest

from benchmarks.speed.costs import GUARDED, RECORDED, costs, operations

RECORD = "`python benchmarks/speed/costs.py --record` records a change that is meant"
MAY_GROW = {"flops": 1.005, "kept_bytes": 1.01, "peak_bytes": 1.02}
"""Other versions of torch may count a little differently."""


@pytest.mark.slow  # published models with tensors that have sizes and no content
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", GUARDED)
def test_a_step_costs_no_more_than_recorded(model: str) -> None:
    recorded = json.loads(RECORDED.read_text())[model]
    found = costs(model)
    assert found["edges"] == recorded["edges"], "the structures of the benchmark have changed"
    for quantity, factor in MAY_GROW.items():
        assert found[quantity] <= factor * recorded[quantity], f"{quantity} grew; {RECORD}"


@pytest.mark.slow  # as above
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["GemNet-dT", "GemNet-OC", "GemNet-T (gradient forces)"])
def test_a_step_that_keeps_no_activations_needs_no_more_memory_than_recorded(model: str) -> None:
    recorded = json.loads(RECORDED.read_text())[model]["peak_bytes_with_activation_checkpointing"]
    found = costs(model, checkpointing=True)["peak_bytes"]
    assert found <= MAY_GROW["peak_bytes"] * recorded, f"peak_bytes grew; {RECORD}"


@pytest.mark.parametrize("model", GUARDED)
def test_a_step_takes_no_more_kernels_than_recorded_and_waits_no_more(model: str) -> None:
    recorded = json.loads(RECORDED.read_text())[model]
    for quantity, value in operations(model).items():
        assert value <= recorded[quantity] * 1.02, f"{quantity} grew; {RECORD}"
