"""docs/scaling.md shows commands that run and tables that were recorded."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.predict_scaling import config_of, slab_cost
from benchmarks.recorded import RESULTS, tables, with_recorded_tables
from benchmarks.scaling import Case, n_parameters, settings
from benchmarks.scaling_table import MODELS, ONE, needed, write_slabs
from benchmarks.speed import ranks as side_by_side
from benchmarks.speed.costs import operations
from ocpgem.cli import main
from ocpgem.train.scaling import LINKS, messages
from tests.tiny_runs import ROOT, clean_environment

TEXT = (ROOT / "docs" / "scaling.md").read_text()


INPUTS = "| input |"


def recorded(name: str) -> dict[str, Any]:
    """What a benchmark wrote as JSON."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_tables_are_those_that_the_benchmarks_recorded() -> None:
    """`python benchmarks/recorded.py docs/scaling.md scaling predict_scaling scaling_table` copies them."""
    records = {
        name: (RESULTS / f"{name}.md").read_text() for name in ("scaling_table", "scaling", "predict_scaling")
    }
    assert with_recorded_tables(TEXT, records.values()) == TEXT
    known = {first for record in records.values() for first in tables(record)}
    assert [first for first in tables(TEXT) if first not in known and not first.startswith(INPUTS)] == []


def test_the_record_of_ranks_is_what_follows_from_its_numbers() -> None:
    found = recorded("scaling")
    ranks = {int(size): each for size, each in found["ranks"].items()}
    steps = side_by_side.predicted(ranks, found["machine"]["cores"])
    assert found["predicted"] == side_by_side.as_numbers(steps)
    for row in (
        *side_by_side.scaling_table(ranks, found["machine"]["cores"]),
        *side_by_side.prediction_table(steps),
    ):
        assert row in TEXT.splitlines()


def test_what_ranks_sent_is_what_the_formula_says_now() -> None:
    for size, each in recorded("scaling")["ranks"].items():
        model = settings(Case(4), Path("data"), 1, quick=False)["model"]
        assert each["parameters"] == n_parameters(model)
        for case in each["traffic"] if size != "1" else ():
            n = each["parameters"]
            sent = messages(n, case["zero_stage"], -(-n // case["buckets"]), case["overlap"])
            now = sum(message.sent(int(size)) for message in sent)
            assert case["formula_bytes"] == now, case["label"]
            assert case["sent_bytes"] <= now * 1.001, case["label"]
            assert case["sent_bytes"] == pytest.approx(now, rel=1e-3) or case["zero_stage"] == 3


def test_shares_of_graph_groups_are_those_that_were_recorded() -> None:
    rows = [cells(row) for row in (RESULTS / "graph_parallel.md").read_text().splitlines() if "GemNet" in row]
    kept = {row[0]: float(row[4]) for row in rows if row[2] == "4" and "," not in row[3]}
    grown = {row[0]: float(row[4]) for row in rows if row[2] == "4" and "," in row[3]}
    less = [float(row[-1].removesuffix(" x")) for row in rows if row[-1].endswith(" x")]
    xl, large = "GemNet-XL", "GemNet-OC-Large"
    assert f"(GemNet-XL {kept[xl]:.3f}, GemNet-OC-Large {kept[large]:.3f} of one rank's" in TEXT
    assert f"the process grows by {grown[xl]:.2f} and {grown[large]:.2f}" in TEXT
    assert f"sends {min(less):.0f} to {max(less):.0f} times fewer bytes" in TEXT


@pytest.mark.parametrize("model", MODELS)
def test_the_prediction_was_recorded_with_the_parameters_that_models_have_now(model: str) -> None:
    found, config = recorded("predict_scaling")["counted"][model], config_of(model)
    assert found["parameters"] == n_parameters(config.model.model_dump())
    assert found["group"] == config.parallel.graph
    assert found["batch"] == config.data.batch_size


@pytest.mark.slow  # a step with fake tensors of a published size each
@pytest.mark.parametrize("model", ["GemNet-dT", "GemNet-OC"])
def test_the_prediction_was_recorded_with_the_operations_that_models_have_now(model: str) -> None:
    found = recorded("predict_scaling")["counted"][model]
    assert found["flops"] == pytest.approx(slab_cost(config_of(model)).flops, rel=5e-4)  # 3 digits are shown
    kernels = operations(model)
    assert found["kernels"] == pytest.approx(
        kernels["kernels_forward"] + kernels["kernels_backward"], rel=0.02
    )


@pytest.mark.slow  # a dry run of a published size
def test_what_fits_was_recorded_with_what_a_dry_run_says_now(tmp_path: Path) -> None:
    write_slabs(tmp_path / "val", (4, 6, 4), 1)
    large = write_slabs(tmp_path / "large", (8, 7, 4), 8)
    now = needed("gemnet_dT.yml", large, ONE)
    assert recorded("scaling_table")["gb"]["GemNet-dT"]["one system"] == pytest.approx(now, abs=0.05)


def test_the_inputs_of_the_prediction_are_those_that_the_code_has() -> None:
    numbers = {
        row.split(" | ")[0].removeprefix("| ")[:1]: [float(cell) for cell in row.split(" | ")[1:4]]
        for row in TEXT[TEXT.index("| input |") : TEXT.index("Left out:")].splitlines()[2:]
        if row.startswith("| ")
    }
    links = [LINKS[name] for name in ("V100-32GB", "A100-80GB", "H100-80GB")]
    assert numbers == {
        "B": [link.in_node / 1e9 for link in links],
        "b": [link.between_nodes / 1e9 for link in links],
        "e": [link.reached for link in links],
        "l": [pytest.approx(1e6 * link.latency_in_node) for link in links],
        "L": [pytest.approx(1e6 * link.latency_between_nodes) for link in links],
    }


@pytest.mark.slow  # makes demo data and takes five dry runs
def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [shlex.split(line) for line in TEXT.splitlines() if line.startswith("python ")]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    data, *runs = commands
    program = [sys.executable, str(ROOT / data[1]), *data[2:], "--frames", "100", "--workers", "1"]
    subprocess.run(program, check=True, capture_output=True, env=clean_environment())
    assert len(runs) == 5
    for words in runs:
        assert words[:3] == ["python", "main.py", "train"]
        assert main(words[2:]) == 0, words
        assert re.search(r"total .* fits on V100-32GB", capsys.readouterr().out), words


def test_ratios_of_measured_to_predicted_steps_are_those_of_the_record() -> None:
    ratios: dict[int, list[str]] = {2: [], 4: []}
    for row in recorded("scaling")["predicted"]:
        ratios[row["ranks"]].append(f"{row['measured'] / row['by_crowding']:.2f}")
    two, four = sorted(ratios[2]), sorted(ratios[4])
    assert f"two ranks take {two[0]} to {two[1]} times the predicted step" in TEXT
    assert f"four on two cores {four[0]} and {four[1]} times" in TEXT
