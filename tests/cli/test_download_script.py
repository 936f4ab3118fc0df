"""`python datasets/download.py`, as a user meets it."""

import hashlib
import importlib.util
import io
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from ocpgem.data.archives import ARCHIVES, find
from tests.file_server import Server, serving
from tests.released_records import record_of, s2ef_fields, write_lmdb
from tests.tiny_runs import ROOT, random_systems, run_main

SCRIPT = ROOT / "datasets/download.py"
_spec = importlib.util.spec_from_file_location("download_script", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
download = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(download)


def test_the_list_names_every_archive_and_its_counts() -> None:
    script = [sys.executable, str(SCRIPT), "--list"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=100, check=True)
    for archive in ARCHIVES:
        assert archive.name in done.stdout
    assert "133,934,018" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name an archive; --list shows them"),
        (("s2ef_train_200",), "did you mean s2ef_train_200K"),
        (("s2ef_val_id", "--splits", "train"), "s2ef_val_id has no split 'train'; it has val_id"),
        (("s2ef_val_id", "--base-url", "mirror"), "'mirror' is no address"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert download.main([*words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_command_makes_data_sets_that_the_other_commands_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for split in ("test_id", "test_ood_ads"):
            fields = [s2ef_fields(system) for system in random_systems(4)]
            for record in fields:
                del record["y"], record["force"]
            for shard, part in enumerate((fields[:3], fields[3:])):
                path = write_lmdb(tmp_path / "shard.lmdb", [record_of(record) for record in part], len(part))
                tar.add(path, f"s2ef_test_lmdbs/test_data/s2ef/all/{split}/data.{shard:04d}.lmdb")
                path.unlink()
    content = buffer.getvalue()
    entry = find("s2ef_test_lmdbs", ARCHIVES)
    splits = tuple(replace(split, n_frames=4) for split in entry.splits)
    small = replace(
        entry, size=len(content), unpacked=10**6, md5=hashlib.md5(content).hexdigest(), splits=splits
    )
    words = ["s2ef_test_lmdbs", "--splits", "test_id", "test_ood_ads", "--out", str(tmp_path / "s2ef")]
    with serving(Server(content, random_cuts=random.Random(7))) as server:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        assert download.main([*words, "--base-url", server.address, "--workers", "1"], (small,)) == 0
    told = capsys.readouterr().out
    assert "test_id: 4 records, as published" in told
    assert f"ready: {tmp_path}/s2ef/test_id, {tmp_path}/s2ef/test_ood_ads" in told
    assert {path.name for path in (tmp_path / "s2ef").iterdir()} == {"test_id", "test_ood_ads"}
    done = run_main("data", "inspect", tmp_path / "s2ef/test_id", "--check")
    assert done.returncode == 0, done.stderr
    assert "4 records in 1 shards: every checksum is right" in done.stdout
