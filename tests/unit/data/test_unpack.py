"""Archives are unpacked whole or not at all, and nothing of them reaches a place outside the folder."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from ocpgem.data import unpack as module
from ocpgem.data.unpack import forget_unpacked, mark_unpacked, unpack, unpacked_places
from ocpgem.errors import DataError, RequestError
from tests.tiny_runs import listing

FILES = {"top/a/0.txt": b"zero" * 5000, "top/a/1.txt": b"one" * 7000, "top/README": b"read me"}


def pack(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        folder = tarfile.TarInfo("top")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for other in others:
            tar.addfile(other)
    return path


def texts(path: PurePosixPath) -> str | None:
    return "part" if path.suffix == ".txt" else None


@pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tar.xz", "w:xz")])
def test_what_is_wanted_arrives_below_its_place(tmp_path: Path, name: str, mode: str) -> None:
    archive = pack(tmp_path / name, FILES, mode=mode)
    seen: list[tuple[int, int | None]] = []
    assert unpack(archive, tmp_path / "out", texts, lambda *state: seen.append(state)) == 2
    assert (tmp_path / "out/part/top/a/0.txt").read_bytes() == FILES["top/a/0.txt"]
    assert (tmp_path / "out/part/top/a/1.txt").read_bytes() == FILES["top/a/1.txt"]
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 2
    assert all(total == archive.stat().st_size for _, total in seen)


def test_an_unpacking_that_was_killed_goes_on(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar", FILES)
    unpack(archive, tmp_path / "out", texts)
    first, second = tmp_path / "out/part/top/a/0.txt", tmp_path / "out/part/top/a/1.txt"
    before = first.stat().st_mtime_ns
    second.rename(second.with_name(f".{second.name}.partial"))
    second.with_name(f".{second.name}.partial").write_bytes(b"on")
    unpack(archive, tmp_path / "out", texts)
    assert second.read_bytes() == FILES["top/a/1.txt"]
    assert first.stat().st_mtime_ns == before
    assert listing(tmp_path / "out/part/top/a") == {"0.txt", "1.txt"}


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (tarfile.TarInfo("../outside.txt"), "leads out of the folder"),
        (tarfile.TarInfo("top/../../outside.txt"), "leads out of the folder"),
        (tarfile.TarInfo("/tmp/outside.txt"), "leads out of the folder"),
        (special("top/link.txt", tarfile.SYMTYPE, "/etc/passwd"), "neither a file nor a folder"),
        (special("top/link.txt", tarfile.LNKTYPE, "top/a/0.txt"), "neither a file nor a folder"),
        (special("top/pipe", tarfile.FIFOTYPE), "neither a file nor a folder"),
        (special("top/device", tarfile.CHRTYPE), "neither a file nor a folder"),
        (tarfile.TarInfo("top/a/0.txt"), "holds top/a/0.txt twice"),
        (tarfile.TarInfo("./top/a/0.txt"), "holds top/a/0.txt twice"),
    ],
)
def test_a_hostile_member_is_refused_by_its_name(
    tmp_path: Path, member: tarfile.TarInfo, message: str
) -> None:
    archive = pack(tmp_path / "x.tar", FILES, member)
    with pytest.raises(DataError, match=f"x.tar .*{message}"):
        unpack(archive, tmp_path / "deep/out", texts)
    assert not list(tmp_path.rglob("outside*"))
    assert not list(tmp_path.rglob("link*"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[: min(700, len(content) * 2 // 3)],
        lambda content: b"no archive at all" * 100,
        lambda content: b"",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_archive_is_told(tmp_path: Path, damage: Callable[[bytes], bytes], packed: bool) -> None:
    archive = pack(tmp_path / "x.tar", FILES)
    content = damage(gzip.compress(archive.read_bytes()) if packed else archive.read_bytes())
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"x.tar is damaged or cut off.*download it again"):
        unpack(archive, tmp_path / "out", texts)


def test_a_flipped_bit_of_a_compressed_archive_is_told(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar.gz", FILES, mode="w:gz")
    content = bytearray(archive.read_bytes())
    content[-6] ^= 1  # in the checksum of the compressed stream
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"x.tar.gz is damaged or cut off"):
        unpack(archive, tmp_path / "out", texts)


def test_a_member_that_the_disk_cannot_hold_is_told_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(tmp_path / "x.tar", FILES)
    usage = module.shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RequestError, match=r"GB free, but top/a/0.txt of x.tar has"):
        unpack(archive, tmp_path / "out", texts)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_places_are_remembered_and_forgotten(tmp_path: Path) -> None:
    for place in ("a", "b/c"):
        (tmp_path / "out" / place).mkdir(parents=True)
    mark_unpacked(tmp_path / "out", ["a"])
    mark_unpacked(tmp_path / "out", ["b/c"])
    assert unpacked_places(tmp_path / "out") == {"a", "b/c"}
    forget_unpacked(tmp_path / "out", ["a"])
    assert unpacked_places(tmp_path / "out") == {"b/c"}
    assert not (tmp_path / "out/a").exists()
    forget_unpacked(tmp_path / "out", ["b/c"])
    assert not (tmp_path / "out").exists()
