"""The published archives of OC20 and OC22: where they are, how large, and what they should hold.

Sizes, MD5 checksums and frame counts are those of the Open Catalyst data set page (DATASET.md of the released
repository; version 2 of the data, February 2021); the frame counts of OC22's splits are those of its paper.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from ocpgem.errors import RequestError

BASE_URL = "https://dl.fbaipublicfiles.com/opencatalystproject/data/"
BYTES_PER_FRAME = 5000
"""Of a converted record. `data convert` of the real frames (80 atoms) in ../shared/data/oc20 gives 3,700 (s2ef_train,
chunks 0-1) and 4,400 (s2ef_val_id), by `data inspect`."""

_GB = 2**30  # the page gives sizes as `du -h` does
_MB = 2**20


@dataclass(frozen=True)
class Split:
    """A data set that an archive holds.

    Attributes:
        name: folder of the converted data set below --out.
        n_frames: published number of records; None where none is known for certain.
        folder: the last folders of its files in the archive; empty: it is all that the archive holds.
        require: what its records must have, as `data convert --require`.
    """

    name: str
    n_frames: int | None
    folder: str = ""
    require: Literal["forces", "energy", "nothing"] = "forces"


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        name: what users call it.
        file: its place below the base address.
        kind: raw: pairs of N.extxyz.xz and N.txt.xz; lmdb: pickled PyG objects.
        home: where the converted data go unless a folder is named; where configs/ look for them.
        size: bytes of the archive, to two digits.
        unpacked: bytes of its files, to two digits; raw files stay compressed.
        md5: the published checksum.
        splits: what it holds.
    """

    name: str
    file: str
    kind: Literal["raw", "lmdb"]
    home: str
    size: int
    unpacked: int
    md5: str | None
    splits: tuple[Split, ...]

    @property
    def n_frames(self) -> int | None:
        """Published records of all splits; None if that of one is unknown."""
        counts = [split.n_frames for split in self.splits]
        return None if None in counts else sum(count for count in counts if count is not None)

    def chosen(self, names: list[str] | None) -> tuple[Split, ...]:
        """The splits of these names, all without any; raises RequestError for a name it does not have."""
        by_name = {split.name: split for split in self.splits}
        for name in names or []:
            if name not in by_name:
                raise RequestError(f"{self.name} has no split {name!r}; it has {', '.join(by_name)}")
        return self.splits if not names else tuple(s for s in self.splits if s.name in names)


def find(name: str, archives: tuple[Archive, ...]) -> Archive:
    """The archive of this name, with or without .tar or .tar.gz; raises RequestError naming those that are near."""
    wanted = name.lower().removesuffix(".gz").removesuffix(".tar")
    by_name = {archive.name.lower(): archive for archive in archives}
    if wanted in by_name:
        return by_name[wanted]
    near = [by_name[key].name for key in difflib.get_close_matches(wanted, by_name, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else "--list shows all"
    raise RequestError(f"no archive is called {name!r}; {hint}")


def _raw(name: str, home: str, split: str, n_frames: int, size: float, md5: str) -> Archive:
    """A raw S2EF archive; `size` in GB."""
    n_bytes = int(size * _GB)
    splits = (Split(split, n_frames),)
    return Archive(name, f"{name}.tar", "raw", home, n_bytes, n_bytes, md5, splits)


def _test(n_frames: tuple[int, int, int, int]) -> tuple[Split, ...]:
    names = ("test_id", "test_ood_ads", "test_ood_cat", "test_ood_both")
    return tuple(Split(name, n, name, "nothing") for name, n in zip(names, n_frames, strict=True))


_IS2RE = (
    *(
        Split(f"{size}/train", n, f"{size}/train", "energy")
        for size, n in (("10k", 10_000), ("100k", 100_000), ("all", 460_328))
    ),
    *(
        Split(name, n, f"all/{name}", "energy")
        for name, n in (
            ("val_id", 24_943),
            ("val_ood_ads", 24_961),
            ("val_ood_cat", 24_963),
            ("val_ood_both", 24_987),
        )
    ),
    *_test((24_948, 24_930, 24_965, 24_985)),
)
_OC22_S2EF = (
    Split("train", 8_225_293, "train"),
    Split("val_id", 394_727, "val_id"),
    Split("val_ood", 450_669, "val_ood"),
    Split("test_id", 398_377, "test_id", "nothing"),
    Split("test_ood", 385_438, "test_ood", "nothing"),
)
_OC22_IS2RE = tuple(
    Split(name, None, name, "nothing") for name in ("train", "val_id", "val_ood", "test_id", "test_ood")
)
_S2EF = "data/oc20/s2ef"

ARCHIVES: tuple[Archive, ...] = (
    _raw(
        "s2ef_train_200K", f"{_S2EF}/200k", "train", 200_000, 344 / 1024, "f8d0909c2623a393148435dede7d3a46"
    ),
    _raw("s2ef_train_2M", f"{_S2EF}/2M", "train", 2_000_000, 3.4, "953474cb93f0b08cdc523399f03f7c36"),
    _raw("s2ef_train_20M", f"{_S2EF}/20M", "train", 20_000_000, 34, "863bc983245ffc0285305a1850e19cf7"),
    _raw("s2ef_train_all", f"{_S2EF}/all", "train", 133_934_018, 225, "12a7087bfd189a06ccbec9bc7add2bcd"),
    _raw("s2ef_val_id", _S2EF, "val_id", 999_866, 1.7, "f57f7f5c1302637940f2cc858e789410"),
    _raw("s2ef_val_ood_ads", _S2EF, "val_ood_ads", 999_838, 1.7, "431ab0d7557a4639605ba8b67793f053"),
    _raw("s2ef_val_ood_cat", _S2EF, "val_ood_cat", 999_809, 1.7, "532d6cd1fe541a0ddb0aa0f99962b7db"),
    _raw("s2ef_val_ood_both", _S2EF, "val_ood_both", 999_944, 1.9, "5731862978d80502bbf7017d68c2c729"),
    _raw("s2ef_rattled", f"{_S2EF}/rattled", "train", 16_677_031, 29, "40431149b27b64ce1fb40cac4e2e064b"),
    _raw("s2ef_md", f"{_S2EF}/md", "train", 38_315_405, 42, "9fed845aaab8fb4bf85e3a8db57796e0"),
    Archive(
        "s2ef_test_lmdbs",
        "s2ef_test_lmdbs.tar.gz",
        "lmdb",
        _S2EF,
        30 * _GB,
        415 * _GB,
        "bcada432482f6e87b24e14b6b744992a",
        _test((999_736, 999_859, 999_826, 999_973)),
    ),
    Archive(
        "is2res_train_val_test_lmdbs",
        "is2res_train_val_test_lmdbs.tar.gz",
        "lmdb",
        "data/oc20/is2re",
        int(8.1 * _GB),
        97 * _GB,
        "cfc04dd2f87b4102ab2f607240d25fb1",
        _IS2RE,
    ),
    Archive(
        "oc22_s2ef_total",
        "oc22/s2ef_total_train_val_test_lmdbs.tar.gz",
        "lmdb",
        "data/oc22/s2ef",
        20 * _GB,
        71 * _GB,
        "ebea523c6f8d61248a37b4dd660b11e6",
        _OC22_S2EF,
    ),
    Archive(
        "oc22_is2res_total",
        "oc22/is2res_total_train_val_test_lmdbs.tar.gz",
        "lmdb",
        "data/oc22/is2re",
        109 * _MB,
        424 * _MB,
        "b35dc24e99ef3aeaee6c5c949903de94",
        _OC22_IS2RE,
    ),
)
