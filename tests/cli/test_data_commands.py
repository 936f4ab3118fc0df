"""`main.py data convert`, `split`, `merge` and `inspect`, as a user meets them."""

import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ocpgem.cli import main
from ocpgem.data.open import open_dataset
from tests.distributed.processes import children, wait_for

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


@pytest.fixture
def water(tmp_path):
    """Four frames of water in an extxyz file, the last one without forces."""
    images = []
    for i in range(4):
        atoms = molecule("H2O")
        atoms.rattle(0.02, seed=i)
        labels = {"energy": -14.0 - i / 100} | ({"forces": np.full((3, 3), i / 10)} if i < 3 else {})
        atoms.calc = SinglePointCalculator(atoms, **labels)
        images.append(atoms)
    write(tmp_path / "water.extxyz", images)
    return tmp_path / "water.extxyz"


def run(*words):
    return main([str(word) for word in words])


def test_convert_and_inspect_tell_what_was_made(archive, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("data", "convert", archive(), "--out", out, "--chunks", "1", "--workers", "1") == 0
    assert "3 frames of 1 systems in 1 shards; 2.0 atoms" in capsys.readouterr().out
    assert [(system.sid, system.energy) for system in open_dataset(out)] == [(1, -1.5)] * 3
    assert run("data", "inspect", out, "--figure", tmp_path / "out.png") == 0
    told = capsys.readouterr().out
    assert "3 of 1 systems" in told
    assert f"figure: {tmp_path}/out.png" in told.replace("\n", "")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_shard_writes_the_same_records_into_another_number_of_files(archive, tmp_path, capsys):
    made, other = tmp_path / "made", tmp_path / "other"
    assert run("data", "convert", archive(), "--out", made, "--workers", "1") == 0
    assert run("data", "shard", made, "--out", other, "--shards", "3", "--workers", "1") == 0
    assert "6 frames of 2 systems in 3 shards" in capsys.readouterr().out
    assert sorted(path.name for path in other.glob("*.lmdb")) == [f"data.000{i}.lmdb" for i in range(3)]
    pairs = zip(open_dataset(made), open_dataset(other), strict=True)
    assert all((one.sid, one.fid, one.energy) == (two.sid, two.fid, two.energy) for one, two in pairs)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("convert", "nowhere", "--out", "x"), 2, "nowhere does not exist"),
        (("convert", "nowhere", "--out", "x", "--chunks", "0"), 2, "nowhere is not a folder"),
        (("convert", "raw", "water.extxyz", "--out", "x"), 2, "one folder at a time"),
        (("convert", "raw", "--out", "x", "--units", "eV"), 2, "leave out --units"),
        (("convert", "raw", "--out", "x", "--skip-unreadable"), 2, "leave out --skip-unreadable"),
        (("convert", "water.extxyz", "--out", "x", "--units", "miles"), 2, "--units: 'miles' is no unit"),
        (("convert", "water.extxyz", "--out", "x", "--tags", "4"), 2, "--tags 4 is no rule"),
        (("convert", "water.extxyz", "--out", "x", "--max-force", "-1"), 2, "--max-force is -1.0"),
        (("convert", "water.extxyz", "--out", "x", "--max-force", "much"), 2, "argument --max-force"),
        (("convert", "water.extxyz", "--out", "x", "--require", "all"), 2, "argument --require"),
        (("split", "water.extxyz", "--out", "x", "--parts", "a=0.5"), 2, "convert it first"),
        (("split", "nowhere", "--out", "x", "--parts", "a=0.5"), 2, "nowhere does not exist"),
        (("split", "nowhere", "--out", "x"), 2, "--parts"),
        (("split", "raw", "--out", "x", "--parts", "a=0.5"), 2, "holds no data set"),
        (("split", "raw", "--out", "x", "--parts", "a"), 2, "write NAME=SHARE or NAME=NUMBER"),
        (("merge", "nowhere", "--out", "x"), 2, "nowhere does not exist"),
        (("merge", "nowhere", "--out", "x", "--shards", "0"), 2, "argument --shards"),
        (("shard", "nowhere", "--out", "x"), 2, "nowhere does not exist"),
        (("inspect", "water.extxyz", "--check"), 2, "convert it first"),
        (("convert", "raw", "--out", "x", "--chunks", "9"), 2, "has no chunk 9"),
        (("convert", "raw", "--out", "x", "--chunks", "one"), 2, "chunks 'one' cannot be read"),
        (("convert", "raw", "--out", "x", "--workers", "0"), 2, "the number of workers is 0"),
        (("inspect", "nowhere"), 2, "nowhere does not exist"),
        (("inspect", "water.extxyz", "--figure", "x.jpg"), 2, "--figure x.jpg should end in .png"),
        (("inspect", "water.extxyz", "--figure", "nowhere/x.png"), 2, "nowhere is not a folder"),
        (("inspect", "raw"), 2, "holds no data set"),
        (("inspect", "raw/0.txt.xz"), 2, "0.txt.xz is of a kind that neither ocpgem nor ASE reads"),
    ],
)
def test_a_mistake_is_one_sentence(archive, water, tmp_path, monkeypatch, capsys, words, code, message):
    archive()
    monkeypatch.chdir(tmp_path)
    try:
        ended = run("data", *words)
    except SystemExit as end:  # argparse
        ended = end.code
    assert ended == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_own_structures_go_all_the_way(water, tmp_path, capsys):
    everything, parts, joined = tmp_path / "all", tmp_path / "parts", tmp_path / "joined"
    assert run("data", "convert", water, "--out", everything, "--tags", "2", "--workers", "1") == 0
    told = capsys.readouterr().out
    assert "(guessed: extxyz is in eV by convention)" in told
    assert "3 frames of 1 systems" in told
    assert f"left out: 1 of 4 records\n  1: no forces (first: {water}, record 3)" in told
    split = ("data", "split", everything, "--out", parts, "--workers", "1", "--parts", "train=2", "val=1")
    assert run(*split) == 2
    assert "--by frame" in capsys.readouterr().err
    assert run(*split, "--by", "frame", "--seed", "5") == 0
    assert "3 frames divided at random by frame, seed 5" in capsys.readouterr().out
    assert (len(open_dataset(parts / "train")), len(open_dataset(parts / "val"))) == (2, 1)
    merge = ("data", "merge", parts / "val", parts / "train", "--out", joined, "--shards", "3")
    assert run(*merge, "--workers", "1") == 0
    assert "= 3" in capsys.readouterr().out
    assert {system.tags.tolist()[0] for system in open_dataset(joined)} == {2}
    assert len(list(joined.glob("*.lmdb"))) == 3
    assert run("data", "inspect", joined, "--check", "--workers", "1") == 0
    told = capsys.readouterr().out
    assert "3 records in 3 shards: every checksum is right" in told
    assert "H   66.7 %" in told


def test_a_check_finds_what_reading_might_not_meet(water, tmp_path, capsys):
    assert run("data", "convert", water, "--out", tmp_path / "out", "--workers", "1") == 0
    shard = tmp_path / "out/data.0000.lmdb"
    forces = open_dataset(tmp_path / "out")[2].forces.tobytes()
    shard.write_bytes(shard.read_bytes().replace(forces, bytes([forces[0] ^ 4]) + forces[1:]))
    capsys.readouterr()
    assert run("data", "inspect", tmp_path / "out", "--check", "--workers", "1") == 1
    assert "has 1 faults, the first:" in capsys.readouterr().err


def test_ethanol_is_converted_and_divided_by_two_commands(tmp_path, capsys):
    source = ROOT.parent / "shared/data/md17/ethanol_ccsd_t_dev.npz"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    everything, out = tmp_path / "all", tmp_path / "ethanol"
    assert run("data", "convert", source, "--out", everything, "--workers", "1") == 0
    assert "energies in kcal/mol, forces in kcal/mol/A (guessed: " in capsys.readouterr().out
    parts = ("--by", "frame", "--parts", "train=700", "val=100", "--seed", "0")
    assert run("data", "split", everything, "--out", out, *parts, "--workers", "1") == 0
    train, val = open_dataset(out / "train"), open_dataset(out / "val")
    assert (len(train), len(val)) == (700, 100)
    assert not set(train.fids.tolist()) & set(val.fids.tolist())
    assert train[0].energy == pytest.approx(-4210, abs=2)


def test_ctrl_c_while_the_workers_start_shows_no_traceback(archive, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        ROOT / "main.py",
        "data",
        "convert",
        archive(n_chunks=24, n_frames=600),
        "--out",
        out,
    ]
    with subprocess.Popen(
        [*command, "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for(lambda: any("spawn_main" in command_line(pid) for pid in children(process.pid)), process)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error


def command_line(pid: int) -> str:
    """What a process was started with; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_ctrl_c_leaves_whole_shards_only(archive, tmp_path):
    raw, out = archive(n_chunks=24, n_frames=600), tmp_path / "out"
    command = [sys.executable, ROOT / "main.py", "data", "convert", raw, "--out", out, "--workers", "2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
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
