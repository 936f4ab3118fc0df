import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.io import iread

from ocpgem.data.convert import Options, convert_files
from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.open import open_dataset
from ocpgem.data.raw_oc20 import (
    chunk_of,
    convert_raw_oc20,
    find_chunks,
    parse_chunks,
    read_chunk,
    read_labels,
)
from ocpgem.data.screening import Limits
from ocpgem.errors import DataError, RequestError

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
from ocpgem.data.raw_oc20 import convert_raw_oc20
if __name__ == "__main__":
    convert_raw_oc20({raw!r}, {out!r}, 2)
"""


def frame(rng, n_atoms, labelled=True):
    forces = ":forces:R:3" if labelled else ""
    energy = f" energy={rng.normal(-300, 5):.8f}" if labelled else ""
    lines = [
        f"{n_atoms}",
        'Lattice="8.0 0.0 0.0 0.0 8.5 0.0 0.0 0.0 20.0" '
        f'Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1{forces}{energy} pbc="T T T"',
    ]
    for atom in range(n_atoms):
        position = "".join(f"{x:16.8f}" for x in rng.uniform(0, 8, 3))
        force = "".join(f"{x:16.8f}" for x in rng.normal(size=3)) if labelled else ""
        lines.append(f"{'Cu' if atom else 'O':6s}{position}{'FT'[atom % 2]:>3s}{atom % 3:9d}{force}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def archive(tmp_path):
    """Makes an archive; returns its folder."""

    def make(n_chunks=3, n_frames=5, n_atoms=6, labelled=True, references=True):
        folder = tmp_path / "raw"
        folder.mkdir()
        for chunk in range(n_chunks):
            rng = np.random.default_rng(chunk)
            frames = "".join(frame(rng, n_atoms, labelled) for _ in range(n_frames))
            (folder / f"{chunk}.extxyz.xz").write_bytes(lzma.compress(frames.encode(), preset=0))
            end = ",-100.5" if references else ""
            labels = "".join(f"random{10 + chunk},frame{i}{end}\n" for i in range(n_frames))
            (folder / f"{chunk}.txt.xz").write_bytes(lzma.compress(labels.encode()))
        return folder

    return make


def rewrite(path, change):
    path.write_bytes(lzma.compress(change(lzma.decompress(path.read_bytes()).decode()).encode()))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def test_every_frame_is_what_ase_reads_minus_the_reference(shared):
    (chunk,) = find_chunks(shared / "data/oc20/s2ef_train", [4])
    frames = iread(chunk.frames, index=slice(0, 40))
    for number, (system, atoms) in enumerate(zip(read_chunk(chunk), frames, strict=False)):
        if number % 10:
            continue
        assert np.array_equal(system.atomic_numbers, atoms.numbers)
        assert np.array_equal(system.pos, atoms.positions.astype("f4"))
        assert np.array_equal(system.cell, atoms.cell.array.astype("f4"))
        assert np.array_equal(system.tags, atoms.get_tags())
        assert np.array_equal(np.flatnonzero(system.fixed), atoms.constraints[0].index)
        assert np.array_equal(system.forces, atoms.get_forces(apply_constraint=False).astype("f4"))
        reference = atoms.get_potential_energy() - system.energy
        assert reference == pytest.approx(read_labels(chunk.labels)[number][2])
    assert number == 39


def test_fixed_atoms_of_real_frames_are_those_below_the_surface(shared):
    (chunk,) = find_chunks(shared / "data/oc20/s2ef_val_id")
    system = next(read_chunk(chunk))
    assert np.array_equal(system.fixed, system.tags == 0)


def test_an_archive_becomes_a_data_set(archive, tmp_path):
    summary = convert_raw_oc20(archive(), tmp_path / "out", workers=1)
    dataset = LmdbDataset(tmp_path / "out")
    assert (summary.n_frames, summary.n_systems, summary.n_shards) == (15, 3, 3)
    assert [(s.sid, s.fid) for s in dataset] == [(10 + chunk, i) for chunk in range(3) for i in range(5)]
    assert -250 < dataset[0].energy < -150
    assert dataset[0].fixed.tolist() == [True, False] * 3
    assert dataset[0].tags.tolist() == [0, 1, 2] * 2


def unpack(path):
    path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize("unpacked", [[], ["1.extxyz.xz"], ["1.txt.xz"], ["1.extxyz.xz", "1.txt.xz"]])
def test_a_chunk_given_as_a_file_has_the_labels_and_numbers_of_its_archive(archive, tmp_path, unpacked):
    raw = archive(2)
    convert_raw_oc20(raw, tmp_path / "expected", workers=1, chunks=[1])
    for name in unpacked:
        unpack(raw / name)
    path = raw / ("1.extxyz" if "1.extxyz.xz" in unpacked else "1.extxyz.xz")
    said = []
    convert_files([path], tmp_path / "own", workers=1, say=said.append)
    expected = [(s.sid, s.fid, s.energy) for s in LmdbDataset(tmp_path / "expected")]
    assert expected[2][:2] == (11, 2)
    assert [(s.sid, s.fid, s.energy) for s in LmdbDataset(tmp_path / "own")] == expected
    assert [(s.sid, s.fid, s.energy) for s in open_dataset(path)] == expected
    assert [(s.sid, s.fid, s.energy) for s in open_dataset(path, limit=2)] == expected[:2]
    assert any("energies minus the references in the txt file" in sentence for sentence in said)


def test_a_chunk_of_a_test_set_given_as_a_file_has_its_numbers_and_no_energy(archive, tmp_path):
    path = archive(1, labelled=False, references=False) / "0.extxyz.xz"
    convert_files([path], tmp_path / "own", Options(limits=Limits("nothing")), workers=1)
    for dataset in (open_dataset(path), LmdbDataset(tmp_path / "own")):
        assert [(s.sid, s.fid, s.energy) for s in dataset] == [(10, i, None) for i in range(5)]


def test_a_chunk_given_as_a_file_is_refused_where_its_labels_do_not_fit(archive, tmp_path):
    raw = archive(1)
    with pytest.raises(RequestError, match=r"0.extxyz.xz is a chunk of a raw OC20 archive, which is in eV"):
        convert_files([raw / "0.extxyz.xz"], tmp_path / "own", Options(units="hartree"), workers=1)
    rewrite(raw / "0.txt.xz", lambda text: text.replace(",-100.5", ""))
    for read in (open_dataset, lambda path: convert_files([path], tmp_path / "own", workers=1)):
        with pytest.raises(DataError, match=r"0.txt.xz names no reference energy"):
            read(raw / "0.extxyz.xz")
    rewrite(raw / "0.txt.xz", lambda text: text[:-20])
    with pytest.raises(DataError, match=r"0.txt.xz"):
        open_dataset(raw / "0.extxyz.xz")


def test_what_was_converted_without_the_txt_file_does_not_count_as_done(archive, tmp_path):
    path = archive(1) / "0.extxyz.xz"
    labels = path.with_name("0.txt.xz").rename(tmp_path / "kept")
    convert_files([path], tmp_path / "own", workers=1)
    labels.rename(path.with_name("0.txt.xz"))
    with pytest.raises(RequestError, match="already holds another data set"):
        convert_files([path], tmp_path / "own", workers=1)


@pytest.mark.parametrize("name", ["a.extxyz", "1.xyz", "1.extxyz.gz", "run1.extxyz.xz", "2.extxyz"])
def test_other_files_are_no_chunks(tmp_path, name):
    for each in (name, "a.txt", "1.txt", "run1.txt.xz"):
        (tmp_path / each).touch()
    assert chunk_of(tmp_path / name) is None


def test_workers_change_nothing(archive, tmp_path):
    raw = archive(4)
    convert_raw_oc20(raw, tmp_path / "alone", workers=1)
    convert_raw_oc20(raw, tmp_path / "together", workers=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")


def test_chunks_can_be_chosen(archive, tmp_path):
    raw = archive()
    convert_raw_oc20(raw, tmp_path / "train", 1, parse_chunks("0-1"))
    convert_raw_oc20(raw, tmp_path / "val", 1, parse_chunks("2"))
    assert sorted(set(LmdbDataset(tmp_path / "train").sids)) == [10, 11]
    assert set(LmdbDataset(tmp_path / "val").sids) == {12}


def test_an_unlabelled_archive_works(archive, tmp_path):
    convert_raw_oc20(archive(labelled=False, references=False), tmp_path / "out", 1)
    system = LmdbDataset(tmp_path / "out")[0]
    assert system.energy is None
    assert system.forces is None


def test_energies_without_references_are_explained(archive, tmp_path):
    with pytest.raises(DataError, match=r"0.txt.xz names no reference energy \(third field\)"):
        convert_raw_oc20(archive(references=False), tmp_path / "out", 1)


def test_a_finished_conversion_is_not_repeated(archive, tmp_path):
    raw = archive()
    convert_raw_oc20(raw, tmp_path / "out", 1)
    before = (tmp_path / "out/data.0000.lmdb").stat().st_mtime_ns
    assert convert_raw_oc20(raw, tmp_path / "out", 1).n_frames == 15
    assert (tmp_path / "out/data.0000.lmdb").stat().st_mtime_ns == before
    with pytest.raises(RequestError, match="already holds another data set"):
        convert_raw_oc20(raw, tmp_path / "out", 1, [0])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("1.txt.xz", lambda text: text.rsplit("random", 1)[0], "1.extxyz.xz has 5 frames but 1.txt.xz has 4"),
        (
            "1.txt.xz",
            lambda text: text.replace("frame3", "frme3"),
            "1.txt.xz, line 4: 'random11,frme3,-100.5'",
        ),
        ("1.extxyz.xz", lambda text: text[:-100], "1.extxyz.xz, frame 4 of the file cannot be read"),
        ("1.extxyz.xz", lambda text: text[: text.rindex("Cu")], "frame 4 of the file is cut off"),
        (
            "1.extxyz.xz",
            lambda text: text.replace("Cu", "Xy"),
            "1.extxyz.xz, frame 0 of the file cannot be read",
        ),
        (
            "1.extxyz.xz",
            lambda text: text.replace("energy=", "energy=nan "),
            "energy holds a value that is not",
        ),
    ],
)
def test_damage_is_named_and_leaves_no_data_set(archive, tmp_path, name, change, message, workers):
    raw = archive()
    rewrite(raw / name, change)
    with pytest.raises(DataError, match=message):
        convert_raw_oc20(raw, tmp_path / "out", workers)
    assert not (tmp_path / "out/metadata.json").exists()
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_a_cut_off_download_is_named(archive, tmp_path):
    raw = archive()
    file = raw / "2.extxyz.xz"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"2.extxyz.xz is damaged or cut off"):
        convert_raw_oc20(raw, tmp_path / "out", 1)


def test_a_missing_partner_is_named(archive, tmp_path):
    raw = archive()
    (raw / "1.txt.xz").unlink()
    with pytest.raises(DataError, match=r"1.extxyz.xz has no 1.txt.xz beside it"):
        convert_raw_oc20(raw, tmp_path / "out", 1)


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1"])
def test_chunks_that_cannot_be_read_are_a_wrong_request(text):
    with pytest.raises(RequestError, match="cannot be read; write numbers and ranges"):
        parse_chunks(text)


def test_absent_chunks_and_folders_are_a_wrong_request(archive, tmp_path):
    with pytest.raises(RequestError, match="has no chunk 7, 11; it has 0, 1, 2"):
        convert_raw_oc20(archive(), tmp_path / "out", 1, [0, 7, 11])
    with pytest.raises(RequestError, match="is not a folder"):
        convert_raw_oc20(tmp_path / "nowhere", tmp_path / "out", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"holds no .extxyz.xz files"):
        convert_raw_oc20(tmp_path / "empty", tmp_path / "out", 1)


def test_a_killed_conversion_goes_on_where_it_was(archive, tmp_path):
    raw, out = archive(n_chunks=12, n_frames=120, n_atoms=40), tmp_path / "out"
    script = tmp_path / "convert.py"
    script.write_text(PROGRAM.format(raw=str(raw), out=str(out)))
    process = subprocess.Popen([sys.executable, script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while len(list(out.glob("data.*.lmdb"))) < 3:
        assert process.poll() is None, "the conversion ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_quiet(out)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("data.*.lmdb")}
    assert 3 <= len(finished) < 12
    with pytest.raises(DataError, match="interrupted"):
        LmdbDataset(out)

    with pytest.raises(RequestError, match="unfinished conversion of other chunks"):
        convert_raw_oc20(raw, out, 1, [0, 1])
    summary = convert_raw_oc20(raw, out, 2)
    assert summary.n_reused_shards == len(finished)
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    convert_raw_oc20(raw, tmp_path / "at_once", 2)
    assert contents(out) == contents(tmp_path / "at_once")


def wait_until_quiet(folder):
    """The killed process's workers end by themselves; wait until nothing in the folder changes any more."""
    before, now = None, modification_times(folder)
    deadline = time.monotonic() + 20
    while before is None or before != now:
        assert time.monotonic() < deadline, "the workers of a killed conversion live on"
        time.sleep(0.7)
        before, now = now, modification_times(folder)


def modification_times(folder):
    """By path; None, which equals nothing, where a worker moved a file away meanwhile."""
    try:
        return {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    except FileNotFoundError:
        return None
