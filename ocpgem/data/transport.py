"""Carry a nest of tensors between processes as one block of shared memory.

Torch passes every tensor of a batch through its own file descriptor; a batch with its topology has about
forty, which costs the training process several milliseconds a step and runs into the limit of open files.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64


@dataclass(frozen=True)
class Packed:
    """An object whose tensors lie in one buffer: where each is, and the object without them."""

    buffer: Tensor
    layout: list[tuple[int, tuple[int, ...], torch.dtype]]
    skeleton: bytes

    def pin_memory(self) -> Packed:
        """The same in page-locked memory (called by torch's DataLoader)."""
        return Packed(self.buffer.pin_memory(), self.layout, self.skeleton)

    def unpack(self) -> Any:
        """The object; its tensors are views of the buffer."""
        tensors = [
            self.buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for start, shape, dtype in self.layout
        ]
        return _Unpickler(io.BytesIO(self.skeleton), tensors).load()


def pack(item: Any) -> Packed:
    """Move the tensors of an object, all on the CPU, into one block of shared memory."""
    skeleton = io.BytesIO()
    pickler = _Pickler(skeleton)
    pickler.dump(item)
    layout: list[tuple[int, tuple[int, ...], torch.dtype]] = []
    end = 0
    for tensor in pickler.tensors:
        layout.append((end, tuple(tensor.shape), tensor.dtype))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    # As in torch's own collate: `share_memory_` would copy a private buffer, twice the time.
    buffer = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(end))
    packed = Packed(buffer, layout, skeleton.getvalue())
    for tensor, (start, _, _) in zip(pickler.tensors, layout, strict=True):
        if tensor.nbytes:  # the strides of an empty tensor may rule out a view
            buffer[start : start + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
    return packed


class _Pickler(pickle.Pickler):
    """Leaves a number in place of every tensor."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, item: Any) -> int | None:
        if not isinstance(item, Tensor):
            return None
        number = self._numbers.setdefault(id(item), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(item)
        return number


class _Unpickler(pickle.Unpickler):
    """Puts the tensors back. What it reads was made by `pack` in a process of the same run, never a file."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Tensor:
        return self._tensors[pid]
