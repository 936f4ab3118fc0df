"""Numpy arrays, torch tensors and PyG objects from pickles, without torch, PyG or anything that a pickle says to run.

Tensors come back as numpy arrays, PyG objects as `PlainObject`s. A tensor inside a plain pickle carries a whole torch
file, which holds its storage; torch files of both kinds (the stream of torch < 1.6, which is still what a pickled
tensor holds, and the zip archive) can also be read for themselves.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.safe_pickle import Budget, Damage, Machine, Name, Refusal, StandIn, shown
from ocpgem.errors import DataError
from ocpgem.zip_errors import ZIP_ERRORS

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_STREAM_VERSION = 1001
_ZIP_START = b"PK\x03\x04"
_MOST_DIMENSIONS = 8
_LARGEST_EMPTY = 2**40  # numpy refuses shapes without elements whose other dimensions multiply to too much

_STORAGES = {
    "BoolStorage": "?",
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
}
_NUMBERS = {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}


class PlainObject(StandIn):
    """What a pickle says of an object of PyG: the name of its class, and its attributes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.fields: dict[str, Any] = {}

    def set_state(self, state: Any) -> None:
        if type(state) is not dict:
            raise Damage(f"the state of {self.kind} is a {type(state).__name__}")
        state.pop(
            "_parent", None
        )  # would make a cycle, which keeps the arrays alive until Python looks for cycles
        self.fields = state


def load_plain(content: bytes, where: str, max_steps: int) -> Any:
    """The value of a pickle or torch file: None, numbers, text, bytes, lists, tuples, maps, arrays, `PlainObject`s.

    max_steps: instructions it may take. Arrays are read-only. Raises DataError, naming `where`, for a pickle that
    is damaged, or that asks for anything else; nothing of it is run.
    """
    budget = Budget.of(len(content), max_steps)
    try:
        if not content:
            raise Damage("it is empty")
        if content.startswith((_STREAM_START, _ZIP_START)):
            return _read_torch(content, budget, _NAMES)
        return Machine(content, budget, _NAMES).run()
    except Refusal as refusal:
        raise DataError(
            f"{where} is refused and nothing in it was run: {refusal}; only tensors, arrays and numbers are read"
        ) from None
    except Damage as damage:
        raise DataError(f"{where} cannot be read: {damage}; download or copy the file again") from None


class _Storage(StandIn):
    """The numbers of a torch storage, [n]; those of a stream are filled in when all of it is read."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


class _Storages:
    """The storages that the persistent ids of one torch file name."""

    def __init__(self, budget: Budget, archive: _Archive | None = None) -> None:
        self._budget, self._archive = budget, archive
        self.by_key: dict[str, _Storage] = {}

    def __call__(self, persistent_id: Any) -> _Storage:
        match persistent_id:
            case (str("storage"), Name(tag=np.dtype() as dtype), str(key), str(), int(count)):
                pass
            case (str("storage"), Name(tag=np.dtype() as dtype), str(key), str(), int(count), None):
                pass
            case _:
                raise Damage("a storage is not named as torch does")
        known = self.by_key.get(key)
        if known is None:
            known = self.by_key[key] = _Storage(self._array(key, dtype, count))
        elif known.array.dtype != dtype or len(known.array) != count:
            raise Damage(f"storage {shown(key)} is named twice, and not the same")
        return known

    def _array(self, key: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        size = count * dtype.itemsize
        if self._archive is None:
            self._budget.claim(size)
            return np.zeros(count, dtype)
        content = self._archive.read(f"data/{key}")
        if len(content) != size:
            raise Damage(f"storage {shown(key)} has {len(content)} bytes where {size} are announced")
        return np.frombuffer(content, dtype)


class _Archive:
    """The entries of a torch zip archive, none of them compressed."""

    def __init__(self, content: bytes, budget: Budget) -> None:
        self._budget = budget
        try:
            self._file = zipfile.ZipFile(io.BytesIO(content))
        except ZIP_ERRORS as error:
            raise Damage(f"the zip archive is damaged ({type(error).__name__})") from None
        names = [name for name in self._file.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise Damage(f"the zip archive has {len(names)} entries named data.pkl; torch writes one")
        self._folder = names[0].removesuffix("data.pkl")

    def read(self, name: str) -> bytes:
        """The bytes of an entry."""
        try:
            entry = self._file.getinfo(self._folder + name)
            if entry.compress_type != zipfile.ZIP_STORED:
                raise Refusal(
                    f"entry {shown(name)} of its zip archive is compressed, which torch does not do"
                )
            self._budget.claim(entry.file_size)
            return self._file.read(entry)
        except ZIP_ERRORS as error:
            raise Damage(
                f"entry {shown(name)} of the zip archive is damaged ({type(error).__name__})"
            ) from None

    def is_big_endian(self) -> bool:
        """Whether the machine that wrote it stores the most significant byte first."""
        return f"{self._folder}byteorder" in self._file.namelist() and self.read("byteorder") != b"little"


def _read_torch(content: bytes, budget: Budget, names: dict[str, Name]) -> Any:
    """The value of a torch file of either kind."""
    if not content.startswith(_ZIP_START):
        return _read_stream(content, budget, names)
    archive = _Archive(content, budget)
    if archive.is_big_endian():
        raise Damage("it was written on a big-endian machine")
    return Machine(archive.read("data.pkl"), budget, names, _Storages(budget, archive)).run()


def _read_stream(content: bytes, budget: Budget, names: dict[str, Name]) -> Any:
    """Pickles of a magic number, a version, the machine, the value and the keys of its storages; then their numbers."""
    storages = _Storages(budget)
    machine = Machine(content, budget, names, storages)
    magic, version = machine.run(), machine.run()
    if (
        type(magic) is not int
        or magic != _STREAM_MAGIC
        or type(version) is not int
        or version != _STREAM_VERSION
    ):
        raise Damage("a tensor does not hold a torch file")
    machine.run()
    value = machine.run()
    keys = machine.run()
    if (
        type(keys) is not list
        or not all(type(key) is str for key in keys)
        or set(keys) != storages.by_key.keys()
    ):
        raise Damage("the keys of a torch file are not those of its storages")
    for key in keys:
        array = storages.by_key[key].array
        count = int.from_bytes(machine.take(8), "little")
        if count != len(array):
            raise Damage(f"storage {shown(key)} has {count} numbers where {len(array)} are announced")
        array[:] = np.frombuffer(machine.take(array.nbytes), array.dtype)
        array.flags.writeable = False
    return value


def _storage_from_bytes(machine: Machine, arguments: tuple[Any, ...]) -> _Storage:
    """Stands for torch.storage._load_from_bytes; what it reads may not call it again."""
    match arguments:
        case (bytes(content),):
            machine.budget.claim(len(content))
            value = _read_torch(content, machine.budget, _STORAGE_NAMES)
            if isinstance(value, _Storage):
                return value
    raise Damage("a tensor is not written as torch does")


def _tensor(machine: Machine, arguments: tuple[Any, ...]) -> NDArray[Any]:
    """Stands for torch._utils._rebuild_tensor_v2: a view of a storage with no more elements than that has."""
    match arguments:
        case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            return _view(storage.array, offset, shape, strides)
    raise Damage("a tensor is not written as torch does")


def _view(array: NDArray[Any], offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> NDArray[Any]:
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise Damage("the shape, strides or offset of a tensor are not whole numbers from 0")
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise Damage(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    if 0 in shape:
        return _without_elements(shape, array.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(array) or math.prod(shape) > len(array):
        raise Refusal(f"a tensor of shape {list(shape)} claims more than its storage of {len(array)} numbers")
    size = array.itemsize
    view: NDArray[Any] = np.ndarray(shape, array.dtype, array, offset * size, [size * n for n in strides])
    view.flags.writeable = False
    return view


def _without_elements(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if math.prod(n for n in shape if n) > _LARGEST_EMPTY:
        raise Refusal(f"it holds an array of shape {list(shape)}")
    return np.empty(shape, dtype)


class _NumberType(StandIn):
    """Stands for numpy.dtype: booleans, integers and floats."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        match state:
            case (int(), str("<" | "|" | "=" | ">") as order, None, None, None, *_):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise Damage("a numpy type is not written as numpy does")


def _number_type(_machine: Machine, arguments: tuple[Any, ...]) -> _NumberType:
    match arguments:
        case (str(code), *_):
            if code in _NUMBERS:
                return _NumberType(code)
            raise Refusal(f"it holds numpy values of type {shown(code)}")
    raise Damage("a numpy type is not written as numpy does")


def _scalar(_machine: Machine, arguments: tuple[Any, ...]) -> bool | int | float:
    """Stands for numpy's constructor of a scalar."""
    match arguments:
        case (_NumberType(dtype=dtype), bytes(content)) if len(content) == dtype.itemsize:
            plain: bool | int | float = np.frombuffer(content, dtype)[0].item()
            return plain
    raise Damage("a number is not written as numpy does")


class _Array(StandIn):
    """Stands for a numpy array until its state is known."""

    def __init__(self) -> None:
        self._array: NDArray[Any] | None = None

    def set_state(self, state: Any) -> None:
        match state:
            case (int(), tuple(shape), _NumberType(dtype=dtype), bool(by_column), bytes(content)):
                self._array = _array_of(content, dtype, shape, "F" if by_column else "C")
            case _:
                raise Damage("an array is not written as numpy does")

    @property
    def value(self) -> Any:
        return self if self._array is None else self._array


def _new_array(_machine: Machine, arguments: tuple[Any, ...]) -> _Array:
    """Stands for numpy's _reconstruct; the numbers follow as its state."""
    match arguments:
        case (Name(text="numpy.ndarray"), (int(0),), bytes()):
            return _Array()
    raise Damage("an array is not written as numpy does")


def _array_from_buffer(_machine: Machine, arguments: tuple[Any, ...]) -> NDArray[Any]:
    """Stands for numpy's _frombuffer (protocol 5)."""
    match arguments:
        case (bytes(content), _NumberType(dtype=dtype), tuple(shape), str("C" | "F") as order):
            return _array_of(content, dtype, shape, order)
    raise Damage("an array is not written as numpy does")


def _array_of(content: bytes, dtype: np.dtype[Any], shape: tuple[Any, ...], order: Any) -> NDArray[Any]:
    if not all(type(n) is int and 0 <= n < 2**62 for n in shape) or len(shape) > _MOST_DIMENSIONS:
        raise Damage("the shape of an array is not a few whole numbers from 0")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise Damage(f"an array of shape {list(shape)} has {len(content)} bytes")
    if not content:
        return _without_elements(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _latin1(machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    """Stands for _codecs.encode, with which protocol 2 writes bytes."""
    match arguments:
        case (str(text), str("latin1")):
            machine.budget.claim(len(text))
            return text.encode("latin1")
    raise Refusal("it calls _codecs.encode for something else than bytes")


def _no_bytes(_machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    """Stands for bytes(), as which protocol 2 writes b""."""
    if arguments:
        raise Refusal("it calls bytes for something else than no bytes")
    return b""


def _map(_machine: Machine, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Stands for collections.OrderedDict."""
    if arguments:
        raise Damage("an ordered dictionary is not written as Python does")
    return {}


def _table(*names: Name) -> dict[str, Name]:
    return {name.text: name for name in names}


def _object(text: str) -> Name:
    return Name(text, new=lambda: PlainObject(text))


_STORAGE_NAMES = _table(*(Name(f"torch.{kind}", tag=np.dtype(code)) for kind, code in _STORAGES.items()))
_NAMES = _STORAGE_NAMES | _table(
    Name("collections.OrderedDict", _map),
    Name("_codecs.encode", _latin1),
    Name("__builtin__.bytes", _no_bytes),
    Name("torch._utils._rebuild_tensor_v2", _tensor),
    Name("torch._utils._rebuild_tensor", _tensor),
    Name("torch.storage._load_from_bytes", _storage_from_bytes),
    Name("numpy.ndarray"),
    Name("numpy.dtype", _number_type),
    *(Name(f"numpy.{core}.multiarray.scalar", _scalar) for core in ("core", "_core")),
    *(Name(f"numpy.{core}.multiarray._reconstruct", _new_array) for core in ("core", "_core")),
    *(Name(f"numpy.{core}.numeric._frombuffer", _array_from_buffer) for core in ("core", "_core")),
    _object("torch_geometric.data.data.Data"),
    _object("torch_geometric.data.storage.GlobalStorage"),
    Name("torch_geometric.data.data.DataEdgeAttr"),
    Name("torch_geometric.data.data.DataTensorAttr"),
)
