"""What torch.compile translates: interaction blocks for batches of all sizes, or the whole model for a few sizes."""

import os
import shutil

import torch

from ocpgem.errors import RequestError
from ocpgem.graph.buckets import MOST_SHAPES
from ocpgem.models.potential import Potential

MOST_GRAPHS = 8
"""How often a block may be translated, for example for training and for validation; later kinds run as they are."""


def compile_blocks(potential: Potential, device: torch.device, backend: str = "inductor") -> None:
    """Let torch.compile translate the interaction blocks at their first use, with sizes left open.

    backend: of torch.compile; "inductor" makes kernels, "aot_eager" only the graphs.

    Raises RequestError where there is no C++ compiler for the code of a CPU.
    """
    _require_compiler("blocks", device)
    import torch._dynamo  # seconds, so only where it is wanted

    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    for block in potential.model.blocks:
        block.compile(dynamic=True, backend=backend)


def compile_full(potential: Potential, device: torch.device, backend: str = "inductor") -> None:
    """Let torch.compile translate the whole model, as one graph, for each size that batches are filled up to.

    Batches that are not filled up (`ocpgem.graph.buckets`), as in validation, are computed as without it.

    Raises RequestError where there is no C++ compiler for the code of a CPU.
    """
    _require_compiler("full", device)
    import torch._dynamo

    torch._dynamo.config.recompile_limit = MOST_SHAPES
    potential.compiled = torch.compile(
        potential.model.forward, dynamic=False, fullgraph=True, backend=backend
    )


def _require_compiler(how: str, device: torch.device) -> None:
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise RequestError(
            f"compile: {how} needs a C++ compiler, but there is no {compiler} on PATH; install it, set CXX, or use "
            "compile: off"
        )


def n_graphs() -> int:
    """How many graphs torch.compile has made in this process; more than one per use means recompilations."""
    import torch._dynamo.utils

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
