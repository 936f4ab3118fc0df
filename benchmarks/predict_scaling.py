"""A training step on 8 to 512 GPUs, predicted: the tables of docs/scaling.md.

    python benchmarks/predict_scaling.py                      (some minutes; writes predict_scaling.json and .md)
    python benchmarks/predict_scaling.py [--gpu A100-80GB] --model GemNet-dT --step-seconds S

Uses `ocpgem.train.scaling` with the links of that GPU (docs/scaling.md tells the assumptions) on the published
configurations. Weak scaling: each GPU has the published number of systems; strong scaling: all together have the
published batch.

- The step of one GPU with its published systems: S where `--step-seconds` gives a measured one; else, and so in the
  record, NOT measured: the operations of a step, counted on copper slabs with CO (98 atoms), at the share of the GPU's
  peak that `train --dry-run` assumes. A step of other batches takes time in proportion to the systems of a GPU, but at
  least the time of starting its kernels (counted on a narrow model), in each micro-batch of at most the published size.
- Gradients: the model's parameters, under ZeRO-1 in one bucket after the backward pass, as by default.
- Balance: the slowest rank's share of edges over the mean, of OC20-sized systems divided by ocpgem
  (`benchmarks/balance.py`), at this number of ranks and systems a rank; mean of 20 steps. With graph groups, the
  slowest group's.
- Graph groups: as in the configuration, and larger ones where there are fewer systems than groups. Counted on one slab
  of 98 atoms that a group shares: what the rank that sends most sends, for each micro-batch, and by how much the
  operations of the rank with most exceed the mean (divided by the systems of a group, for groups are cut at atoms).
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.balance import N_SYSTEMS, oc20_sizes, over_mean, planned_shares
from benchmarks.graph_parallel import slab
from benchmarks.recorded import RESULTS, write
from benchmarks.scaling import n_parameters
from benchmarks.scaling_table import MODELS
from benchmarks.speed.costs import operations
from benchmarks.speed.machine import as_words, machine
from ocpgem.config import load_config
from ocpgem.data.cost import STORED_EDGES, Batching, Budget
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.draws import all_once
from ocpgem.data.loader import Recipe
from ocpgem.data.plan import TrainPlan
from ocpgem.models.potential import Normalization
from ocpgem.train.config import TrainConfig
from ocpgem.train.estimate import GPUS, SHARE_OF_PEAK
from ocpgem.train.scaling import LINKS, Links, Prediction, messages, predict, seconds_within
from ocpgem.train.step_cost import StepCost, step_cost

ROOT = Path(__file__).resolve().parents[1]
RANKS = (8, 16, 32, 64, 128, 256, 512)
COUNTED = (4, 6, 4)
"""Copper atoms along the edges of the slab whose operations are counted."""
STEPS = 20
RECORDED_GPU = "A100-80GB"
LAUNCH = 10e-6
"""Assumed seconds in which the host starts a kernel; less with `compile`."""


@dataclass(frozen=True)
class Group:
    """What is counted of a graph group that shares one slab."""

    sent_bytes: int = 0
    sent_messages: int = 0
    excess: float = 0.0
    """Operations of the rank with most over the mean of one rank alone, minus 1."""


@dataclass(frozen=True)
class Counted:
    """What the prediction needs of a model; nothing of it is a time."""

    per_gpu: int
    batch: int
    """Systems of a step, as published."""
    zero_stage: int
    reduce_bucket: int
    overlap: bool
    precision: str
    group: int
    """Ranks of a graph group in the configuration."""
    parameters: int
    flops: int
    """Operations of a step with one slab."""
    kernels: int
    groups: dict[int, Group]
    """By the number of their ranks."""

    def group_for(self, ranks: int, batch: int) -> int:
        """Ranks of a group where each group must have a system of the batch."""
        return max(self.group, -(-ranks // batch))


def config_of(model: str) -> TrainConfig:
    return load_config(ROOT / "configs" / "s2ef" / "all" / MODELS[model][0], [], TrainConfig)


def counted(model: str) -> Counted:
    """Everything of a model that is counted."""
    config, per_gpu = config_of(model), MODELS[model][1]
    section, batch = config.parallel, config.data.batch_size
    assert isinstance(batch, int)
    kernels = operations(model)
    alone = slab_cost(config)
    found = Counted(
        per_gpu=per_gpu,
        batch=batch,
        zero_stage=section.zero_stage,
        reduce_bucket=section.reduce_bucket,
        overlap=section.overlap,
        precision=config.precision,
        group=section.graph,
        parameters=n_parameters(config.model.model_dump()),
        flops=alone.flops,
        kernels=kernels["kernels_forward"] + kernels["kernels_backward"],
        groups={},
    )
    sizes = {found.group, *(found.group_for(ranks, batch) for ranks in RANKS)}
    return replace(found, groups={size: group_cost(config, size, alone) for size in sorted(sizes)})


def slab_cost(config: TrainConfig, size: int = 1, rank: int = 0) -> StepCost:
    """A step with one slab, of a rank of a graph group of `size`."""
    recipe = Recipe(InMemoryDataset([slab(COUNTED)]), config.model.graph_spec, config.model.n_elements)
    divided = config.model_copy(update={"parallel": config.parallel.model_copy(update={"graph": size})})
    return step_cost(divided, *recipe.prepare(np.array([0])), Normalization(), rank)


def group_cost(config: TrainConfig, size: int, alone: StepCost) -> Group:
    """What the ranks of a group send each other for a slab, and how unevenly they share it."""
    if size == 1:
        return Group()
    ranks = [slab_cost(config, size, rank) for rank in range(size)]
    return Group(
        max(rank.sent_bytes for rank in ranks),
        max(rank.sent_messages for rank in ranks),
        max(rank.flops for rank in ranks) * size / alone.flops - 1,
    )


def step_seconds(model: Counted, gpu: str) -> float:
    """A step of the published number of slabs at the assumed share of the GPU's peak."""
    rate = GPUS[gpu].tflops[model.precision] * SHARE_OF_PEAK[model.precision] * 1e12
    return model.per_gpu * model.flops / rate


@cache
def sizes() -> Any:
    return oc20_sizes(N_SYSTEMS)


@cache
def unevenness(ranks: int, per_rank: int) -> float:
    """The slowest rank's share of edges over the mean, minus 1."""
    rows = sizes()
    edges = rows["n_edges"].astype(np.float64)
    budget = Budget(STORED_EDGES, int(edges.mean() * ranks * per_rank))
    plan = TrainPlan(all_once(len(rows), 0), rows.__getitem__, Batching(budget))
    return over_mean(planned_shares(plan.steps(), edges, edges, ranks), STEPS)[0] / 100


@dataclass(frozen=True)
class Ways:
    """A step predicted for the configuration as it is, with overlap in 16 buckets, and on a slow network."""

    usual: Prediction
    overlap: Prediction
    slow: Prediction

    def numbers(self) -> dict[str, dict[str, float]]:
        """For JSON."""
        return {
            way: asdict(found) | {"seconds": found.seconds, "efficiency": found.efficiency}
            for way, found in vars(self).items()
        }


def predicted(model: Counted, alone: float, gpu: str, ranks: int, batch: int) -> Ways:
    """A step of `batch` systems on GPUs of a kind; alone: seconds of one with its published systems."""
    size, links = model.group_for(ranks, batch), LINKS[gpu]
    n_groups, of_group = ranks // size, model.groups[size]
    per_group = batch // n_groups
    micro_batches = -(-batch // (ranks * model.per_gpu))
    seconds = alone * batch / (ranks * model.per_gpu)
    uneven = (1 + unevenness(n_groups, per_group)) * (1 + of_group.excess / per_group) - 1
    starting = micro_batches * model.kernels * LAUNCH
    if starting > seconds * (1 + uneven):
        seconds, uneven = starting, 0.0

    def on(links: Links, overlap: bool) -> Prediction:
        bucket = model.parameters // 16 if overlap else model.reduce_bucket
        sent = messages(model.parameters, model.zero_stage, bucket, overlap or model.overlap)
        within = micro_batches * seconds_within(of_group.sent_bytes, of_group.sent_messages, links)
        return predict(seconds, sent, ranks, links, uneven, within)

    slow = replace(links, between_nodes=links.between_nodes / 10)
    return Ways(on(links, False), on(links, True), on(slow, False))


def scaled(model: Counted, alone: float, gpu: str) -> dict[str, dict[int, Ways]]:
    """Weak and strong scaling: by number of GPUs."""
    batches = {"weak": lambda ranks: ranks * model.per_gpu, "strong": lambda ranks: model.batch}
    found: dict[str, dict[int, Ways]] = {}
    for kind, batch in batches.items():
        found[kind] = {ranks: predicted(model, alone, gpu, ranks, batch(ranks)) for ranks in RANKS}
    return found


def efficiency(model: Counted, alone: float, ranks: int, batch: int, seconds: float) -> float:
    """Share of the time of all GPUs that one GPU would need for the batch, published systems at a time."""
    return alone * batch / model.per_gpu / (ranks * seconds)


def summary(models: dict[str, Counted], alone: dict[str, float], found: dict[str, Any]) -> list[str]:
    """The tables of docs/scaling.md."""
    heads, rule = " | ".join(map(str, RANKS)), "|---" * (len(RANKS) + 1) + "|"
    lines = [
        "| counted, and the step from it | systems per GPU | operations of a system, TFLOP | step of one GPU, s | "
        "gradients, MB | kernels | ranks of a group | sent within it for a system, MB | messages | most operations "
        "above the mean |",
        "|---" * 10 + "|",
    ]
    for name, model in models.items():
        for size, group in model.groups.items():
            shared = f"{group.sent_bytes / 1e6:.1f} | {group.sent_messages:,} | {group.excess:.2%}"
            lines.append(
                f"| {name} | {model.per_gpu} | {model.flops / 1e12:.2f} | {alone[name]:.3f} | "
                f"{4 * model.parameters / 1e6:.0f} | {model.kernels:,} | {size} | "
                f"{shared if size > 1 else ' | |'} |"
            )
    lines += ["", f"| weak scaling: efficiency on GPUs | {heads} |", rule]
    labels = {"usual": "", "overlap": ", overlap, 16 buckets", "slow": ", between nodes 10 times slower"}
    for name in models:
        for way, label in labels.items():
            each = (getattr(ways, way).efficiency for ways in found[name]["weak"].values())
            lines.append(f"| {name}{label} | " + " | ".join(f"{value:.3f}" for value in each) + " |")
    lines += ["", f"| strong scaling: s a step on GPUs | {heads} |", rule]
    for name, model in models.items():
        each = (ways.usual.seconds for ways in found[name]["strong"].values())
        cells = " | ".join(f"{value:.3f}" for value in each)
        lines.append(f"| {name}, {model.batch:,} systems | {cells} |")
    lines += ["", f"| strong scaling: efficiency on GPUs | {heads} |", rule]
    for name, model in models.items():
        each = (
            efficiency(model, alone[name], ranks, model.batch, ways.usual.seconds)
            for ranks, ways in found[name]["strong"].items()
        )
        cells = " | ".join(f"{value:.2f}" for value in each)
        lines.append(f"| {name}, {model.batch:,} systems | {cells} |")
    return lines


def details(models: dict[str, Counted], alone: dict[str, float], found: dict[str, Any]) -> list[str]:
    """What steps are made of."""
    lines = []
    for kind in ("weak", "strong"):
        lines += [
            "",
            f"| {kind} scaling | GPUs | systems | ranks of a group | computing, s | slowest above the mean | "
            "exchange, ms | within groups, ms | step, s | efficiency |",
            "|---" * 10 + "|",
        ]
        for name, model in models.items():
            for ranks, ways in found[name][kind].items():
                step = ways.usual
                batch = ranks * model.per_gpu if kind == "weak" else model.batch
                size = model.group_for(ranks, batch)
                lines.append(
                    f"| {name} | {ranks} | {batch:,} | {size} | {step.alone:.3f} | "
                    f"{step.uneven / step.alone:.2%} | {1e3 * step.exchange:.2f} | {1e3 * step.within:.2f} | "
                    f"{step.seconds:.3f} | {efficiency(model, alone[name], ranks, batch, step.seconds):.3f} |"
                )
    return lines


def main() -> None:
    arguments = _arguments()
    where, gpu = machine(), arguments.gpu
    models = {name: counted(name) for name in ([arguments.model] if arguments.model else MODELS)}
    alone = {name: arguments.step_seconds or step_seconds(model, gpu) for name, model in models.items()}
    found = {name: scaled(model, alone[name], gpu) for name, model in models.items()}
    source = (
        "measured and given" if arguments.step_seconds else "NOT measured: computed from counted operations"
    )
    lines = summary(models, alone, found)
    print("\n".join(lines))
    if arguments.out is None and (arguments.model or gpu != RECORDED_GPU):
        return  # the record is of all models on this one
    words = f"{as_words(where)}; {gpu}; the step of one GPU is {source}."
    about = (__doc__ or "").partition("--step-seconds S\n\n")[2]
    title = "# A training step on 8 to 512 GPUs, predicted"
    record = {
        "machine": where,
        "gpu": gpu,
        "step_of_one_gpu": {"source": source, "seconds": alone},
        "counted": {name: asdict(model) for name, model in models.items()},
        "predicted": {
            name: {
                kind: {ranks: ways.numbers() for ranks, ways in by_ranks.items()}
                for kind, by_ranks in kinds.items()
            }
            for name, kinds in found.items()
        },
    }
    text = [title, "", words, "", about, *lines, *details(models, alone, found)]
    write(arguments.out or RESULTS, "predict_scaling", record, text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", default=RECORDED_GPU, choices=list(LINKS))
    parser.add_argument("--model", choices=list(MODELS), help="this one only")
    parser.add_argument("--step-seconds", type=float, metavar="S", help="measured, of --model on one GPU")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: the record, for all models on that GPU"
    )
    arguments = parser.parse_args()
    if arguments.step_seconds is not None:
        if arguments.model is None:
            parser.error("--step-seconds belongs to one model; name it with --model")
        if not arguments.step_seconds > 0:
            parser.error(f"--step-seconds: {arguments.step_seconds} is not positive")
    return arguments


if __name__ == "__main__":
    main()
