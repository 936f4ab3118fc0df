"""Interaction blocks translated by torch.compile: one graph of each kind, for batches of all sizes."""

import os
import shutil

import torch

from ocpgem.errors import RequestError
from ocpgem.models.potential import Potential

MOST_GRAPHS = 8
"""How often a block may be translated, for example for training and for validation; later kinds run as they are."""


def compile_blocks(potential: Potential, device: torch.device, backend: str = "inductor") -> None:
    """Let torch.compile translate the interaction blocks at their first use, with sizes left open.

    backend: of torch.compile; "inductor" makes kernels, "aot_eager" only the graphs.

    Raises RequestError where there is no C++ compiler for the code of a CPU.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise RequestError(
            f"compile: blocks needs a C++ compiler, but there is no {compiler} on PATH; install it, set CXX, or use "
            "compile: off"
        )
    import torch._dynamo  # seconds, so only where it is wanted

    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    for block in potential.model.blocks:
        block.compile(dynamic=True, backend=backend)


def n_graphs() -> int:
    """How many graphs torch.compile has made in this process; more than one per use means recompilations."""
    import torch._dynamo.utils

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
