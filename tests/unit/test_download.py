"""Downloads go on where they stopped, from servers that cut the connection, ignore Range or have changed the file."""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocpgem import download as module
from ocpgem.download import Patience, download
from ocpgem.errors import DownloadError, RequestError
from ocpgem.models.import_weights import catalogue
from tests.file_server import Server, serving
from tests.tiny_runs import listing

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving(Server(CONTENT)) as behaviour:
        yield behaviour


def fetch(server: Server, path: Path, **options: Any) -> module.Downloaded:
    patience = Patience(attempts=options.pop("attempts", 5), first_wait=0.0, timeout=10.0)
    return download(server.url, path, **{"sha256": SHA256} | options, patience=patience)


def test_a_file_arrives_whole_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    done = fetch(server, tmp_path / "file.pt", progress=lambda here, total: seen.append((here, total)))
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert done == module.Downloaded(len(CONTENT), SHA256)
    assert listing(tmp_path) == {"file.pt"}
    assert server.ranges == [None]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_cut_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = 150_000
    fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=150000-", "bytes=300000-", "bytes=450000-"]
    assert listing(tmp_path) == {"file.pt"}


@pytest.mark.parametrize("seed", range(5))
def test_cuts_at_random_places_cost_nothing(server: Server, tmp_path: Path, seed: int) -> None:
    server.random_cuts = random.Random(seed)
    fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in server.ranges if asked]
    assert len(starts) >= 2
    assert starts == sorted(set(starts))


def test_a_length_told_too_short_is_not_taken_for_the_file(server: Server, tmp_path: Path) -> None:
    server.told_length = 1000
    with pytest.raises(DownloadError, match=r"checksum of file.pt is"):
        fetch(server, tmp_path / "file.pt")
    assert listing(tmp_path) == set()


def test_a_length_told_too_long_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.told_length = 10**9
    fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT)}-"]


def test_a_connection_that_falls_silent_loses_nothing_of_what_came(server: Server, tmp_path: Path) -> None:
    server.halt_after = 1234
    patience = Patience(attempts=5, first_wait=0.0, timeout=0.5)
    download(server.url, tmp_path / "file.pt", sha256=SHA256, patience=patience)
    assert server.ranges == [None, "bytes=1234-"]


def test_a_later_call_goes_on_from_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cut_after = 100_000
    with pytest.raises(
        DownloadError, match=r"100000 of 512000 bytes.*100000 bytes are kept in .*file\.pt\.partial"
    ):
        fetch(server, tmp_path / "file.pt", attempts=1)
    assert not (tmp_path / "file.pt").exists()
    server.cut_after = None
    fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    server.cut_after = 100_000
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "file.pt", attempts=1)
    server.cut_after, server.knows_range = None, False
    fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.knows_range = 100_000, False
    with pytest.raises(DownloadError, match="cannot be fetched"):
        fetch(server, tmp_path / "file.pt", attempts=3)
    assert len(server.ranges) == 3


def test_a_file_that_changed_meanwhile_is_not_joined_to_the_old_piece(server: Server, tmp_path: Path) -> None:
    server.cut_after = 100_000
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "file.pt", attempts=1)
    server.cut_after, server.etag, server.content = None, '"two"', CONTENT[::-1]
    fetch(server, tmp_path / "file.pt", sha256=None)
    assert (tmp_path / "file.pt").read_bytes() == CONTENT[::-1]


def test_a_piece_that_is_already_whole_is_put_in_place(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.pt.partial").write_bytes(CONTENT)
    fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    (tmp_path / "other.pt.partial").write_bytes(CONTENT + b"more")
    fetch(server, tmp_path / "other.pt")
    assert (tmp_path / "other.pt").read_bytes() == CONTENT


def test_without_a_told_length_the_end_of_the_connection_is_the_end(server: Server, tmp_path: Path) -> None:
    server.tells_length = False
    fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"checksum of file.pt is {SHA256} instead of 00"):
        fetch(server, tmp_path / "file.pt", sha256="00")
    assert listing(tmp_path) == set()


def test_an_md5_checksum_is_compared_as_well(server: Server, tmp_path: Path) -> None:
    md5 = hashlib.md5(CONTENT).hexdigest()
    assert fetch(server, tmp_path / "file.pt", sha256=None, md5=md5).sha256 == SHA256
    with pytest.raises(DownloadError, match=f"checksum of other.pt is {md5} instead of 11 .md5."):
        fetch(server, tmp_path / "other.pt", md5="11")
    assert listing(tmp_path) == {"file.pt"}


def test_a_refusal_is_final_and_an_overload_passes(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DownloadError, match="the server answers 404"):
        fetch(server, tmp_path / "file.pt")
    assert len(server.ranges) == 1
    server.status, server.n_errors = 503, 2
    fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == CONTENT


def test_no_server_is_told_after_the_last_attempt(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be fetched"):
        download(
            "http://127.0.0.1:9/model.pt", tmp_path / "file.pt", patience=Patience(attempts=2, first_wait=0)
        )
    assert listing(tmp_path) == set()


def test_a_full_disk_is_told_before_it_is_filled(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RequestError, match=r"has 0 MB free, but 1 MB are to come"):
        fetch(server, tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()


def test_a_file_that_is_there_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_text("mine")
    with pytest.raises(RequestError, match="is there already"):
        fetch(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_text() == "mine"
    assert server.ranges == []


def entry(server: Server, **changes: Any) -> catalogue.Released:
    values = {"name": "X", "url": server.url, "training_set": "", "target": "", "config": "", "model": {}}
    return catalogue.Released(**values | changes)


def test_an_unknown_checksum_is_said_aloud_and_a_known_one_is_compared(
    server: Server, tmp_path: Path
) -> None:
    (note,) = catalogue.fetch(entry(server), tmp_path / "a.pt", lambda done, total: None)
    assert SHA256 in note
    assert "could not be verified" in note
    (note,) = catalogue.fetch(entry(server, sha256=SHA256), tmp_path / "b.pt", lambda done, total: None)
    assert "as published" in note
    with pytest.raises(DownloadError, match="checksum"):
        catalogue.fetch(entry(server, sha256="00"), tmp_path / "c.pt", lambda done, total: None)


def test_bare_weights_get_their_settings_beside_them(server: Server, tmp_path: Path) -> None:
    catalogue.fetch(entry(server, kwargs={"num_blocks": 4}), tmp_path / "q.pth", lambda done, total: None)
    assert json.loads((tmp_path / "q_kwargs.json").read_text()) == {"num_blocks": 4}
