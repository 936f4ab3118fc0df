"""The speed benchmark runs as documented, on one small system."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.run import measure_in_turns, medians
from benchmarks.speed.beside import has_released
from benchmarks.speed.costs import MODELS, default_sizes, operations
from benchmarks.speed.layers import captured, leaves
from benchmarks.speed.machine import machine
from benchmarks.speed.process import NotMeasuredError, allocator, shown_command
from benchmarks.speed.ready import PRECISIONS
from benchmarks.speed.steps import counted
from benchmarks.speed.tables import as_table, fastest_product

ROOT = Path(__file__).resolve().parents[2]
MODEL = "TUM GemNet-T"
KERNELS = ("kernels_forward", "kernels_backward", "waits")
pytestmark = pytest.mark.timeout(900)  # the first test waits for a run of all parts


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a quick run of all parts, in which the released code cannot be run."""
    folder = tmp_path_factory.mktemp("speed")
    ways = ("--plain", "--checkpointing", "--precisions", "highest,bf16", "--fairchem", "/bin/false")
    done = run("--quick", "--models", MODEL, *ways, "--device", "cpu", "--out", str(folder))
    assert done.returncode == 1, done.stderr
    assert f"{MODEL} (released) could not be measured: /bin/false" in done.stderr
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "speed.json").read_text())
    return found


def exchanges(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["label"]: each for each in result["ranks"]["ranks"]["2"]["traffic"]}


@pytest.mark.slow  # starts processes that import torch, and measures a model of published size
def test_quick_run_writes_results_and_figure_also_when_something_cannot_be_measured(
    folder: Path, result: dict[str, Any]
) -> None:
    model = result["models"][MODEL]["highest"]
    assert model["waits"] == 0
    assert 0 < model["forward_s"] < model["step_s"]
    floor_s = model["products_of_forward_gflop"] / fastest_product(result)
    assert 0 < floor_s < model["forward_s"]
    assert 0 < model["runtime_gb"] + model["state_gb"] < model["peak_process_gb"]
    assert 0 < model["forward_peak_process_gb"] < model["peak_process_gb"]
    assert result["machine"]["versions"]["torch"] == torch.__version__
    assert result["machine"]["processor"]
    for found in result["scaling"].values():
        assert set(found) == {"neighbors", "atoms", "batch"}
        assert all(point["kept_gb"] < point["peak_counted_gb"] for point in found["batch"])
    table = (folder / "speed.md").read_text()
    assert "main help" in table
    assert f"{MODEL} (released) could not be measured" in table
    assert "triplet interaction of GemNet-dT (released) could not be measured" in table
    assert (folder / "speed_scaling.svg").stat().st_size > 1000
    assert "| GemNet-OC | batch | 2 |" in table


@pytest.mark.slow  # shares the run of the test above
def test_the_row_of_plain_chains_is_theirs_in_every_cell(result: dict[str, Any]) -> None:
    plain = result["models"][MODEL]["plain"]
    assert {key: plain[key] for key in KERNELS} == operations(MODEL, plain=True)
    assert plain["step_s"] > 0
    assert not {"forward_s", "kept_gb", "peak_counted_gb"} & set(plain)  # which are those of all chains


@pytest.mark.slow  # runs narrow models of published structure
def test_plain_chains_of_a_model_with_direct_forces_need_other_kernels() -> None:
    plain, usual = (counted("GemNet-dT", [20], "cpu", way) for way in ("plain", "highest"))
    assert {key: plain[key] for key in KERNELS} == operations("GemNet-dT", plain=True)
    assert {key: plain[key] for key in KERNELS} != {key: usual[key] for key in KERNELS}


@pytest.mark.slow  # shares the run of the test above
def test_checkpointing_holds_fewer_tensors(folder: Path, result: dict[str, Any]) -> None:
    ways = result["models"][MODEL]
    assert ways["checkpointing"]["kept_gb"] < ways["highest"]["kept_gb"]
    assert ways["checkpointing"]["peak_counted_gb"] < ways["highest"]["peak_counted_gb"]
    assert ways["checkpointing"]["peak_process_gb"] > ways["checkpointing"]["peak_counted_gb"]
    table = (folder / "speed.md").read_text()
    assert "## Other ways of computing a step" in table
    assert f"| {MODEL} | `activation_checkpointing: true` |" in table


@pytest.mark.slow  # shares the run of the test above
def test_errors_of_bf16_are_those_of_bf16_and_of_float32_those_of_float32(
    folder: Path, result: dict[str, Any]
) -> None:
    errors = result["errors"][MODEL]
    assert list(errors) == list(PRECISIONS)
    for key in ("energy", "forces"):
        assert errors["highest"][f"{key}_error_max"] < 1e-4
        assert errors["highest"][f"{key}_error_max"] < errors["high"][f"{key}_error_mean"]
        assert errors["high"][f"{key}_error_max"] < errors["bf16"][f"{key}_error_max"]
        assert 1e-4 < errors["bf16"][f"{key}_error_mean"] <= errors["bf16"][f"{key}_error_max"] < 1
    assert result["models"][MODEL]["bf16"]["step_s"] > 0
    assert (folder / "speed.md").read_text().count(f"| {MODEL} | bf16 |") == 2


@pytest.mark.slow  # shares the run of the test above
def test_layers_and_graphs_are_measured_alone(folder: Path, result: dict[str, Any]) -> None:
    layers = result["layers"]
    assert set(layers) == {"triplet interaction of GemNet-dT", "quadruplet interaction of GemNet-OC"}
    for found in layers.values():
        assert 0 < found["ours"]["forward_s"] < found["ours"]["forward_backward_s"]
    graphs = {label: found["ours"]["edges"] for label, found in result["graphs"].items()}
    assert graphs["all pairs within 12 A"] > 4 * graphs["all pairs within 6 A"]
    assert graphs["graphs and indices of GemNet-dT"] <= graphs["all pairs within 6 A"]
    assert "## Parts alone" in (folder / "speed.md").read_text()


def test_the_arguments_of_a_layer_are_cut_off_and_keep_what_needs_a_gradient() -> None:
    weight = torch.ones(2, requires_grad=True)
    layer = nn.Bilinear(2, 2, 1)
    (first, second), _ = captured(layer, lambda: layer(2 * weight, torch.ones(2)))
    assert first.is_leaf
    assert first.tolist() == [2, 2]
    assert leaves([{"first": first}, (second,)])[0] is first
    assert len(leaves([first, second])) == 1


def test_large_models_are_measured_on_one_system_unless_others_are_asked_for() -> None:
    assert default_sizes("GemNet-XL") == (58,)
    assert default_sizes("GemNet-dT") == (58, 104)


def test_all_but_the_original_q_have_a_released_counterpart() -> None:
    assert {name for name in MODELS if not has_released(name)} == {"TUM GemNet-Q"}


def test_the_allocator_that_was_preloaded_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc_minimal.so.4")
    assert allocator()["ld_preload"] == "libtcmalloc_minimal.so.4"
    monkeypatch.delenv("LD_PRELOAD")
    assert set(allocator()) == {"allocator"}


@pytest.mark.slow  # shares the run of the test above
def test_loader_and_ranks_are_part_of_it(folder: Path, result: dict[str, Any]) -> None:
    rates = result["loader"]["systems_per_second"]
    assert set(rates) == {"search", "stored edges", "pickled with edges"}
    assert all(value > 0 for value in rates.values())
    for each in result["ranks"]["ranks"].values():
        assert min(each["weak"], each["strong"], each["all_reduce_s"]) > 0
    table = (folder / "speed.md").read_text()
    assert "| stored edges | " in table
    assert "| 2 | " in table


@pytest.mark.slow  # shares the run of the test above
def test_the_gradients_that_ranks_send_are_those_of_the_formula(result: dict[str, Any]) -> None:
    ranks = result["ranks"]["ranks"]
    size = 4 * ranks["2"]["parameters"]
    assert ranks["1"]["traffic"][0]["sent_bytes"] == 0
    for label, each in exchanges(result).items():
        gathered = 0 if label.startswith("ZeRO-0") else size
        assert each["collectives"]["all_reduce"]["bytes"] == size, label
        # Each rank's part is filled up to a multiple of a few numbers.
        assert each["collectives"].get("all_gather", {"bytes": 0})["bytes"] == pytest.approx(
            gathered, rel=1e-3
        )
        assert each["sent_bytes"] == pytest.approx(each["formula_bytes"], rel=1e-3)
        assert each["agreements"] < 10


@pytest.mark.slow  # shares the run of the test above
def test_small_buckets_are_more_messages_and_overlap_sends_them_during_the_backward_pass(
    result: dict[str, Any],
) -> None:
    each = exchanges(result)
    assert each["ZeRO-1, 1 bucket"]["collectives"]["all_reduce"]["calls"] == 1
    for label in ("ZeRO-1, 8 buckets", "ZeRO-1, 8 buckets, overlap"):
        assert each[label]["collectives"]["all_reduce"]["calls"] > 4, label
    early = {label: numbers["sent_during_backward"] for label, numbers in each.items()}
    assert early.pop("ZeRO-1, 8 buckets, overlap") > 0.5
    assert set(early.values()) == {0.0}
    assert all(numbers["products"] > 50 for numbers in each.values())


def test_medians_of_rounds() -> None:
    rounds = [{"step_s": step_s, "atoms": 162, "allocator": "tcmalloc"} for step_s in (5.0, 9.0, 6.0, 7.0)]
    found = medians(rounds)
    assert found.pop("rounds") == {"step_s": [5.0, 9.0, 6.0, 7.0]}
    assert found == {"step_s": 6.5, "atoms": 162, "allocator": "tcmalloc"}


def test_both_codes_take_turns_until_one_of_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ours(**given: Any) -> dict[str, Any]:
        asked.append("ours")
        return {"step_s": float(len(asked))}

    def its(*given: Any) -> dict[str, Any]:
        asked.append("its")
        raise NotMeasuredError("no memory")

    monkeypatch.setattr("benchmarks.run.step_and_forward", ours)
    monkeypatch.setattr("benchmarks.run.released_steps", its)
    found: dict[str, Any] = {"failed": {}, "models": {}, "released": {}}
    given = argparse.Namespace(device="cpu", repeats=1, rounds=3, fairchem="python")
    measure_in_turns(MODEL, (20,), given, found)
    assert asked == ["ours", "its", "ours", "ours"]
    assert found == {
        "failed": {f"{MODEL} (released)": "no memory"},
        "models": {MODEL: {"highest": {"step_s": 3.0, "rounds": {"step_s": [1.0, 3.0, 4.0]}}}},
        "released": {},
    }


def test_the_best_step_is_held_against_the_fastest_product() -> None:
    result: dict[str, Any] = {
        key: {} for key in ("failed", "errors", "released", "layers", "graphs", "start_up")
    }
    own = {"step_s": 3.0, "products_of_step_gflop": 200, "gflops_of_product": 80.0}
    rounds = {"step_s": [4.0, 3.0, 2.5], "gflops_of_product": [80.0, 100.0, 70.0]}
    facts = machine() | {"gflops_of_product": 90.0}
    result |= {"machine": facts, "models": {MODEL: {"highest": own | {"rounds": rounds}}}}
    assert fastest_product(result) == 100
    table = as_table(result)
    assert f"| {MODEL} | 3.00 | 2.00 | 1.25 |" in table
    assert "## Parts alone" not in table  # of a run with --models-only


def test_ratios_and_memory_beside_the_released_code() -> None:
    result: dict[str, Any] = {key: {} for key in ("failed", "errors", "layers", "graphs", "start_up")}
    ours = {"atoms": 9, "forward_s": 1.0, "step_s": 3.0, "rounds": {"step_s": [4.0, 3.0, 2.5]}}
    ours |= {"runtime_gb": 0.5, "state_gb": 1.0, "peak_counted_gb": 1.5, "peak_process_gb": 4.0}
    its = {"forward_s": 2.0, "step_s": 6.0, "peak_process_gb": 8.0, "rounds": {"step_s": [6.0, 5.0, 7.0]}}
    its |= {"energy_relative_difference": 1e-6, "forces_relative_difference": 1e-6}
    models, released = {MODEL: {"highest": ours}}, {MODEL: {"float32": its}}
    table = as_table(result | {"machine": machine(), "models": models, "released": released})
    assert (
        f"| {MODEL} | 9 | 1.00 | 2.00 | 2.00 | 2.00 | 3.00 | 6.00 | 2.00 | 2.00 | 4.00 | 8.00 | 0.50 |"
        in table
    )
    assert f"| {MODEL} |  | 0.50 | 1.00 | 1.50 | 3.00 | 4.00 | 8.00 | 0.38 | 0.50 | 0.40 |" in table
    assert f"| {MODEL}, step | 2.50 | 2.00 | 2.00 |" in table


@pytest.mark.parametrize("words", [["--fairchem", "a b/python"], ["--fairchem=a b/python"], []])
def test_the_record_names_no_place_on_this_machine(words: list[str]) -> None:
    given = [
        "/some/folder/benchmarks/run.py",
        "--rounds",
        "3",
        *words,
        "--out",
        "somewhere",
        "--device",
        "cpu",
    ]
    python = "a b/python" if words else None
    assert re.fullmatch(
        r"python benchmarks/run.py --rounds 3( --fairchem[ =]PYTHON)? --device cpu",
        shown_command(given, python),
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--models-only", "--quick"),
        ("--models", "GemNet-Z"),
        ("--sizes", "5"),
        ("--sizes", "many"),
        ("--precisions", "fp16"),
        ("--rounds", "0"),
        ("--repeats", "0"),
    ],
)
def test_a_wrong_request_says_so(option: str, value: str) -> None:
    done = run("--device=cpu", option, value)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
