"""Reading foreign torch files without ever running what they say: tensors and plain values only.

`torch.load(weights_only=True)` builds nothing but tensors and containers and refuses every other name it meets. Old
containers hold two harmless kinds of values beyond that, numpy numbers and paths; for these names it is given
stand-ins of this module, which return plain Python values.
"""

import codecs
import re
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ocpgem.errors import CheckpointError, RequestError, one_line

_NUMBER_KINDS = "biuf"
_LOOKED_AT = 4096
_LEAST_OF_TEXT = ord("\t")


class _NumberType:
    """Stands for numpy.dtype: only booleans, integers and floats exist."""

    def __init__(self, code: str, *_flags: object) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in _NUMBER_KINDS:
            raise ValueError(f"a numpy value of type {code!r} is not a number")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


def _number(number_type: _NumberType, content: bytes) -> bool | int | float:
    """Stands for numpy's constructor of a scalar."""
    if not isinstance(number_type, _NumberType) or not isinstance(content, bytes):
        raise ValueError("a numpy scalar is not written as numpy does")
    (value,) = np.frombuffer(content, number_type.dtype)
    plain: bool | int | float = value.item()
    return plain


def _path(*parts: str) -> str:
    """Stands for pathlib's classes: a path as text."""
    return str(PurePosixPath(*map(str, parts)))


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    (_path, "pathlib.PosixPath"),
    (_path, "pathlib.WindowsPath"),
    (_path, "pathlib.PurePosixPath"),
    (_path, "pathlib.PureWindowsPath"),
    (_path, "pathlib._local.PosixPath"),
]


def load_values(path: Path) -> Any:
    """The content of a torch file, on the CPU.

    Raises RequestError if there is no such file or it is text, CheckpointError if it is damaged or asks for anything
    but values.
    """
    if not path.is_file():
        raise RequestError(f"{path}: there is no such file")
    refuse_text(path)
    with path.open("rb") as file:
        try:
            with (
                torch.serialization.safe_globals(_STAND_INS),
                warnings.catch_warnings(action="ignore"),  # of foreign files, which end in an error anyway
            ):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged or foreign file
            raise CheckpointError(_refusal(path, error)) from error


def refuse_text(path: Path) -> None:
    """Raise RequestError for a file of text: no damage makes that of an archive or a pickle as torch writes them."""
    with path.open("rb") as file:
        beginning = file.read(_LOOKED_AT)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return
    if beginning and min(beginning) >= _LEAST_OF_TEXT:
        raise RequestError(f"{path} is text, not a checkpoint; give a run directory or a checkpoint file")


_ASKED = re.compile(r"GLOBAL ([A-Za-z_][\w.]*) (?:was|whose)|unrecognized function (<.*>)")
_REASON = re.compile(r"WeightsUnpickler error:\s*(.+)")


def _refusal(path: Path, error: Exception) -> str:
    return f"{path} {why_not_read(error, 'torch file')}"


def why_not_read(error: Exception, kind: str) -> str:
    """Why torch did not read a file, without its advice to read it in the way that runs what it says."""
    said = str(error)
    asked = _ASKED.search(said)
    if asked is not None:
        return (
            f"is refused and nothing in it was run: it asks for {asked.group(1) or asked.group(2)}, "
            "but only tensors and plain values are read"
        )
    if "GLOBAL" in said:  # text can look like a pickle that asks for a name, but no class is called so
        return f"cannot be read as a {kind}: it is neither an archive nor a pickle"
    reason = _REASON.search(said)
    return f"cannot be read as a {kind}: {reason.group(1).strip() if reason else one_line(error)}"
