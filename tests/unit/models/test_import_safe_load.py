"""Foreign files yield tensors and plain values or are refused; nothing in them is ever run."""

import builtins
import functools
import os
import pathlib
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ocpgem.errors import CheckpointError, RequestError
from ocpgem.models.import_weights.safe_load import load_values


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def hostile(witness: Path) -> dict[str, object]:
    """Objects that would make the file `witness` if they were unpickled without care."""
    touch = f"touch {witness}"
    code = f"open({str(witness)!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, touch),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "builtins.open": Calls(builtins.open, str(witness), "w"),
        "subprocess": Calls(subprocess.check_call, ["touch", str(witness)]),
        "a call inside a call": Calls(len, Calls(os.system, touch)),
        "a partial": functools.partial(os.system, touch),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "a method of a path": Calls(Path.touch, witness),
        "torch.load": Calls(torch.load, str(witness)),
        "a numpy object": Calls(np.dtype, "O"),
        "inside an ordered dictionary": OrderedDict(state=Calls(os.system, touch)),
        "inside a tensor's keys": {1: {"x": [torch.zeros(2), (Calls(os.system, touch),)]}},
    }


KINDS = sorted(hostile(Path("x")))


def write_zip(value: object, path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}, "optimizer": {"state": [value]}}, path)


def write_old(value: object, path: Path) -> None:
    torch.save({"config": {"deep": [{"x": value}]}}, path, _use_new_zipfile_serialization=False)


def write_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": value}, protocol=2))


@pytest.mark.parametrize("write", [write_zip, write_old, write_pickle])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_is_refused_and_nothing_is_run(
    kind: str, write: Callable[[object, Path], None], tmp_path: Path
) -> None:
    witness, file = tmp_path / "witness", tmp_path / "hostile.pt"
    write(hostile(witness)[kind], file)
    with pytest.raises(CheckpointError, match=r"hostile\.pt") as caught:
        load_values(file)
    assert not witness.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice is to read it without care


@pytest.mark.parametrize("kind", ["os.system", "exec", "builtins.open"])
def test_the_hostile_objects_would_act_if_they_were_unpickled(kind: str, tmp_path: Path) -> None:
    """In a process of its own, so that the tests above cannot pass because of a mistake in the objects."""
    witness, file = tmp_path / "witness", tmp_path / "hostile.pt"
    file.write_bytes(pickle.dumps(hostile(witness)[kind]))
    code = f"import pickle; pickle.load(open({str(file)!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert witness.exists()


def test_the_refusal_names_what_the_file_asks_for(tmp_path: Path) -> None:
    write_zip(Calls(os.system, "true"), tmp_path / "hostile.pt")
    with pytest.raises(
        CheckpointError, match=r"refused and nothing in it was run: it asks for (posix|nt)\.system"
    ):
        load_values(tmp_path / "hostile.pt")


@pytest.mark.parametrize("old", [False, True])
def test_plain_values_and_tensors_come_back(old: bool, tmp_path: Path) -> None:
    values = {
        "tensor": torch.arange(3.0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "nested": OrderedDict(a=[1, 2.5, None, True, "text", (1, 2)]),
        "float64": np.float64(1.5),
        "float32": np.float32(0.25),
        "int": np.int64(-7),
        "bool": np.bool_(True),
        "path": pathlib.PurePosixPath("/data/run"),
        "relative": Path("a/b"),
    }
    torch.save(values, tmp_path / "good.pt", _use_new_zipfile_serialization=not old)
    found = load_values(tmp_path / "good.pt")
    assert found["tensor"].equal(values["tensor"])
    assert found["nested"] == values["nested"]
    plain = {key: found[key] for key in ("float64", "float32", "int", "bool", "path", "relative")}
    assert plain == {
        "float64": 1.5,
        "float32": 0.25,
        "int": -7,
        "bool": True,
        "path": "/data/run",
        "relative": "a/b",
    }
    assert {type(value) for value in plain.values()} == {float, int, bool, str}


@pytest.mark.parametrize("content", [b"", b"energy\0forces\n1,2\n", b"PK\x03\x04 not a zip", b"\x80\x05N."])
def test_what_is_no_torch_file_is_told_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pt cannot be read as a torch file") as caught:
        load_values(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"energy,forces\n1,2\n", b"{", "\u00e9".encode() * 5000, b"cos\nsystem\n(."]
)
def test_text_is_a_wrong_request(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_bytes(content)
    with pytest.raises(RequestError, match=r"notes\.md is text, not a checkpoint"):
        load_values(tmp_path / "notes.md")


def test_a_truncated_file_and_an_absent_one(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "good.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.pt cannot be read"):
        load_values(tmp_path / "cut.pt")
    with pytest.raises(RequestError, match="no such file"):
        load_values(tmp_path / "absent.pt")
