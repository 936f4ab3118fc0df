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
LARGE: dict[str, Any] = json.loads((RESULTS / "speed_large.json").read_text())
COMPILED: dict[str, Any] = json.loads((RESULTS / "speed_compiled.json").read_text())


def test_tables_are_those_of_the_record() -> None:
    """`python benchmarks/recorded.py docs/performance.md speed` copies them."""
    assert with_recorded_tables(TEXT, [RECORD]) == TEXT
    copied = [first for first in tables(TEXT) if first in tables(RECORD)]
    assert [first.split("|")[1].strip() for first in copied] == ["its / ours", "model", "model"]


def test_records_are_what_follows_from_their_numbers() -> None:
    assert as_table(FOUND) == RECORD
    for found, name in ((FOUR, "four_systems"), (LARGE, "large"), (COMPILED, "compiled")):
        assert as_table(found) == (RESULTS / f"speed_{name}.md").read_text()


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


def ratios(name: str) -> tuple[str, str, str]:
    """Steps and forward passes, its over ours, and memory, ours over its, of the record of large models."""
    ours, its = LARGE["models"][name]["highest"], LARGE["released"][name]["float32"]
    times = [f"{its[key] / ours[key]:.2f}" for key in ("step_s", "forward_s")]
    return times[0], times[1], f"{ours['peak_process_gb'] / its['peak_process_gb']:.2f}"


def test_large_models_and_quadruplets_are_those_of_their_record() -> None:
    steps, passes, memory = ratios("GemNet-Q in the OC code")
    shown = (
        f"steps {steps} times (target 2), forward passes {passes} times as fast, with {memory} of the memory"
    )
    assert shown in TEXT
    alone = LARGE["models"]["TUM GemNet-Q"]["highest"]
    assert (
        f"The molecule model Q itself takes {alone['step_s']:.2f} s a step, of {alone['atoms']} atoms" in TEXT
    )
    pairs = zip(ratios("GemNet-OC-Large"), ratios("GemNet-XL"), strict=True)
    steps, passes, memory = (f"{large} and {wide}" for large, wide in pairs)
    shown = f"steps {steps} times, forward passes {passes} times as fast, with {memory} of the memory"
    assert shown in TEXT


def test_compiled_steps_are_those_of_their_record() -> None:
    ways = COMPILED["models"]["GemNet-dT"]
    blocks, full, usual = (ways[way] for way in ("blocks", "full", "highest"))
    shown = f"{blocks['step_s']:.2f} and {full['step_s']:.2f} s instead of {usual['step_s']:.2f} a step"
    assert shown in TEXT
    assert f"filled up from {usual['atoms']} to {full['atoms']} atoms" in TEXT
