"""The one part of ocpgem that is compiled; all else about the package stands in pyproject.toml.

Where it cannot be compiled, torch computes what it would: `main.py doctor` says so.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "ocpgem.kernels._silu",
            ["ocpgem/kernels/silu.c"],
            extra_compile_args=[
                "-O3",
                "-fopenmp",
                "-ffp-contract=fast",
                "-fno-math-errno",
                "-fno-trapping-math",
            ],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
