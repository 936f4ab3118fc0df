"""Where SLURM cannot be installed: the script says why, the tests skip with that reason, and CI fails."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT

INSTALLED = shutil.which("sbatch")
POLICY = Path("/usr/sbin/policy-rc.d")
PYTEST = (
    f"{sys.executable} -m pytest -q -rs -p no:cacheprovider -p no:xdist tests/slurm/test_runs.py -k in_use"
)


def without_slurm(
    command: str, tmp: Path, path: str = "", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a command where there is no sbatch: where it is installed, a mount namespace of its own hides it."""
    words = ["bash", "-c", command]
    if INSTALLED:
        hidden = tmp / "hidden"
        hidden.mkdir(exist_ok=True)
        if not (hidden / "sbatch").exists():
            os.mknod(hidden / "sbatch", stat.S_IFCHR)  # a whiteout: an overlay shows no such file
        folder = Path(INSTALLED).parent.resolve()
        mount = f"mount -t overlay overlay -o lowerdir={hidden}:{folder} {folder}"
        words = ["unshare", "--mount", "bash", "-c", f'{mount} && exec bash -c "$0"', command]
    kept = {key: value for key, value in os.environ.items() if key != "OCPGEM_REQUIRE_SLURM"}
    kept["PATH"] = f"{path}:{kept['PATH']}" if path else kept["PATH"]
    return subprocess.run(
        words, cwd=ROOT, env=kept | environ, capture_output=True, text=True, check=False, timeout=280
    )


@pytest.fixture(autouse=True)
def _able(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("installing SLURM needs root")
    if INSTALLED and without_slurm("! command -v sbatch", tmp_path).returncode != 0:
        pytest.skip("this machine does not let a program hide sbatch from itself (unshare, overlay)")


def test_an_installation_that_fails_says_why_and_leaves_nothing_behind(tmp_path: Path) -> None:
    fake = tmp_path / "apt-get"
    fake.write_text("#!/bin/sh\necho 'E: Unable to fetch some archives'\nexit 100\n")
    fake.chmod(0o755)
    policy = POLICY.exists()
    done = without_slurm("slurm/local_cluster.sh install", tmp_path, str(tmp_path), TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "E: Unable to fetch some archives" in done.stderr
    assert "local_cluster.sh: apt-get could not install slurmctld" in done.stderr
    assert POLICY.exists() == policy
    told = without_slurm("make -s slurm", tmp_path, str(tmp_path), TMPDIR=str(tmp_path))
    assert told.returncode == 0, "the other tests are to run"
    assert "without SLURM: its tests will say so" in told.stdout


@pytest.mark.slow  # two starts of pytest with torch
@pytest.mark.timeout(600)
def test_without_slurm_the_tests_skip_with_the_reason_and_fail_in_ci(tmp_path: Path) -> None:
    reason = "SLURM is not installed (sbatch missing); install it with slurm/local_cluster.sh install"
    if not INSTALLED:
        reason = "SLURM is not installed ("
    skipped = without_slurm(PYTEST, tmp_path)
    assert skipped.returncode == 0, skipped.stdout
    assert "1 skipped" in skipped.stdout
    assert reason in " ".join(skipped.stdout.split())
    failed = without_slurm(PYTEST, tmp_path, OCPGEM_REQUIRE_SLURM="1")
    assert failed.returncode == 1, failed.stdout
    assert reason in " ".join(failed.stdout.split())
    assert "OCPGEM_REQUIRE_SLURM=1" in (ROOT / ".ci" / "run").read_text()
