"""The part of ocpgem that is compiled; all else about the package stands in pyproject.toml.

Where it cannot be compiled, torch computes what it would: `main.py doctor` says so.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "ocpgem.kernels._native",
            ["ocpgem/kernels/products.c", "ocpgem/kernels/silu.c"],
            depends=["ocpgem/kernels/common.h"],
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
