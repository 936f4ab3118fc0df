"""The command line answers at once where it has nothing to compute."""

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.tiny_runs import ROOT, clean_environment, run_main

HEAVY = {
    "torch", "ase", "matplotlib", "numpy", "scipy", "pydantic", "deepspeed", "lmdb", "torch_geometric", "submitit",
    "yaml",
}  # fmt: skip


def test_help_imports_nothing_heavy_and_takes_less_than_a_second() -> None:
    code = "import sys, main; from ocpgem.cli import main as run\ntry:\n    run(['train', '--help'])\n"
    code += "finally:\n    print('modules:', *sys.modules)"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - begin
    text, _, modules = done.stdout.partition("modules:")
    assert "CONFIG" in text
    assert "ocpgem.cli" in modules.split()
    assert not HEAVY & set(modules.split())
    assert seconds < 1.0


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported when `code` has ended."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\ntry:\n    {code}\nfinally:\n    print('modules:', *sys.modules)",
        ],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.partition("modules:")[2].split())


def test_importing_ocpgem_imports_nothing_heavy() -> None:
    modules = modules_after("import ocpgem")
    assert "ocpgem" in modules
    assert not HEAVY & modules
    assert HEAVY & modules_after("import ocpgem, numpy") == {"numpy"}


def test_running_main_for_help_imports_nothing_heavy() -> None:
    run = "sys.argv[1:] = ['--help']; import runpy; runpy.run_path('main.py', run_name='__main__')"
    modules = modules_after(run)
    assert "ocpgem.cli" in modules
    assert not HEAVY & modules


def test_the_help_names_every_command_and_the_version_is_told() -> None:
    done = run_main("--help")
    assert done.returncode == 0
    for command in (
        "train",
        "fit-scales",
        "evaluate",
        "predict",
        "report",
        "data",
        "config",
        "models",
        "doctor",
    ):
        assert re.search(rf"^    {command}\s", done.stdout, re.MULTILINE), command
    assert run_main("--version").stdout.startswith("ocpgem 0.")


def test_a_wrong_command_line_is_one_line_that_names_the_mistake() -> None:
    for words, message in (
        (["trian"], "invalid choice: 'trian'"),
        ([], "required: COMMAND"),
        (["train"], "required: CONFIG"),
        (["evaluate", "run", "--batch-size", "0"], "'0' is not a whole number of at least 1"),
        (["predict", "run", "--data", "x", "--out", "y", "--workers", "-1"], "at least 0"),
        (
            ["predict", "run", "--data", "x", "--out", "y", "--dialect", "klingon"],
            "invalid choice: 'klingon'",
        ),
        (["train", "no.yml", "--nproc", "0"], "--nproc is 0"),
    ):
        done = run_main(*words)
        assert done.returncode == 2, words
        assert done.stderr.startswith("error: "), words
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_overrides_may_stand_behind_options_and_nothing_else_may(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    config.write_text("steps: 1\n")
    done = run_main("train", str(config), "--run-dir", str(tmp_path / "run"), "optim.lr=7")
    assert "optim.lr" in done.stderr
    assert done.returncode == 2
    done = run_main("train", str(config), "--run-dir", str(tmp_path / "run"), "--lr=7")
    assert "unrecognized arguments: --lr=7" in done.stderr
