"""Run by test_training.py as one rank: the engine against plain torch, for every way of dividing the work.

Writes, for each case, the largest difference of a parameter relative to the largest change of any, and what the
split into micro-batches looked like.
"""

import copy
import json
import os
import sys
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch

from ocpgem.data import cost
from ocpgem.data.batch import collate
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.graph.topology import build_topology
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from ocpgem.parallel import group
from ocpgem.train.config import OptimSection
from ocpgem.train.ema import moving_average
from ocpgem.train.engine import Engine
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.parallel_section import ParallelSection
from ocpgem.train.schedule import learning_rate
from tests.tiny_runs import TINY_MODEL, random_systems, tiny_config

SYSTEMS = list(random_systems(11))
WEIGHTS = tiny_config().loss
OPTIM = OptimSection(lr=1e-2, weight_decay=0.1, amsgrad=True, clip_norm=0.5, eps=1e-5)
N_STEPS = 20
SMALL_BUCKET = 500
"""Less than the model and less than its largest parameter."""


def build(variant: str) -> Potential:
    torch.manual_seed(0)
    model = GemNetConfig.model_validate(TINY_MODEL | {"variant": variant})
    return Potential(model, Normalization(energy_mean=-3.0, energy_std=1.1, forces_std=0.9))


def make_loader(potential: Potential) -> TrainLoader:
    dataset = InMemoryDataset(SYSTEMS)
    recipe = Recipe(dataset, potential.graph_spec)
    batching = cost.Batching(
        cost.Budget(cost.SYSTEMS, 6 if group.world_size() == 4 else 4),
        cost.Budget(cost.STORED_EDGES, int(dataset.n_edges.max())),
    )
    return TrainLoader(recipe, batching, 0, group.rank(), group.world_size())


def with_engine(potential: Potential, parallel: ParallelSection) -> tuple[torch.Tensor, dict[str, int]]:
    """Train; returns the weights, and the largest number of micro-batches and of padding."""
    loader, engine = make_loader(potential), Engine(potential, OPTIM, parallel, torch.device("cpu"))
    potential.train()
    micro = padding = 0
    for step_batch, _ in zip(loader.steps(), range(N_STEPS), strict=False):
        counts = GlobalCounts(step_batch.n_systems_global, step_batch.n_free_atoms_global)
        n = len(step_batch.micro_batches)
        for index, (batch, topology) in enumerate(step_batch.micro_batches):
            predictions = engine.forward(batch, topology)
            share = loss_share(predictions, batch, WEIGHTS, potential.normalization, counts)
            engine.backward(share * float(index < n - step_batch.n_padding), last=index == n - 1)
        engine.step(learning_rate(OPTIM, step_batch.step, N_STEPS))
        micro, padding = max(micro, n), max(padding, step_batch.n_padding)
    weights = moving_average(potential, 0.0, parallel.zero_stage).state_dict()
    return torch.cat([weight.flatten() for weight in weights.values()]), {
        "micro_batches": micro,
        "padding": max(group.all_gather_objects(padding)),  # rank 0 has the most work and pads least
    }


def with_torch(potential: Potential) -> float:
    """Train in place on whole batches in this process alone; returns the largest gradient norm."""
    plan, spec = make_loader(potential).plan, potential.graph_spec
    optimizer = torch.optim.AdamW(
        potential.parameters(), lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps, weight_decay=0.1, amsgrad=True
    )
    potential.train()
    largest = 0.0
    for step, planned in enumerate(islice(plan.steps(), N_STEPS)):
        systems = [SYSTEMS[i] for i in planned.systems]
        batch = collate(systems)
        topology = build_topology(batch.pos, batch.cell, batch.pbc, batch.natoms, spec)
        predictions = potential(batch, topology)
        counts = GlobalCounts(len(systems), int((~batch.fixed).sum()))
        optimizer.zero_grad()
        loss_share(predictions, batch, WEIGHTS, potential.normalization, counts).backward()
        largest = max(largest, float(torch.nn.utils.clip_grad_norm_(potential.parameters(), OPTIM.clip_norm)))
        optimizer.param_groups[0]["lr"] = learning_rate(OPTIM, step, N_STEPS)
        optimizer.step()
    return largest


def exchanges(variant: str, small_buckets: bool) -> list[ParallelSection]:
    """Every stage; in small buckets, these are sent while gradients are still computed where the stage allows it."""
    stages = (0, 1, 2, 3) if variant == "gemnet_dT" else (0, 1, 2)
    small = {"reduce_bucket": SMALL_BUCKET} if small_buckets else {}
    return [
        ParallelSection.model_validate({"zero_stage": stage, "overlap": small_buckets and stage > 0} | small)
        for stage in stages
    ]


def flat(potential: Potential) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in potential.parameters()])


def main() -> None:
    group.init_from_environment("cpu", timedelta(seconds=60))
    found = {}
    for variant in ("gemnet_dT", "gemnet_T"):
        start = build(variant)
        plain = copy.deepcopy(start)
        norm = with_torch(plain)
        moved = float((flat(plain) - flat(start)).abs().max())
        for parallel in exchanges(variant, sys.argv[2:] == ["small buckets"]):
            trained, split = with_engine(copy.deepcopy(start), parallel)
            difference = float((trained - flat(plain)).abs().max() / flat(plain).abs().max())
            equal_ranks = group.gather_objects(trained)
            if equal_ranks is not None:
                same = all(torch.equal(equal_ranks[0], other) for other in equal_ranks)
                numbers = {"difference": difference, "moved": moved, "norm": norm, "ranks_equal": same}
                found[f"{variant} {parallel}"] = numbers | split
    if group.is_main():
        Path(sys.argv[1]).write_text(json.dumps(found))
    group.shutdown()


if __name__ == "__main__":
    main()
    os._exit(0)  # as ocpgem.cli.run: the interpreter's own shutdown may abort after communication
