"""The part of ocpgem that is compiled; all else about the package stands in pyproject.toml.

Where it cannot be compiled, torch computes what it would: `main.py doctor` says so.
"""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("ocpgem/kernels")
HEADERS = ("common.h", "product.h")
FILES = ("angular.c", "products.c", "quadruplets.c", "silu.c")
# By which ocpgem/kernels/native.py refuses a library of other sources.
SOURCES = hashlib.sha256(b"".join((KERNELS / name).read_bytes() for name in (*HEADERS, *FILES)))

setup(
    ext_modules=[
        Extension(
            "ocpgem.kernels._native",
            [str(KERNELS / name) for name in FILES],
            define_macros=[("OCPGEM_SOURCES", f'"{SOURCES.hexdigest()}"')],
            extra_compile_args=[
                "-O3",
                "-fopenmp",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-Wno-psabi",  # about vectors as arguments of functions that are inlined
            ],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
