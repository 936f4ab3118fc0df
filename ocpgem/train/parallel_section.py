"""The section `parallel` of a configuration."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ocpgem.config import Contradiction, Section


class ParallelSection(Section):
    """How the work is divided over ranks, and how they exchange gradients."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="DeepSpeed ZeRO: what is divided over the ranks; 0 nothing, 1 the optimiser state, 2 gradients as "
        "well, 3 (direct forces only) also the weights",
    )
    graph: int = Field(
        1,
        ge=1,
        description="ranks that share the edges of a batch, for systems whose activations do not fit on one GPU; the "
        "number of ranks must be a multiple. Validation divides systems over all ranks, not edges",
    )
    reduce_bucket: int = Field(
        500_000_000,
        ge=1,
        description="gradients summed over ranks at once, in numbers; fewer need a smaller buffer and more messages",
    )
    overlap: bool = Field(
        False,
        description="sum gradients over ranks while others are still computed (ZeRO 1 to 3; takes a reduce_bucket "
        "smaller than the model); then a rank that runs out of memory or a loss that is not finite ends the run",
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """What can be combined."""
        if self.zero_stage == 3 and self.graph > 1:
            yield (
                ("zero_stage", "graph"),
                f"graph is {self.graph}, which works with zero_stage 0, 1 and 2, not with 3",
            )
        if self.overlap and self.zero_stage == 0:
            yield (
                ("overlap", "zero_stage"),
                "overlap needs zero_stage 1, 2 or 3: stage 0 sums gradients once all are there",
            )
        if self.overlap and self.graph > 1:
            yield (
                ("overlap", "graph"),
                f"overlap does not work with graph above 1, and graph is {self.graph}",
            )
