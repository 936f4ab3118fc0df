"""A real SLURM cluster of four nodes, started once for all tests of a worker (slurm/local_cluster.sh)."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.tiny_runs import ROOT

SCRIPT = ROOT / "slurm" / "local_cluster.sh"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The running cluster. Skips, or fails where OCPGEM_REQUIRE_SLURM is set as in CI, where there is no SLURM."""
    reason = _missing()
    if reason is not None:
        (pytest.fail if os.environ.get("OCPGEM_REQUIRE_SLURM") else pytest.skip)(reason)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    folder = Path(tempfile.mkdtemp(prefix="ocpgem-slurm-"))
    found = Cluster(folder / "c", 17_000 + 100 * (os.getpid() % 20) + 2_000 * (worker % 4))
    found.control("start")
    before, directory = os.environ.get("SLURM_CONF"), Path.cwd()
    os.chdir(folder)  # submit keeps its list of jobs below the working directory
    os.environ["SLURM_CONF"] = str(found.folder / "slurm.conf")
    try:
        yield found
    finally:
        os.chdir(directory)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        found.control("stop")
        shutil.rmtree(folder, ignore_errors=True)


def _missing() -> str | None:
    """Why there can be no cluster here, None where there can."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [
        name
        for name in ("slurmctld", "slurmd", "sbatch", "slurmdbd", "munged", "mariadbd")
        if not shutil.which(name, path=path)
    ]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)} missing); install it with slurm/local_cluster.sh install"
    if os.getuid() != 0:
        return "a SLURM cluster on one machine needs root"
    done = subprocess.run([SCRIPT, "env"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"slurm/local_cluster.sh does not run here: {done.stderr}"
