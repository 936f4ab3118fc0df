"""A training step on 8 to 512 GPUs, predicted: the table of docs/scaling.md.

    python benchmarks/predict_scaling.py [--gpu A100-80GB] [--model GemNet-dT --step-seconds S]     (a minute)

Uses `ocpgem.train.scaling` with the links of that GPU (docs/scaling.md tells the assumptions) on the published
configurations and batches:

- the step of one GPU: S where `--step-seconds` gives a measured one; else, and so in the recorded table, NOT measured:
  the operations of a step, counted on copper slabs with CO (98 atoms), at the share of the GPU's peak that
  `train --dry-run` assumes;
- gradients: the model's parameters, under ZeRO-1 in one bucket after the backward pass, as by default;
- balance: the slowest rank's share of edges over the mean, of OC20-sized systems divided by ocpgem
  (`benchmarks/balance.py`), at this number of ranks and systems a rank; mean of 20 steps. Of GemNet-XL, whose
  configuration has graph groups, the slowest group's.

Writes benchmarks/results/predict_scaling.md.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.balance import N_SYSTEMS, oc20_sizes, over_mean, planned_shares
from benchmarks.graph_parallel import slab
from benchmarks.scaling import n_parameters
from benchmarks.scaling_table import MODELS
from benchmarks.speed.process import shown_command
from ocpgem.config import load_config
from ocpgem.data.cost import STORED_EDGES, Batching, Budget
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.draws import all_once
from ocpgem.data.loader import Recipe
from ocpgem.data.plan import TrainPlan
from ocpgem.models.potential import Normalization
from ocpgem.train.config import TrainConfig
from ocpgem.train.estimate import GPUS, SHARE_OF_PEAK
from ocpgem.train.scaling import LINKS, messages, predict
from ocpgem.train.step_cost import step_cost

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "predict_scaling.md"
RANKS = (8, 16, 32, 64, 128, 256, 512)
COUNTED = (4, 6, 4)
"""Copper atoms along the edges of the slab whose operations are counted."""
STEPS = 20


def unevenness(ranks: int, per_rank: int) -> float:
    """The slowest rank's share of edges over the mean, minus 1."""
    rows = oc20_sizes(N_SYSTEMS)
    edges = rows["n_edges"].astype(np.float64)
    budget = Budget(STORED_EDGES, int(edges.mean() * ranks * per_rank))
    plan = TrainPlan(all_once(len(rows), 0), rows.__getitem__, Batching(budget))
    return over_mean(planned_shares(plan.steps(), edges, edges, ranks), STEPS)[0] / 100


def counted_seconds(config: TrainConfig, per_gpu: int, gpu: str) -> float:
    """A step of `per_gpu` slabs at the assumed share of the GPU's peak; operations grow with the systems."""
    recipe = Recipe(InMemoryDataset([slab(COUNTED)]), config.model.graph_spec, config.model.n_elements)
    # Graph groups divide a step, but not its operations; a rank computes a system of its own here.
    alone = config.model_copy(update={"parallel": config.parallel.model_copy(update={"graph": 1})})
    flops = per_gpu * step_cost(alone, *recipe.prepare(np.array([0])), Normalization()).flops
    return flops / (GPUS[gpu].tflops[config.precision] * SHARE_OF_PEAK[config.precision] * 1e12)


def rows_of(model: str, gpu: str, measured: float | None) -> list[str]:
    """Lines of the table for a model."""
    file, per_gpu = MODELS[model]
    config = load_config(ROOT / "configs" / "s2ef" / "all" / file, [], TrainConfig)
    n = n_parameters(config.model.model_dump())
    alone = measured or counted_seconds(config, per_gpu, gpu)
    section, links = config.parallel, LINKS[gpu]
    now = messages(n, section.zero_stage, section.reduce_bucket, section.overlap)
    hidden = messages(n, 1, n // 16, overlap=True)
    slow = replace(links, between_nodes=links.between_nodes / 10)
    lines = []
    for ranks in RANKS:
        uneven = unevenness(ranks // section.graph, per_gpu * section.graph)
        found, other, ethernet = (
            predict(alone, sent, ranks, on, uneven)
            for sent, on in ((now, links), (hidden, links), (now, slow))
        )
        lines.append(
            f"| {model} | {ranks} | {per_gpu} | {4 * n / 1e6:.0f} | {alone:.3f} | {100 * uneven:.2f} % | "
            f"{1e3 * found.exposed:.2f} | {found.seconds:.3f} | {found.efficiency:.3f} | {other.efficiency:.3f} | "
            f"{ethernet.efficiency:.3f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", default="A100-80GB", choices=list(LINKS))
    parser.add_argument("--model", choices=list(MODELS), help="this one only")
    parser.add_argument("--step-seconds", type=float, metavar="S", help="measured, of --model on one GPU")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.step_seconds is not None:
        if arguments.model is None:
            parser.error("--step-seconds belongs to one model; name it with --model")
        if not arguments.step_seconds > 0:
            parser.error(f"--step-seconds: {arguments.step_seconds} is not positive")
    measured = (
        "measured and given" if arguments.step_seconds else "NOT measured: computed from counted operations"
    )
    lines = [
        "# A training step on 8 to 512 GPUs, predicted",
        "",
        f"`{shown_command(sys.argv)}`; {arguments.gpu}; the step of one GPU is {measured}.",
        "",
        "| model | GPUs | systems per GPU | gradients, MB | step of one GPU, s | slowest above the mean | "
        "exchange, ms | step, s | efficiency | with overlap, 16 buckets | between nodes 10 times slower |",
        "|---" * 11 + "|",
    ]
    for model in [arguments.model] if arguments.model else MODELS:
        lines += rows_of(model, arguments.gpu, arguments.step_seconds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
