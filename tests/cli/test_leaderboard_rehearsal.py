"""The rehearsal of a leaderboard submission goes all the way on its own, with the first frames of the real archives."""

import lzma
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_runs import ROOT, clean_environment

SHARED = ROOT.parent / "shared" / "data" / "oc20"


def frames(archive: Path) -> Iterator[str]:
    """The frames of an archive as text."""
    with lzma.open(archive, "rt") as file:
        for line in file:
            yield line + "".join(next(file) for _ in range(int(line) + 1))


def copy_few(source: Path, chunk: int, target: Path, per_system: int, n: int) -> None:
    """The first frames of the systems of an archive, at most n."""
    target.mkdir(exist_ok=True)
    labels = lzma.decompress((source / "0.txt.xz").read_bytes()).decode().splitlines(keepends=True)
    seen: Counter[str] = Counter()
    kept: list[tuple[str, str]] = []
    for label, frame in zip(labels, frames(source / "0.extxyz.xz"), strict=False):
        system = label.partition(",")[0]
        seen[system] += 1
        if seen[system] <= per_system:
            kept.append((label, frame))
        if len(kept) == n:
            break
    (target / f"{chunk}.txt.xz").write_bytes(lzma.compress("".join(each[0] for each in kept).encode()))
    (target / f"{chunk}.extxyz.xz").write_bytes(lzma.compress("".join(each[1] for each in kept).encode()))


@pytest.mark.slow  # sixteen processes, each with its imports: a minute on a quiet machine
@pytest.mark.timeout(1800)
def test_the_quick_rehearsal_writes_a_sound_submission_and_nothing_elsewhere(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    source, work = tmp_path / "raw", tmp_path / "work"
    source.mkdir()
    for chunk in range(5):
        copy_few(SHARED / "s2ef_train", chunk, source / "s2ef_train", 2, 2)
    copy_few(SHARED / "s2ef_val_id", 0, source / "s2ef_val_id", 2, 6)
    for split in ("id", "ood_ads", "ood_cat", "ood_both"):
        copy_few(SHARED / f"s2ef_test_{split}", 0, source / f"s2ef_test_{split}", 2, 2)
    words = [
        sys.executable,
        str(ROOT / "benchmarks" / "leaderboard" / "rehearsal.py"),
        *("--quick", "--source", str(source), "--work", str(work)),
    ]
    before = (ROOT / "benchmarks" / "results" / "leaderboard_table.md").read_bytes()
    done = subprocess.run(
        words, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is a sound s2ef submission" in done.stdout
    with np.load(work / "submission.npz") as file:
        assert all(len(file[f"{split}_ids"]) == 2 for split in ("id", "ood_ads", "ood_cat", "ood_both"))
    assert "| mean |" in (work / "table.md").read_text()
    assert (ROOT / "benchmarks" / "results" / "leaderboard_table.md").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "work"}
