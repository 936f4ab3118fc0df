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
from ocpgem.kernels.native import WIDTH, functions

_ALIGNED = 64
"""Where the memory of a thread begins."""
_TABLES = ("x", "of_inner", "of_outer", "polar", "spherical")


class _Both(ctypes.Structure):
    """`Both` of quadruplets.c: where numbers lie, and where their tangents do; None where not."""

    _fields_ = [("value", ctypes.c_void_p), ("tangent", ctypes.c_void_p)]


class _Sum(ctypes.Structure):
    """`Sum` of quadruplets.c, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("atoms", "middle", "degree", "inner", "channels", "rows", "n")),
        ("excluded", ctypes.c_void_p),
        ("members", ctypes.c_void_p),
        ("smallest", ctypes.c_float),
        ("noise", ctypes.c_float),
        ("tables", _Both * 5),
        ("grad", _Both),
        ("results", _Both * 6),
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
        return tables[0].shape[3] % WIDTH == 0 and use_native(*tables)

    def value(self, tables: Sequence[Tensor]) -> Tensor:
        """[n_atoms, degree, spherical_dim, channels]."""
        out = tables[0].new_zeros(*tables[4].shape[:3], tables[0].shape[3])
        self._run(tables, _values(tables), _Both(), _values([out]))
        return out

    def gradients(self, grad: Tensor, tables: Sequence[Tensor], with_angles: bool) -> list[Tensor | None]:
        """Of all tables; with_angles: else those of x and spherical alone."""
        found = _zeros(tables, with_angles)
        self._run(tables, _values(tables), _Both(grad.data_ptr()), [_Both(), *_values(found)])
        return found

    def second_gradients(
        self, grad: Tensor, tables: Sequence[Tensor], of_gradients: Sequence[Tensor], with_angles: bool
    ) -> list[Tensor | None]:
        """What gradients of those of all tables give to grad and to all tables; with_angles: as above."""
        found = [torch.zeros_like(grad), *_zeros(tables, with_angles)]
        both = [_Both(*pair) for pair in zip(_pointers(tables), _pointers(of_gradients), strict=True)]
        results = [_Both(None, pointer) for pointer in _pointers(found)]
        self._run(tables, both, _Both(grad.data_ptr()), results)
        return found

    def _run(
        self, tables: Sequence[Tensor], both: Sequence[_Both], grad: _Both, results: Sequence[_Both]
    ) -> None:
        """both: the tables, with tangents or without; results: the sum, then gradients of all tables."""
        x, _, of_outer, _, spherical = tables
        n_atoms, middle_degree, max_inner, channels = x.shape
        degree, rows, n = of_outer.shape[2], spherical.shape[2], self.n_spherical
        sizes = [
            (n_atoms, middle_degree, max_inner, channels),
            (n_atoms, middle_degree, max_inner, 4 * n + 1),
            (n_atoms, middle_degree, degree, 8 * n + 1),
            (n_atoms, degree, n * n, middle_degree),
            (n_atoms, degree, rows, n * n),
            (n_atoms, middle_degree, degree),
        ]
        found = [tuple(table.shape) for table in (*tables, self.excluded)]
        if found != sizes:  # they are read by their addresses alone
            raise ValueError(f"sizes of tables and excluded are {found}; they must be {sizes}")
        of = _Sum(
            atoms=n_atoms, middle=middle_degree, degree=degree, inner=max_inner, channels=channels,
            rows=rows, n=self.n_spherical, excluded=self.excluded.data_ptr(),
            members=self.members.data_ptr(), smallest=self.smallest, noise=self.noise, tables=tuple(both),
            grad=grad, results=tuple(results),
        )  # fmt: skip
        library, threads = functions(), torch.get_num_threads()
        assert library.ocpgem_quadruplet_arguments() == ctypes.sizeof(_Sum)
        of_thread = library.ocpgem_quadruplet_memory(ctypes.byref(of))
        memory = x.new_empty(threads * of_thread + _ALIGNED, dtype=torch.uint8)
        start = -(-memory.data_ptr() // _ALIGNED) * _ALIGNED
        library.ocpgem_quadruplet_sum(ctypes.byref(of), start, threads)


def _zeros(tables: Sequence[Tensor], with_angles: bool) -> list[Tensor | None]:
    return [
        torch.zeros_like(table) if with_angles or name in ("x", "spherical") else None
        for name, table in zip(_TABLES, tables, strict=True)
    ]


def _pointers(tensors: Sequence[Tensor | None]) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _values(tensors: Sequence[Tensor | None]) -> list[_Both]:
    return [_Both(pointer) for pointer in _pointers(tensors)]
