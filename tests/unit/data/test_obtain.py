"""Archives become data sets: over cut connections, after a kill at any stage, and only if the counts agree."""

import hashlib
import io
import lzma
import multiprocessing
import os
import random
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocpgem.data import lmdb_store
from ocpgem.data import obtain as module
from ocpgem.data.archives import ARCHIVES, Archive, find
from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.obtain import Order, obtain
from ocpgem.data.raw_oc20 import convert_raw_oc20
from ocpgem.download import Patience, Progress
from ocpgem.errors import DataError, DownloadError, RequestError
from tests.file_server import Server, serving
from tests.released_records import is2re_fields, record_of, write_lmdb
from tests.tiny_runs import random_systems
from tests.unit.data.conftest import SHARED

COLUMNS = "species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3"
HEADER = f'Lattice="8 0 0 0 8 0 0 0 20" Properties={COLUMNS} energy=-9.5'
FRAME = f"2\n{HEADER}\nCu 0.0 0.0 0.0 F 0 0.1 0.0 0.0\nO 0.0 0.0 1.9 T 2 0.0 0.0 0.3\n"
PATIENCE = Patience(attempts=5, first_wait=0.0, timeout=10.0)


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def raw_files(n_chunks: int = 3, n_frames: int = 4) -> dict[str, bytes]:
    """Members as in s2ef_train_200K.tar."""
    files = {"s2ef_train_200K/README": b"frames and labels"}
    for chunk in range(n_chunks):
        labels = "".join(f"random{chunk},frame{i},-8.0\n" for i in range(n_frames))
        place = f"s2ef_train_200K/s2ef_train_200K/{chunk}"
        files[f"{place}.extxyz.xz"] = lzma.compress((FRAME * n_frames).encode())
        files[f"{place}.txt.xz"] = lzma.compress(labels.encode())
    return files


def of(name: str, content: bytes, counts: dict[str, int | None] | None = None, **changes: Any) -> Archive:
    """The catalogue's entry with the size, checksum and record counts of a small archive."""
    archive = find(name, ARCHIVES)
    splits = tuple(
        replace(split, n_frames=(counts or {}).get(split.name, split.n_frames)) for split in archive.splits
    )
    small = {
        "size": len(content),
        "unpacked": len(content) * 2,
        "md5": hashlib.md5(content).hexdigest(),
        "splits": splits,
    }
    return replace(archive, **(small | changes))


RAW = tar_of(raw_files(), "w")
RAW_ARCHIVE = of("s2ef_train_200K", RAW, {"train": 12})


@contextmanager
def quiet(label: str) -> Iterator[Progress]:
    yield lambda done, total: None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving(Server(RAW)) as behaviour:
        yield behaviour


def order_of(server: Server, tmp_path: Path, archive: Archive = RAW_ARCHIVE, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "out": tmp_path / "out",
        "store": tmp_path / "out/archives",
        "base_url": server.address,
        "workers": 1,
        "patience": PATIENCE,
    }
    return Order(archive, **(values | changes))


def run(order: Order, bar: Any = quiet) -> list[str]:
    said: list[str] = []
    obtain(order, said.append, bar)
    return said


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def frames(path: Path) -> list[tuple[int, int, float | None]]:
    return [(system.sid, system.fid, system.energy) for system in LmdbDataset(path)]


def test_an_archive_becomes_a_data_set_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    said = run(order_of(server, tmp_path))
    assert frames(tmp_path / "out/train") == [(chunk, i, -1.5) for chunk in range(3) for i in range(4)]
    assert server.paths == ["/s2ef_train_200K.tar"]
    assert names(tmp_path / "out") == {"train"}
    assert any("downloading http://127.0.0.1" in sentence for sentence in said)
    assert "its MD5 checksum is as published" in said
    assert "train: 12 records, as published" in said


def test_doing_it_again_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    run(order_of(server, tmp_path))
    assert run(order_of(server, tmp_path)) == [f"{tmp_path}/out/train is there already"]
    assert len(server.paths) == 1


@pytest.mark.parametrize("knows_range", [True, False])
def test_cut_connections_cost_nothing(server: Server, tmp_path: Path, knows_range: bool) -> None:
    server.random_cuts = random.Random(4)
    server.knows_range = knows_range
    if not knows_range:
        with pytest.raises(DownloadError, match="cannot be fetched"):
            run(order_of(server, tmp_path))
        assert not (tmp_path / "out/train").exists()
        server.random_cuts = None
    run(order_of(server, tmp_path))
    assert len(LmdbDataset(tmp_path / "out/train")) == 12
    assert len(server.paths) > 3


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ({"status": 404}, DownloadError, "s2ef_train_200K.tar: the server answers 404"),
        ({"status": 500}, DownloadError, "cannot be fetched .*500"),
        (
            {"told_length": 1000},
            DownloadError,
            "checksum of s2ef_train_200K.tar is .* what arrived was removed",
        ),
        ({"content": RAW[:-1] + b"x"}, DownloadError, "checksum of s2ef_train_200K.tar is"),
    ],
)
def test_a_server_that_fails_is_told_and_leaves_no_data_set(
    server: Server, tmp_path: Path, behaviour: dict[str, Any], error: type[Exception], message: str
) -> None:
    for key, value in behaviour.items():
        setattr(server, key, value)
    with pytest.raises(error, match=message):
        run(order_of(server, tmp_path))
    assert not (tmp_path / "out").exists()
    vars(server).update(status=None, told_length=None, content=RAW)
    run(order_of(server, tmp_path))
    assert len(LmdbDataset(tmp_path / "out/train")) == 12


def test_another_number_of_records_than_published_is_refused_with_both(
    server: Server, tmp_path: Path
) -> None:
    order = order_of(server, tmp_path, of("s2ef_train_200K", RAW, {"train": 200_000}))
    with pytest.raises(DataError, match=r"train: the archive holds 12 records, but 200,000 are published"):
        run(order)
    assert names(tmp_path / "out") == {"archives"}
    said = run(replace(order, verify=False))
    assert "train: 12 records where 200,000 are published" in said
    assert len(LmdbDataset(tmp_path / "out/train")) == 12


def test_a_disk_that_is_too_small_is_refused_before_anything_is_asked_for(
    server: Server, tmp_path: Path
) -> None:
    archive = replace(RAW_ARCHIVE, size=10**15, unpacked=2 * 10**15)
    with pytest.raises(
        RequestError,
        match=r"GB free, but s2ef_train_200K needs 3,000,000.0 GB there \(1,000,000.0 GB for the archive \+ "
        r"2,000,000.0 GB for its files \+ 0.1 MB for the data sets\)",
    ):
        run(order_of(server, tmp_path, archive))
    assert server.paths == []
    assert names(tmp_path) == set()


def test_only_what_is_missing_is_asked_of_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_of(server, tmp_path)
    order.work.mkdir(parents=True)
    order.file.write_bytes(RAW)
    need = RAW_ARCHIVE.unpacked + 12 * module.BYTES_PER_FRAME
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=need - 1))
    with pytest.raises(RequestError, match=r"\(0.0 MB for the archive"):
        run(order)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=need))
    run(order)
    assert server.paths == []  # the archive was there; it is compared all the same


def test_an_archive_that_is_there_is_compared(server: Server, tmp_path: Path) -> None:
    order = order_of(server, tmp_path, keep_archive=True)
    order.work.mkdir(parents=True)
    order.file.write_bytes(RAW[:-1] + b"x")
    with pytest.raises(DownloadError, match=r"checksum of .*s2ef_train_200K.tar is .*; remove the file"):
        run(order)
    order.file.write_bytes(RAW)
    said = run(order)
    assert f"the archive is kept: {order.file}" in said
    assert order.file.read_bytes() == RAW
    assert names(order.work) == {"s2ef_train_200K.tar", "s2ef_train_200K.tar.md5"}


def test_something_else_in_the_way_is_not_touched(server: Server, tmp_path: Path) -> None:
    lmdb_store.write_dataset(tmp_path / "out/train", random_systems(3))
    with pytest.raises(RequestError, match=r"out/train is there already and not from s2ef_train_200K"):
        run(order_of(server, tmp_path))
    assert len(LmdbDataset(tmp_path / "out/train")) == 3
    assert server.paths == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "mirror"}, "'mirror' is no address"),
        ({"workers": 0}, "the number of workers is 0"),
        ({"out": Path("/dev/null/out")}, "cannot be made: /dev/null is not a folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    server: Server, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        run(order_of(server, tmp_path, **changes))
    assert names(tmp_path) == set()


def test_two_at_once_do_not_mix(server: Server, tmp_path: Path) -> None:
    order = order_of(server, tmp_path)
    order.work.mkdir(parents=True)
    with module.only_writer(order.work), pytest.raises(RequestError, match="another process is writing"):
        run(order)


# Kills


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killing(label: str) -> Callable[[str], Any]:
    """A bar that kills the process in the middle of what it shows."""

    @contextmanager
    def bar(shown: str) -> Iterator[Progress]:
        yield lambda done, total: kill() if shown == label and total and done >= total // 2 else None

    return bar


def kill_before(owner: Any, name: str, calls: int = 0) -> None:
    """Kill the process when a function is called for the (calls + 1)st time."""
    original, left = getattr(owner, name), [calls]

    def replaced(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            kill()
        left[0] -= 1
        return original(*args, **kwargs)

    setattr(owner, name, replaced)


STAGES: dict[str, Callable[[Order], Any]] = {
    "download": lambda order: run(order, killing(order.file.name)),
    "unpack": lambda order: run(order, killing("unpacking")),
    "marking": lambda order: (kill_before(module, "mark_unpacked"), run(order)),
    "first shard": lambda order: (kill_before(lmdb_store.ShardWriter, "__exit__"), run(order)),
    "second shard": lambda order: (kill_before(lmdb_store.ShardWriter, "__exit__", 1), run(order)),
    "naming": lambda order: (kill_before(module, "write_atomically"), run(order)),
    "tidying": lambda order: (kill_before(module, "_tidy"), run(order)),
    "half tidied": lambda order: (kill_before(module.shutil, "rmtree"), run(order)),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_any_stage_costs_only_what_was_under_way(
    server: Server, tmp_path: Path, stage: str
) -> None:
    server.cut_after = 700
    order = order_of(server, tmp_path)
    process = multiprocessing.get_context("fork").Process(target=STAGES[stage], args=(order,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    asked = len(server.paths)
    assert (tmp_path / "out/train").exists() == ("tid" in stage)
    run(order)
    assert frames(tmp_path / "out/train") == [(chunk, i, -1.5) for chunk in range(3) for i in range(4)]
    assert names(tmp_path / "out") == {"train"}
    if stage == "download":
        assert server.ranges[asked] not in (None, "bytes=0-")
    else:
        assert len(server.paths) == asked


# Archives of several data sets


def is2re_tar(tmp_path: Path) -> bytes:
    """In the layout of is2res_train_val_test_lmdbs.tar.gz: its folders, and a README."""
    systems = list(random_systems(12))
    files = {"is2res/README": b"read me", "is2res/data/is2re/all/train/data.lmdb-lock": b"lock"}
    parts = {"10k/train": 2, "100k/train": 3, "all/train": 4, "all/val_id": 2, "all/test_id": 1}
    for place, n in parts.items():
        fields = [is2re_fields(system) for system in systems[:n]]
        if "test" in place:
            for record in fields:
                for label in ("y_init", "y_relaxed", "pos_relaxed"):
                    del record[label]
        path = write_lmdb(tmp_path / "data.lmdb", [record_of(record) for record in fields], n)
        files[f"is2res/data/is2re/{place}/data.lmdb"] = path.read_bytes()
        path.unlink()
    return tar_of(files, "w:gz")


COUNTS: dict[str, int | None] = {"10k/train": 2, "100k/train": 3, "all/train": 4, "val_id": 2, "test_id": 1}


def test_an_archive_of_several_splits_becomes_one_data_set_each(server: Server, tmp_path: Path) -> None:
    server.content = is2re_tar(tmp_path)
    archive = of("is2res_train_val_test_lmdbs", server.content, COUNTS)
    order = order_of(server, tmp_path, archive, splits=list(COUNTS))
    said = run(order)
    found = {name: len(LmdbDataset(tmp_path / "out" / name)) for name in COUNTS}
    assert found == COUNTS
    relaxation = LmdbDataset(tmp_path / "out/all/train")[0]
    assert relaxation.energy_relaxed is not None
    assert relaxation.pos_relaxed is not None
    assert LmdbDataset(tmp_path / "out/test_id")[0].energy is None
    assert names(tmp_path / "out") == {"10k", "100k", "all", "val_id", "test_id"}
    assert "val_id: 2 records, as published" in said


def test_splits_can_be_taken_one_after_another(server: Server, tmp_path: Path) -> None:
    server.content = is2re_tar(tmp_path)
    archive = of("is2res_train_val_test_lmdbs", server.content, COUNTS)
    order = order_of(server, tmp_path, archive, splits=["val_id"], keep_archive=True)
    run(order)
    assert names(tmp_path / "out") == {"val_id", "archives"}
    run(replace(order, splits=["val_id", "10k/train"], keep_archive=False))
    assert names(tmp_path / "out") == {"val_id", "10k"}
    assert len(server.paths) == 1


def test_a_split_that_the_archive_lacks_is_told(server: Server, tmp_path: Path) -> None:
    server.content = is2re_tar(tmp_path)
    archive = of("is2res_train_val_test_lmdbs", server.content, COUNTS)
    with pytest.raises(DataError, match=r"holds no files of the split val_ood_ads"):
        run(order_of(server, tmp_path, archive))
    with pytest.raises(RequestError, match=r"has no split 'val'; it has 10k/train, "):
        run(order_of(server, tmp_path, archive, splits=["val"]))


def test_records_that_a_conversion_leaves_out_are_an_error(server: Server, tmp_path: Path) -> None:
    fields = [is2re_fields(system) for system in random_systems(3)]
    fields[1]["pos"] = fields[1]["pos"] * float("nan")
    path = write_lmdb(tmp_path / "data.lmdb", [record_of(record) for record in fields], 3)
    server.content = tar_of({"a/all/val_id/data.lmdb": path.read_bytes()}, "w:gz")
    archive = of("is2res_train_val_test_lmdbs", server.content, {"val_id": 3})
    with pytest.raises(DataError, match=r"val_id: 3 records became 2 and were removed again; .*not finite"):
        run(order_of(server, tmp_path, archive, splits=["val_id"]))
    assert names(tmp_path / "out") == {"archives"}


# The catalogue, and real frames


def test_the_catalogue_has_every_published_archive() -> None:
    counts = {archive.name: archive.n_frames for archive in ARCHIVES}
    assert counts["s2ef_train_all"] == 133_934_018
    assert counts["s2ef_test_lmdbs"] == 999_736 + 999_859 + 999_826 + 999_973
    assert counts["oc22_s2ef_total"] == 9_854_504
    assert len({archive.md5 for archive in ARCHIVES}) == len(ARCHIVES) == 14
    for archive in ARCHIVES:
        assert archive.file.removesuffix(".gz").endswith(".tar")
        assert archive.md5 is not None
        assert len(archive.md5) == 32
    assert find("S2EF_train_200k.tar", ARCHIVES).name == "s2ef_train_200K"
    with pytest.raises(RequestError, match="did you mean s2ef_val_id"):
        find("s2ef_valid", ARCHIVES)


@pytest.mark.skipif(not (SHARED / "data/oc20").is_dir(), reason="needs the real frames of ../shared/data")
def test_real_frames_in_a_tar_become_what_a_conversion_of_the_folder_gives(
    server: Server, tmp_path: Path
) -> None:
    source = SHARED / "data/oc20/s2ef_val_id"
    files = {f"s2ef_val_id/s2ef_val_id/{path.name}": path.read_bytes() for path in sorted(source.iterdir())}
    server.content = tar_of(files, "w")
    server.random_cuts = random.Random(1)
    archive = of("s2ef_val_id", server.content, {"val_id": 513})
    run(order_of(server, tmp_path, archive))
    convert_raw_oc20(source, tmp_path / "direct", workers=1)
    one, two = LmdbDataset(tmp_path / "out/val_id"), LmdbDataset(tmp_path / "direct")
    assert len(one) == len(two) == 513
    assert np.array_equal(one.sizes, two.sizes)
    assert [system.energy for system in one] == [system.energy for system in two]
