"""benchmarks/scaling.py and predict_scaling.py: what is computed from what was measured and counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.predict_scaling import Counted, Group, efficiency, predicted, scaled, step_seconds
from benchmarks.recorded import tables, with_recorded_tables, write
from benchmarks.speed import ranks as side_by_side
from ocpgem.train.scaling import LINKS, seconds_within

MODEL = Counted(
    per_gpu=4,
    batch=64,
    zero_stage=1,
    reduce_bucket=10**9,
    overlap=False,
    precision="highest",
    group=2,
    parameters=10**7,
    flops=10**12,
    kernels=1000,
    groups={2: Group(10**6, 100, 0.0), 4: Group(2 * 10**6, 300, 0.0), 8: Group(3 * 10**6, 500, 0.0)},
)


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.predict_scaling.unevenness", lambda ranks, per_rank: 0.0)


def ranks_found(weak: float, strong: float, all_reduce: float, computing: float) -> dict[str, Any]:
    return {
        "weak": weak,
        "strong": strong,
        "all_reduce_s": all_reduce,
        "computing_s": computing,
        "parameters": 10**6,
    }


def test_ranks_that_do_what_the_model_says_take_the_predicted_time() -> None:
    # An all-gather takes half an all-reduce; 4 processes on 2 cores take turns.
    found = {
        1: ranks_found(1.0, 2.0, 0.0, 0.5),
        2: ranks_found(1.0 + 1.5 * 0.1, 1.0 + 1.5 * 0.1, 0.1, 0.5),
        4: ranks_found(2.0 + 1.5 * 0.2, 1.0 + 1.5 * 0.2, 0.2, 1.0),
    }
    steps = side_by_side.predicted(found, cores=2)
    assert [(step.kind, step.ranks) for step in steps] == [
        ("weak", 2),
        ("weak", 4),
        ("strong", 2),
        ("strong", 4),
    ]
    for step in steps:
        assert step.by_cores == pytest.approx(step.measured)
        assert step.by_crowding == pytest.approx(step.measured)
    crowded = side_by_side.predicted(found | {2: found[2] | {"computing_s": 0.75}}, cores=2)[0]
    assert crowded.by_crowding == pytest.approx(1.5 + 1.5 * 0.1)


@pytest.mark.usefixtures("even")
def test_strong_scaling_divides_the_batch_and_enlarges_groups_where_systems_are_few() -> None:
    alone, gpu = step_seconds(MODEL, "A100-80GB"), "A100-80GB"
    links = LINKS[gpu]
    full = predicted(MODEL, alone, gpu, 8, MODEL.batch).usual
    assert full.alone == pytest.approx(2 * alone)
    assert full.within == pytest.approx(2 * seconds_within(10**6, 100, links))  # two micro-batches
    few = predicted(MODEL, alone, gpu, 256, MODEL.batch).usual
    assert MODEL.group_for(256, MODEL.batch) == 4
    assert few.alone == pytest.approx(alone / 16)
    assert few.within == pytest.approx(seconds_within(2 * 10**6, 300, links))
    assert efficiency(MODEL, alone, 8, MODEL.batch, 2 * alone) == pytest.approx(1.0)


@pytest.mark.usefixtures("even")
def test_a_step_takes_at_least_the_time_of_starting_its_kernels() -> None:
    ways = predicted(MODEL, 1e-4, "A100-80GB", 8, MODEL.batch)
    assert ways.usual.alone == pytest.approx(2 * 1000 * 10e-6)
    assert ways.usual.uneven == 0


@pytest.mark.usefixtures("even")
def test_a_slower_network_and_overlap_change_weak_scaling_as_they_must() -> None:
    found = scaled(MODEL, 0.5, "A100-80GB")
    for ways in found["weak"].values():
        assert ways.overlap.seconds < ways.usual.seconds <= ways.slow.seconds
    assert [ways.usual.alone for ways in found["weak"].values()] == [0.5] * 7
    steps = [ways.usual.seconds for ways in found["strong"].values()]
    assert steps == sorted(steps, reverse=True)


def test_tables_of_a_document_become_those_of_the_record(tmp_path: Path) -> None:
    write(tmp_path, "record", {"a": 1}, ["Words", "", "| a | b |", "|---|---|", "| 1 | 2 |"])
    assert json.loads((tmp_path / "record.json").read_text()) == {"a": 1}
    record = (tmp_path / "record.md").read_text()
    text = "Before\n\n| a | b |\n|---|---|\n| 0 | 0 |\n| 9 | 9 |\n\n| other |\n|---|\n| x |\n"
    changed = with_recorded_tables(text, [record])
    assert changed == "Before\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| other |\n|---|\n| x |\n"
    assert list(tables(changed)) == ["| a | b |", "| other |"]
