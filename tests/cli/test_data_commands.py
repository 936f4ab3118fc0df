"""`main.py data convert` and `main.py data inspect`, as a user meets them."""

import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocpgem.cli import main
from ocpgem.data.open import open_dataset

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = "species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3"
HEADER = f'Lattice="8 0 0 0 8 0 0 0 20" Properties={COLUMNS} energy=-9.5'
FRAME = f"2\n{HEADER}\nCu 0.0 0.0 0.0 F 0 0.1 0.0 0.0\nO 0.0 0.0 1.9 T 2 0.0 0.0 0.3\n"


@pytest.fixture
def archive(tmp_path):
    def make(n_chunks=2, n_frames=3):
        folder = tmp_path / "raw"
        folder.mkdir()
        for chunk in range(n_chunks):
            labels = "".join(f"random{chunk},frame{i},-8.0\n" for i in range(n_frames))
            (folder / f"{chunk}.extxyz.xz").write_bytes(lzma.compress((FRAME * n_frames).encode(), preset=0))
            (folder / f"{chunk}.txt.xz").write_bytes(lzma.compress(labels.encode(), preset=0))
        return folder

    return make


def run(*words):
    return main([str(word) for word in words])


def test_convert_and_inspect_tell_what_was_made(archive, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("data", "convert", archive(), "--out", out, "--chunks", "1", "--workers", "1") == 0
    assert "3 frames of 1 systems in 1 shards; 2.0 atoms" in capsys.readouterr().out
    assert [(system.sid, system.energy) for system in open_dataset(out)] == [(1, -1.5)] * 3
    assert run("data", "inspect", out) == 0
    assert "3 of 1 systems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("convert", "nowhere", "--out", "x"), 2, "nowhere is not a folder"),
        (("convert", "raw", "--out", "x", "--chunks", "9"), 2, "has no chunk 9"),
        (("convert", "raw", "--out", "x", "--chunks", "one"), 2, "chunks 'one' cannot be read"),
        (("convert", "raw", "--out", "x", "--workers", "0"), 2, "the number of workers is 0"),
        (("inspect", "nowhere"), 2, "nowhere does not exist"),
        (("inspect", "raw"), 1, "holds no data set"),
        (("inspect", "raw/0.txt.xz"), 1, "0.txt.xz"),
    ],
)
def test_a_mistake_is_one_sentence(archive, tmp_path, monkeypatch, capsys, words, code, message):
    archive()
    monkeypatch.chdir(tmp_path)
    assert run("data", *words) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_ctrl_c_leaves_whole_shards_only(archive, tmp_path):
    raw, out = archive(n_chunks=24, n_frames=600), tmp_path / "out"
    command = [sys.executable, ROOT / "main.py", "data", "convert", raw, "--out", out, "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.glob("data.*.lmdb")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert not list(out.glob(".*.partial"))
    assert run("data", "convert", raw, "--out", out, "--workers", "2") == 0
    assert len(open_dataset(out)) == 14_400
