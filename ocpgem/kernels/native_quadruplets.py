"""Sums over quadruplets weighted by spherical harmonics on a CPU, and their derivatives: what quadruplets.c computes.

torch computes them as products of so small matrices that most of the time passes between them, and the gradient of a
gradient goes through all of it several times. Tensors are float32 and on the CPU. What the tables mean stands in
`ocpgem.models.gemnet.spherical_angles`.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ocpgem.kernels import use_native
from ocpgem.kernels.native import functions

_VECTOR, _ALIGNED = 8, 64
"""Channels that the functions handle together; where their memory begins."""


class _Both(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("tangent", ctypes.c_void_p)]


_TABLES = ("x", "of_inner", "of_outer", "polar", "spherical")
_RESULTS = ("by_x", "by_inner", "by_outer", "by_polar", "by_spherical")


class _Sum(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("atoms", "middle", "degree", "inner", "channels", "rows", "n")),
        ("excluded", ctypes.c_void_p),
        ("members", ctypes.c_void_p),
        ("smallest", ctypes.c_float),
        ("noise", ctypes.c_float),
        *((name, _Both) for name in (*_TABLES, "grad", "out", *_RESULTS)),
    ]


@dataclass
class QuadrupletSums:
    """Sums over the quadruplets of some atoms, one edge c -> a after the other, and the derivatives by their tables.

    The tables, x, of_inner, of_outer, polar and spherical, are those of `SphericalAngles.sum`, [n_atoms, ...] each and
    contiguous.
    """

    n_spherical: int
    members: Tensor
    """[n_spherical^2], the column of spherical to which each row of polar belongs; int64."""
    excluded: Tensor
    """[n_atoms, middle degree, degree], which row d of the middle edge is c itself; max_inner where none is."""
    smallest: float
    """The least size of the product of both sides' vectors that an angle is taken of."""
    noise: float
    """The sine of an angle below which it is rounding noise."""

    @staticmethod
    def can(tables: Sequence[Tensor]) -> bool:
        """Say whether the functions compute what starts from these tables."""
        return tables[0].shape[3] % _VECTOR == 0 and use_native(*tables)

    def value(self, tables: Sequence[Tensor]) -> Tensor:
        """[n_atoms, degree, spherical_dim, channels]."""
        out = tables[0].new_zeros(*tables[4].shape[:3], tables[0].shape[3])
        self._run(tables, None, out=_values([out])[0])
        return out

    def gradients(self, grad: Tensor, tables: Sequence[Tensor], with_angles: bool) -> list[Tensor | None]:
        """Of all tables; with_angles: else those of x and spherical alone."""
        found = _zeros(tables, with_angles)
        self._run(tables, None, grad=_values([grad])[0], **dict(zip(_RESULTS, _values(found), strict=True)))
        return found

    def second_gradients(
        self, grad: Tensor, tables: Sequence[Tensor], of_gradients: Sequence[Tensor], with_angles: bool
    ) -> list[Tensor | None]:
        """What gradients of those of all tables give to grad and to all tables; with_angles: as above."""
        both = [
            _Both(table.data_ptr(), of_gradient.data_ptr())
            for table, of_gradient in zip(tables, of_gradients, strict=True)
        ]
        found = [torch.zeros_like(grad), *_zeros(tables, with_angles)]
        results = [_Both(None, pointer.value) for pointer in _values(found)]
        named = dict(zip(("out", *_RESULTS), results, strict=True))
        self._run(tables, both, grad=_values([grad])[0], **named)
        return found

    def _run(self, tables: Sequence[Tensor], both: Sequence[_Both] | None, **others: _Both) -> None:
        x, _, of_outer, _, spherical = tables
        n_atoms, middle_degree, max_inner, channels = x.shape
        given = dict(zip(_TABLES, both or _values(tables), strict=True))
        of = _Sum(
            atoms=n_atoms, middle=middle_degree, degree=of_outer.shape[2], inner=max_inner, channels=channels,
            rows=spherical.shape[2], n=self.n_spherical, excluded=self.excluded.data_ptr(),
            members=self.members.data_ptr(), smallest=self.smallest, noise=self.noise, **given, **others,
        )  # fmt: skip
        library, threads = functions(), torch.get_num_threads()
        of_thread = library.ocpgem_quadruplet_memory(ctypes.byref(of))
        memory = torch.empty(threads * of_thread + _ALIGNED, dtype=torch.uint8)
        start = -(-memory.data_ptr() // _ALIGNED) * _ALIGNED
        library.ocpgem_quadruplet_sum(ctypes.byref(of), start, threads)


def _zeros(tables: Sequence[Tensor], with_angles: bool) -> list[Tensor | None]:
    return [
        torch.zeros_like(table) if with_angles or name in ("x", "spherical") else None
        for name, table in zip(_TABLES, tables, strict=True)
    ]


def _values(tensors: Sequence[Tensor | None]) -> list[_Both]:
    return [_Both(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
