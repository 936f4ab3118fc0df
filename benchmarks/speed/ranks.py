"""Training steps of several ranks on one machine: measured, and predicted as those of GPUs are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ocpgem.train.scaling import ROUNDS, Links, messages, predict

KINDS = ("weak", "strong")


@dataclass(frozen=True)
class Step:
    """A step of some ranks; seconds."""

    kind: str
    ranks: int
    measured: float
    exchange: float
    """Of the messages, predicted."""
    by_cores: float
    """Predicted, where processes beyond the cores take turns and otherwise do not slow each other down."""
    by_crowding: float
    """Predicted, where they slow each other down as measured without messages."""


def link_of(all_reduce_s: float, n_parameters: int, ranks: int) -> Links:
    """The link between ranks of one machine that explains how long an all-reduce of all gradients took."""
    rate = ROUNDS["all_reduce"] * 4 * n_parameters * (ranks - 1) / ranks / all_reduce_s
    return Links(ranks, rate, rate, latency_in_node=0.0, latency_between_nodes=0.0, reached=1.0)


def predicted(found: Mapping[int, Mapping[str, Any]], cores: int) -> list[Step]:
    """Steps of more than one rank under ZeRO-1, one bucket.

    found: number of ranks -> weak, strong: seconds of a step; computing_s: of the forward and backward pass of a rank
    where all compute and none sends; all_reduce_s: of all gradients; parameters.
    """
    alone, steps = found[1], []
    for kind in KINDS:
        for ranks, each in found.items():
            if ranks == 1:
                continue
            n = each["parameters"]
            # Of the one process's step: a rank has as much to compute in weak scaling, its part in strong scaling.
            own = alone[kind] / (ranks if kind == "strong" else 1)
            slower_by = (ranks / min(ranks, cores), each["computing_s"] / alone["computing_s"])
            link, sent = link_of(each["all_reduce_s"], n, ranks), messages(n, 1, n)
            cores_alone, crowded = (predict(own * factor, sent, ranks, link) for factor in slower_by)
            steps.append(
                Step(kind, ranks, each[kind], crowded.exchange, cores_alone.seconds, crowded.seconds)
            )
    return steps


def scaling_table(found: Mapping[int, Mapping[str, Any]], cores: int) -> list[str]:
    """What was measured, as Markdown."""
    alone = found[1]
    lines = [
        "| ranks | weak: s a step | systems/s, over 1 rank | strong: s a step | steps/s, over 1 rank | cores allow | "
        "computing alone, s | all-reduce of the gradients, ms |",
        "|---" * 8 + "|",
    ]
    for size, each in found.items():
        weak, strong = size * alone["weak"] / each["weak"], alone["strong"] / each["strong"]
        lines.append(
            f"| {size} | {each['weak']:.3f} | {weak:.2f} | {each['strong']:.3f} | {strong:.2f} | "
            f"{min(size, cores)} | {each['computing_s']:.3f} | {1e3 * each['all_reduce_s']:.2f} |"
        )
    return lines


def prediction_table(steps: list[Step]) -> list[str]:
    """What was predicted, as Markdown."""
    return [
        "| scaling | ranks | measured: s a step | exchange predicted, ms | predicted from cores, s | "
        "measured / predicted | predicted from computing alone, s | measured / predicted |",
        "|---" * 8 + "|",
        *(
            f"| {step.kind} | {step.ranks} | {step.measured:.3f} | {1e3 * step.exchange:.2f} | "
            f"{step.by_cores:.3f} | {step.measured / step.by_cores:.2f} | {step.by_crowding:.3f} | "
            f"{step.measured / step.by_crowding:.2f} |"
            for step in steps
        ),
    ]


def as_numbers(steps: list[Step]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(step) for step in steps]
