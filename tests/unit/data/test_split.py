from fractions import Fraction

import numpy as np
import pytest

from ocpgem.data.lmdb_store import LmdbDataset, write_dataset
from ocpgem.data.split import Part, choose, parse_parts, part_sizes, split_dataset
from ocpgem.errors import RequestError


@pytest.fixture
def source(tmp_path, make_system):
    """Ten systems of three frames each, in mixed order."""
    systems = [make_system(seed=i, sid=100 + i % 10, fid=i // 10) for i in range(30)]
    write_dataset(tmp_path / "source", systems, systems_per_shard=8)
    return tmp_path / "source"


def keys(path):
    dataset = LmdbDataset(path)
    return list(zip(dataset.sids.tolist(), dataset.fids.tolist(), strict=True))


def test_sizes_are_shares_or_numbers():
    assert parse_parts(["train=0.8", "val=.1", "test=100", "all=1.0", "one=1"]) == [
        Part("train", Fraction(4, 5)),
        Part("val", Fraction(1, 10)),
        Part("test", 100),
        Part("all", Fraction(1)),
        Part("one", 1),
    ]


@pytest.mark.parametrize(
    "texts",
    [
        ["train"],
        ["train="],
        ["=3"],
        ["train=1.5"],
        ["train=0.0"],
        ["train=-1"],
        ["../x=3"],
        ["a/b=3"],
        ["a=1e3"],
        ["a=nan"],
    ],
)
def test_a_size_that_is_none_is_a_wrong_request(texts):
    with pytest.raises(RequestError, match="--parts"):
        parse_parts(texts)


def test_a_name_given_twice_is_a_wrong_request():
    with pytest.raises(RequestError, match="--parts names a twice"):
        parse_parts(["a=1", "b=2", "a=0.5"])


@pytest.mark.parametrize(
    ("texts", "total", "sizes"),
    [
        (["a=0.8", "b=0.1", "c=0.1"], 10, [8, 1, 1]),
        (["a=0.8", "b=0.1", "c=0.1"], 13, [11, 1, 1]),
        (["a=0.5", "b=0.5"], 7, [4, 3]),
        (["a=0.3", "b=0.3"], 10, [3, 3]),
        (["a=700", "b=0.125"], 800, [700, 100]),
        (["a=1.0"], 5, [5]),
    ],
)
def test_shares_are_rounded_so_that_none_is_lost(texts, total, sizes):
    assert part_sizes(parse_parts(texts), total, "frame") == sizes


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a=0.8", "b=0.3"], "the shares add up to 1.1"),
        (["a=0.8", "b=3"], "the parts need 11 systems; there are 10"),
        (["a=11"], "the parts need 11 systems"),
        (["a=5", "b=0.05"], "part b would be empty"),
        (["a=0"], "part a would be empty"),
    ],
)
def test_parts_that_cannot_be_filled_are_a_wrong_request(texts, message):
    with pytest.raises(RequestError, match=message):
        part_sizes(parse_parts(texts), 10, "system")


def test_a_split_by_system_keeps_systems_together(source, tmp_path):
    made = split_dataset(source, tmp_path / "out", parse_parts(["train=0.7", "val=2"]), workers=1)
    train, val = keys(tmp_path / "out/train"), keys(tmp_path / "out/val")
    assert (len(train), len(val)) == (21, 6)
    assert not {sid for sid, _ in train} & {sid for sid, _ in val}
    assert (made.n_units, made.n_unused, made.n_shared) == (10, 1, 0)
    text = str(made)
    assert "10 systems divided at random by system, seed 0" in text
    assert "21 frames of 7 systems" in text
    assert "in no part: 1 systems" in text
    assert "several parts" not in text


def test_a_split_by_frame_divides_systems_and_says_so(source, tmp_path):
    made = split_dataset(source, tmp_path / "out", parse_parts(["a=20", "b=10"]), by="frame", workers=1)
    a, b = keys(tmp_path / "out/a"), keys(tmp_path / "out/b")
    assert sorted(a + b) == sorted(keys(source))
    assert made.n_shared > 0
    assert f"systems with frames in several parts: {made.n_shared}" in str(made)


def test_records_are_whole_and_in_their_order(source, tmp_path):
    split_dataset(source, tmp_path / "out", parse_parts(["a=0.5"]), workers=1)
    dataset, everything = LmdbDataset(tmp_path / "out/a"), LmdbDataset(source)
    places = [keys(source).index(key) for key in keys(tmp_path / "out/a")]
    assert places == sorted(places)
    for system, place in zip(dataset, places, strict=True):
        assert system.energy == everything[place].energy
        assert np.array_equal(system.forces, everything[place].forces)
    assert dataset.n_edges.tolist() == everything.n_edges[places].tolist()


def test_the_seed_decides(source, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        split_dataset(source, tmp_path / name, parse_parts(["x=0.5", "y=0.5"]), seed=seed, workers=1)
    assert keys(tmp_path / "a/x") == keys(tmp_path / "b/x")
    assert (tmp_path / "a/x/data.0000.lmdb").read_bytes() == (tmp_path / "b/x/data.0000.lmdb").read_bytes()
    assert keys(tmp_path / "a/x") != keys(tmp_path / "c/x")


def test_a_choice_does_not_depend_on_the_order_of_the_records():
    sids = np.array([5, 5, 2, 9, 9, 2, 7])
    order = np.array([3, 0, 6, 1, 5, 4, 2])
    for part, shuffled in zip(
        choose(sids, [2, 1], "system", 0), choose(sids[order], [2, 1], "system", 0), strict=True
    ):
        assert set(sids[part]) == set(sids[order][shuffled])


def test_one_trajectory_has_to_be_divided_by_frame(tmp_path, make_system):
    write_dataset(tmp_path / "one", [make_system(seed=i, sid=0, fid=i) for i in range(8)])
    with pytest.raises(
        RequestError, match=r"part train would be empty: .*--by frame would divide its 8 frames"
    ):
        split_dataset(tmp_path / "one", tmp_path / "out", parse_parts(["train=0.8"]), workers=1)
    assert not (tmp_path / "out").exists()
    assert (
        split_dataset(tmp_path / "one", tmp_path / "out", parse_parts(["a=0.5"]), "frame", workers=1).n_unused
        == 4
    )


def test_a_split_goes_on_and_does_not_overwrite_another(source, tmp_path):
    parts = parse_parts(["a=0.5", "b=0.5"])
    out = tmp_path / "out"
    split_dataset(source, out, parts, workers=1)
    before = (out / "a/data.0000.lmdb").stat().st_mtime_ns
    (out / "b/metadata.json").unlink()  # as if killed
    (out / "b/conversion.json").write_text((out / "a/metadata.json").read_text())
    with pytest.raises(RequestError, match="unfinished conversion of another split"):
        split_dataset(source, out, parts, workers=1)
    for file in (out / "b").iterdir():
        file.unlink()
    split_dataset(source, out, parts, workers=1)
    assert (out / "a/data.0000.lmdb").stat().st_mtime_ns == before
    with pytest.raises(RequestError, match="already holds another data set"):
        split_dataset(source, out, parts, seed=1, workers=1)


def test_a_folder_that_is_a_data_set_takes_no_parts(source):
    with pytest.raises(RequestError, match="is a data set itself"):
        split_dataset(source, source, parse_parts(["a=0.5"]), workers=1)


def test_only_data_sets_of_ocpgem_are_divided(tmp_path):
    (tmp_path / "x.extxyz").touch()
    with pytest.raises(RequestError, match="convert it first"):
        split_dataset(tmp_path / "x.extxyz", tmp_path / "out", parse_parts(["a=0.5"]), workers=1)
