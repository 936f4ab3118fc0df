"""Which code a job runs: recorded at submission, and copied where the working tree will go on changing."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from ocpgem import __version__
from ocpgem.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]


def code_version(root: Path = ROOT) -> dict[str, Any]:
    """Version, git commit and whether tracked files differ from it; the commit is None outside a git checkout."""
    commit = _git(root, "rev-parse", "HEAD")
    return {
        "ocpgem": __version__,
        "root": str(root),
        "commit": commit.strip() if commit is not None else None,
        "changed": bool(commit is not None and (_git(root, "status", "--porcelain", "-uno") or "").strip()),
    }


def uncommitted_changes(root: Path = ROOT) -> str:
    """The difference of tracked files from the commit, as a patch."""
    return _git(root, "diff", "HEAD", "--binary") or ""


def copy_code(target: Path, root: Path = ROOT) -> Path:
    """Copy `main.py` and the package into `target` and return it, so that later changes do not reach a queued job."""
    if not (root / "main.py").is_file():
        raise RequestError(f"--snapshot-code copies a checkout, but {root} has no main.py")
    target.mkdir(parents=True)
    shutil.copy2(root / "main.py", target / "main.py")
    shutil.copytree(root / "ocpgem", target / "ocpgem", ignore=shutil.ignore_patterns("__pycache__"))
    return target


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
