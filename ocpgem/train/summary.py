"""The end of a run in words, and what it has used."""

import resource

import torch

from ocpgem.graph.buckets import MOST_SHAPES
from ocpgem.train.compiling import MOST_GRAPHS, n_graphs
from ocpgem.train.parts import RunParts, TrainSummary
from ocpgem.train.state import TrainState


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_text(summary: TrainSummary, state: TrainState, parts: RunParts) -> str:
    """What is in `summary.txt` of a run directory."""
    config = parts.config
    ended = "finished" if summary.stopped_by is None else f"stopped by {summary.stopped_by.name}"
    lines = [
        f"{config.model.variant}, {ended} after step {summary.steps_done} of {config.steps}",
        f"time: {state.seconds / 3600:.3f} h on {state.world_size} rank(s), {state.drawn:,} systems drawn",
        f"memory: {peak_bytes(parts.device) / 1e9:.2f} GB at most (rank 0)",
    ]
    if config.compile == "blocks":
        lines.append(
            f"torch.compile: {n_graphs()} graphs (at most {MOST_GRAPHS} of a block; later kinds run as they are)"
        )
    if config.compile == "full":
        lines.append(
            f"torch.compile: {n_graphs()} graphs, one for each size that batches were filled up to "
            f"(at most {MOST_SHAPES}; other batches run as they are)"
        )
    if state.skipped:
        lines.append(f"steps left out because they were not finite: {state.skipped}")
    if state.best_metric is not None:
        name = config.validation.metric
        lines.append(f"best {name}: {state.best_metric:.6g} at step {state.best_step} (best/model.pt)")
    for split, metrics in summary.metrics.items():
        lines.append(f"last validation on {split}:")
        lines += [f"  {name:<32}{value:.6g}" for name, value in metrics.items()]
    return "\n".join(lines) + "\n"
