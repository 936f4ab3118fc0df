"""Every benchmark starts as its first lines say: a plain `python benchmarks/NAME.py`, from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT, clean_environment

SCRIPTS = sorted(
    path for path in ROOT.glob("benchmarks/**/*.py") if '__name__ == "__main__"' in path.read_text()
)
PROGRAM = """
import os, runpy, sys
import torch, torch_geometric, ase.io  # once for all scripts
failed = []
for script in sys.argv[1:]:
    if child := os.fork():
        if os.waitpid(child, 0)[1]:
            failed.append(script)
        continue
    sys.path[0], sys.argv = os.path.dirname(script), [script, "--help"]
    runpy.run_path(script, run_name="__main__")
    os._exit(1)  # it did not look at its arguments
sys.exit(" ".join(failed) or 0)
"""


@pytest.mark.slow  # some twenty scripts, and what each imports
def test_every_benchmark_explains_itself(tmp_path: Path) -> None:
    environment = {key: value for key, value in clean_environment().items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, SCRIPTS)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(SCRIPTS) > 15
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(SCRIPTS)
