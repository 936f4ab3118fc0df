"""Pickles yield arrays, numbers and plain containers or are refused; nothing in them is ever run."""

import builtins
import functools
import io
import json
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ocpgem.data.pickled_arrays import load_plain
from ocpgem.errors import DataError
from tests.released_records import GENERATIONS, is2re_fields, record_of, s2ef_fields
from tests.tiny_runs import ROOT, clean_environment, random_system

FUZZ = Path(__file__).with_name("pickle_fuzz.py")
STEPS = 100_000


def load(content: bytes) -> Any:
    return load_plain(content, "x.lmdb, record 7", STEPS)


def saved(value: object, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


# What comes back

PLAIN = {
    "numbers": [0, 1, 255, 256, 65536, -1, 2**31, -(2**40), 2**63 - 1, 1.5, float("inf")],
    "constants": (None, True, False),
    "text": ["", "pos", "é\n", "x" * 300],
    "bytes": [b"", b"abc", bytes(300)],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": {"b": [{}, [], {"c": 1}]}},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back(protocol):
    assert load(pickle.dumps(PLAIN, protocol)) == PLAIN
    assert load(pickle.dumps(OrderedDict(a=1), protocol)) == {"a": 1}


def test_an_object_that_is_met_twice_is_the_same_twice():
    shared = [1]
    first, second = load(pickle.dumps([shared, shared]))
    assert first is second


TENSORS = {
    "float32": torch.rand(4, 3),
    "float64": torch.rand(2, 1, 3).double(),
    "float16": torch.rand(5).half(),
    "int64": torch.arange(6).reshape(2, 3),
    "int32": torch.arange(6, dtype=torch.int32),
    "int16": torch.arange(6, dtype=torch.int16),
    "int8": torch.arange(-3, 3, dtype=torch.int8),
    "uint8": torch.arange(6, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "one number": torch.tensor(3.5),
    "nothing": torch.zeros(0, 3),
    "transposed": torch.rand(3, 4).T,
    "every other": torch.arange(20.0).reshape(4, 5)[1::2, ::2],
    "a parameter's data": torch.nn.Parameter(torch.ones(3)).data,
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("write", ["pickle2", "pickle3", "pickle4", "pickle5", "stream", "zip"])
def test_tensors_come_back(name, write):
    value = {"a": TENSORS[name], "b": [TENSORS[name]]}
    if write.startswith("pickle"):
        found = load(pickle.dumps(value, int(write[-1])))
    else:
        found = load(saved(value, write == "zip"))
    for array in (found["a"], found["b"][0]):
        expected = TENSORS[name].numpy()
        assert type(array) is np.ndarray
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
        assert np.array_equal(array, expected)


def test_tensors_that_share_a_storage_come_back():
    whole = torch.arange(12.0)
    for content in (pickle.dumps([whole, whole[3:5]]), saved([whole, whole[3:5]], False)):
        assert load(content)[1].tolist() == [3.0, 4.0]


ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    np.arange(6.0).reshape(2, 3)[:, ::2],
    np.array([True, False]),
    np.array(2.5, dtype=np.float32),
    np.zeros((0, 3), dtype=np.uint8),
    np.arange(3, dtype=">f8"),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_numpy_arrays_and_numbers_come_back(protocol, module):
    numbers = [np.float64(1.5), np.float32(0.25), np.int64(-7), np.bool_(True), np.uint8(200)]
    content = pickle.dumps([ARRAYS, numbers, ARRAYS[0]], protocol)
    if protocol < 4:
        content = content.replace(b"numpy._core", module)
    arrays, plain, again = load(content)
    for array, expected in zip(arrays, ARRAYS, strict=True):
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
        assert np.array_equal(array, expected)
    assert plain == [1.5, 0.25, -7, True, 200]
    assert {type(number) for number in plain} == {int, float, bool}
    assert again is arrays[0]


def test_torch_and_pyg_are_not_needed():
    code = "import sys, ocpgem.data.released_lmdb; print({'torch', 'torch_geometric'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), capture_output=True, check=True
    )
    assert done.stdout.strip() == b"set()"


# What is refused


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def _storage() -> torch.storage.TypedStorage:
    numbers = torch.zeros(1)
    return torch.storage.TypedStorage(
        wrap_storage=numbers.untyped_storage(), dtype=numbers.dtype, _internal=True
    )


class Stated:
    """Pickles as a call of `function` with the state of an object."""

    def __init__(self, function: Callable[..., Any], argument: object) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"__setstate__": Calls(self.function, self.argument)}


def hostile(witness: Path) -> dict[str, object]:
    """Objects that would make the file `witness` if they were unpickled without care."""
    touch = f"touch {witness}"
    code = f"open({str(witness)!r}, 'w').close()"
    inner = pickle.dumps(Calls(os.system, touch))
    return {
        "os.system": Calls(os.system, touch),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "builtins.open": Calls(builtins.open, str(witness), "w"),
        "subprocess": Calls(subprocess.check_call, ["touch", str(witness)]),
        "a call inside a call": Calls(len, Calls(os.system, touch)),
        "a call inside a call that is known": Calls(torch.storage._load_from_bytes, Calls(os.system, touch)),
        "a partial": functools.partial(os.system, touch),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "a method of a path": Calls(Path.touch, witness),
        "torch.load": Calls(torch.load, str(witness)),
        "a pickle inside the bytes of a tensor": Calls(torch.storage._load_from_bytes, inner),
        "a torch stream inside the bytes of a tensor": Calls(
            torch.storage._load_from_bytes, saved(Calls(os.system, touch), False)
        ),
        "a torch archive inside the bytes of a tensor": Calls(
            torch.storage._load_from_bytes, saved(Calls(os.system, touch), True)
        ),
        "a tensor's bytes inside a tensor's bytes": Calls(
            torch.storage._load_from_bytes, saved(Calls(torch.storage._load_from_bytes, inner), False)
        ),
        "the state of an object": Stated(os.system, touch),
        "a numpy object": np.array([Calls(os.system, touch)], dtype=object),
        "the type of a numpy object": Calls(np.dtype, "O"),
        "inside an ordered dictionary": OrderedDict(state=Calls(os.system, touch)),
        "beside tensors": {"pos": torch.zeros(2), "x": [torch.zeros(2), (Calls(os.system, touch),)]},
        "the hooks of a tensor": Calls(
            torch._utils._rebuild_tensor_v2,
            _storage(),
            0,
            (1,),
            (1,),
            False,
            Calls(os.system, touch),
        ),
    }


KINDS = sorted(hostile(Path("x")))


@pytest.mark.parametrize("write", ["pickle2", "pickle5", "stream", "zip"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_pickle_is_refused_and_nothing_is_run(kind, write, tmp_path):
    witness = tmp_path / "witness"
    value = {"y": 1.0, "x": [hostile(witness)[kind]]}
    if write.startswith("pickle"):
        content = pickle.dumps(value, int(write[-1]))
    else:
        content = saved(value, write == "zip")
    with pytest.raises(DataError, match=r"x\.lmdb, record 7") as caught:
        load(content)
    assert not witness.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [
        "os.system",
        "exec",
        "builtins.open",
        "a torch stream inside the bytes of a tensor",
        "the state of an object",
        "the hooks of a tensor",
    ],
)
def test_the_hostile_pickles_would_act_if_they_were_loaded(kind, tmp_path):
    """In a process of its own, so that the tests above cannot pass because of a mistake in the pickles."""
    witness, file = tmp_path / "witness", tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(hostile(witness)[kind]))
    code = f"import pickle; pickle.load(open({str(file)!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60, env=clean_environment(), stderr=-3)
    assert witness.exists()


def test_the_refusal_names_what_is_asked_for():
    with pytest.raises(
        DataError,
        match=r"record 7 is refused and nothing in it was run: it asks for (posix|nt)\.system; only",
    ):
        load(pickle.dumps(Calls(os.system, "true")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cposix\nsystem\n(S'true'\ntR.", "it asks for posix.system"),
        (b"(S'true'\niposix\nsystem\n.", "it uses the instruction MARK|STRING|INST"),
        (b"\x80\x02(X\x04\x00\x00\x00truecposix\nsystem\no.", "it asks for posix.system"),
        (b"\x80\x02\x82\x01.", "it uses the instruction EXT1"),
        (b"\x80\x02U\x04trueQ.", "it uses the instruction SHORT_BINSTRING"),
        (b"\x80\x02K\x01Q.", "it refers to an object outside of it"),
        (b"\x80\x05\x97.", "it uses the instruction NEXT_BUFFER"),
        (b"\x80\x02K\x01)R.", "it calls something that is not a name"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "it calls numpy.ndarray, which data does not need"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "it makes an object that is not data"),
        (b"\x80\x02}}b.", "it gives a state to a dict"),
        (b"\x80\x02ca\x1b[31m\nb\n.", r"it asks for 'a\\x1b\[31m.b'"),
        (b"\x80\x02c" + b"a" * 300 + b"\nb\n.", "there is no name"),
        (b"\x80\x02]K\x01K\x02s.", "not a map from text"),
        (b"\x80\x02}K\x01K\x02s.", "not a map from text"),
        (b"\x80\x02K\x01", "cut off"),
        (b"", "it is empty"),
        (b"\x80\x02.", "cut off or its stack is wrong"),
        (b"\x80\x02h\x05.", "cut off or its stack is wrong"),
        (b"\x80\x06K\x01.", "protocol 6"),
        (b"\x80\x04\x8c\x02\xff\xff.", "not in its encoding"),
        (b"\x80\x02\x00.", "byte 2 should be an instruction"),
    ],
)
def test_what_is_wrong_with_a_pickle_is_told_in_a_sentence(content, message):
    with pytest.raises(DataError, match=message) as caught:
        load(content)
    assert str(caught.value).startswith("x.lmdb, record 7 ")
    assert str(caught.value).isprintable()


# What a small record cannot make large, or slow


def tensor(storage: bytes, offset: int = 0, shape: object = (1,), strides: object = (1,)) -> bytes:
    """A pickle of a tensor with a storage given as bytes of a torch file."""
    arguments = (offset, shape, strides, False, OrderedDict())
    head = b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n"
    body = pickle.dumps(storage, 4)[2:-1] + b"\x85R"
    return head + body + b"".join(pickle.dumps(part, 4)[2:-1] for part in arguments) + b"tR."


def stream(count: int, announced: int, content: bytes = b"", kind: str = "FloatStorage") -> bytes:
    """A torch file of one storage that announces `announced` numbers and then counts `count`."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    name = f"\x80\x02(X\x07\x00\x00\x00storagectorch\n{kind}\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu".encode(
        "latin1"
    )
    storage = name + pickle.dumps(announced, 2)[2:-1] + b"NtQ."
    return head + storage + pickle.dumps(["0"], 2) + count.to_bytes(8, "little") + content


def test_the_tensors_built_here_are_as_torch_writes_them():
    numbers = np.arange(4, dtype=np.float32).tobytes()
    assert load(tensor(stream(4, 4, numbers), 1, (3,), (1,))).tolist() == [1.0, 2.0, 3.0]


NUMBERS = stream(4, 4, bytes(16))


def sized(code: bytes, content: bytes) -> bytes:
    return code + len(content).to_bytes(4, "little") + content


def nested_tuples(depth: int) -> bytes:
    """A tuple of twice a tuple of twice a tuple ...: its hash, or its text, would take 2^depth steps."""
    return b"\x80\x04)" + b"".join(b"\x94j" + i.to_bytes(4, "little") + b"\x86" for i in range(depth))


CUT, SMALL = "the pickle ends within a value", "claims more memory than its"
BOMBS = {
    "bytes that are not there": (b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.", CUT),
    "text that is not there": (b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"abc.", CUT),
    "a frame that is not there": (b"\x80\x04\x95" + (2**62).to_bytes(8, "little"), "cut off"),
    "a large integer": (b"\x80\x02" + sized(b"\x8b", b"\xff" * 2**20) + b".", "an integer of 1048576 bytes"),
    "a storage that is not there": (tensor(stream(4, 2**40, bytes(16))), SMALL),
    "a storage of another count": (tensor(stream(2**40, 4, bytes(16))), "where 4 are announced"),
    "a storage of negative size": (tensor(stream(4, -4, bytes(16))), SMALL),
    "a tensor larger than its storage": (tensor(NUMBERS, 0, (2**40,), (1,)), "more than its storage of 4"),
    "a tensor that repeats a number": (tensor(NUMBERS, 0, (2**40,), (0,)), "more than its storage of 4"),
    "a tensor of many dimensions": (tensor(NUMBERS, 0, (2,) * 40, (0,) * 40), "40 dimensions"),
    "a tensor without elements": (tensor(NUMBERS, 0, (0,) + (2**60,) * 6, (1,) * 7), "holds an array of shape"),
    "a tensor before its storage": (tensor(NUMBERS, -1, (4,), (1,)), "not whole numbers from 0"),
    "a tensor behind its storage": (tensor(NUMBERS, 2, (4,), (1,)), "more than its storage of 4"),
    "a tensor that goes backwards": (tensor(NUMBERS, 3, (4,), (-1,)), "not whole numbers from 0"),
    "a stride that wraps around": (tensor(NUMBERS, 0, (2,), (2**64 - 1,)), "not whole numbers from 0"),
    "a shape of fractions": (tensor(NUMBERS, 0, (1.5,), (1,)), "not whole numbers from 0"),
    "an array larger than its bytes": (pickle.dumps(np.zeros(4)).replace(b"K\x04\x85", b"K\xff\x85"), "has 32 bytes"),
    "nested tuples as a key": (nested_tuples(60) + b"\x94}j\x3c\0\0\0K\x01s.", "not a map from text"),
    "a torch file many times": (
        b"\x80\x04ctorch.storage\n_load_from_bytes\n\x94"
        + sized(b"B", stream(2**16, 2**16, bytes(2**18)))
        + b"\x85\x94"
        + b"h\x00h\x01R0" * 10_000
        + b".",
        SMALL,
    ),
    "text encoded many times": (
        b"\x80\x04c_codecs\nencode\n\x94"
        + sized(b"X", b"x" * 2**18)
        + sized(b"X", b"latin1")
        + b"\x86\x94"
        + b"h\x00h\x01R" * 10_000
        + b".",
        SMALL,
    ),
    "instructions without end": (b"\x80\x04" + b"]" * 2_000_000 + b".", "more steps"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_allocates(kind):
    content, message = BOMBS[kind]
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(DataError, match=rf"x\.lmdb, record 7 .*{message}"):
            load(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(content) + 16 * 2**20
    assert time.monotonic() - begin < 10


def test_a_memo_far_out_takes_no_memory():
    tracemalloc.start()
    try:
        assert load(b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_compressed_archive_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps([0] * 10_000_000, 2))
    with pytest.raises(DataError, match="is compressed, which torch does not do"):
        load((tmp_path / "x.pt").read_bytes())


def test_deep_nesting_ends_in_a_value_or_a_sentence():
    depth = STEPS // 3
    assert len(load(b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b".")) == 1
    for faulty in (b"]" * depth + b"a" * depth, b"(" * depth + b"t" * (depth + 1), b"]" * STEPS):
        with pytest.raises(DataError, match=r"cut off|more steps"):
            load(b"\x80\x04" + faulty + b".")


def test_a_list_that_holds_itself_does_no_harm():
    value = load(b"\x80\x04]\x94h\x00a.")
    assert value[0] is value


# Mutated records


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Records of both generations and several protocols, and torch files of both kinds."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for generation in GENERATIONS:
        for protocol in (2, 4, 5):
            for fields in (s2ef_fields, is2re_fields):
                record = record_of(fields(random_system(rng, 3)), generation, protocol)
                (folder / f"{generation}-{protocol}-{fields.__name__}").write_bytes(record)
    data = pickle.loads(record_of(s2ef_fields(random_system(rng, 4))))
    (folder / "stream").write_bytes(saved(data, False))
    (folder / "zip").write_bytes(saved(data, True))
    return folder


def fuzz(corpus: Path, count: int, seed: int, cwd: Path) -> dict[str, Any]:
    """Runs pickle_fuzz.py: 1 GiB of address space, and a hook that notices whatever Python can audit."""
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(FUZZ), str(corpus), str(count), str(seed)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["hook_works"]
    assert report["faults"] == []
    assert report["executions"] == {}
    assert set(report["outcomes"]) == {"read", "refused", "damaged"}
    assert min(report["outcomes"].values()) > count // 20
    assert report["growth_mb"] < 50
    assert list(cwd.glob("*witness*")) == []
    return report


def test_mutated_records_are_read_or_refused_and_run_nothing(corpus, tmp_path):
    fuzz(corpus, 4000, 0, tmp_path)


@pytest.mark.slow  # 100,000 records, one after another
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_mutated_records_are_read_or_refused_and_run_nothing(corpus, tmp_path):
    report = fuzz(corpus, 100_000, 1, tmp_path)
    sys.stdout.write(f"{report}\n")
