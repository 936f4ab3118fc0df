"""docs/performance.md shows what was recorded."""

import json
from typing import Any

from benchmarks.recorded import RESULTS, tables, with_recorded_tables
from benchmarks.speed.tables import as_table, fastest_product, with_floors
from tests.tiny_runs import ROOT

TEXT = (ROOT / "docs" / "performance.md").read_text()
RECORD = (RESULTS / "speed.md").read_text()
FOUND: dict[str, Any] = json.loads((RESULTS / "speed.json").read_text())
FOUR: dict[str, Any] = json.loads((RESULTS / "speed_four_systems.json").read_text())


def test_tables_are_those_of_the_record() -> None:
    """`python benchmarks/recorded.py docs/performance.md speed` copies them."""
    assert with_recorded_tables(TEXT, [RECORD]) == TEXT
    copied = [first for first in tables(TEXT) if first in tables(RECORD)]
    assert [first.split("|")[1].strip() for first in copied] == ["its / ours", "model"]


def test_records_are_what_follows_from_their_numbers() -> None:
    assert as_table(FOUND) == RECORD
    assert as_table(FOUR) == (RESULTS / "speed_four_systems.md").read_text()


def test_steps_over_their_floors_are_those_of_the_record() -> None:
    rate = fastest_product(FOUND)
    ratios = [with_floors(ways["highest"], rate)["step_over_floor"] for ways in FOUND["models"].values()]
    d_t, oc, t, molecules = (f"{ratio:.2f}" for ratio in ratios)
    assert (
        f"A step takes {d_t} (GemNet-dT), {oc} (GemNet-OC), {t} (GemNet-T) and {molecules} times (molecule model T)"
        in TEXT
    )


def test_turns_of_gemnet_oc_are_those_of_the_record() -> None:
    ours = FOUND["models"]["GemNet-OC"]["highest"]["rounds"]["step_s"]
    its = FOUND["released"]["GemNet-OC"]["float32"]["rounds"]["step_s"]
    shown = ["{:.2f}, {:.2f} and {:.2f} s".format(*turns) for turns in (ours, its)]
    assert f"The turns of GemNet-OC took {shown[0]}, those of the released code {shown[1]}" in TEXT


def test_ratios_of_four_slabs_are_those_of_their_record() -> None:
    memory: dict[str, list[str]] = {"highest": [], "checkpointing": []}
    times: dict[str, list[str]] = {"step_s": [], "forward_s": []}
    for name, its in FOUR["released"].items():
        for way, ratios in memory.items():
            own = FOUR["models"][name][way]["peak_process_gb"]
            ratios.append(f"{own / its['float32']['peak_process_gb']:.2f}")
        for key, ratios in times.items():
            ratios.append(f"{its['float32'][key] / FOUR['models'][name]['highest'][key]:.2f}")
    usual, sparing = (" and ".join(ratios) for ratios in memory.values())
    steps, passes = (" and ".join(ratios) for ratios in times.values())
    assert f"one measurement): {usual} (GemNet-dT, -OC), {sparing} with recomputation" in TEXT
    assert f"steps are {steps} times as fast, forward passes {passes} times" in TEXT
