"""Ranks of a training run on this machine: how they scale, and what they send each other, counted.

    python benchmarks/scaling.py [--quick] [--steps 12] [--out FOLDER]        (10 minutes on two cores, 3 GB)

Runs the training loop as `main.py train` does, DeepSpeed engine and all, in 1, 2 and 4 real processes (gloo, one thread
each), on slabs of 50 atoms with a GemNet-dT of width 64. Writes scaling.json and scaling.md.

**Scaling**: seconds from step to step, the median without the first ones; weak (2 systems a rank) and strong (4 systems
together, so that 4 ranks have one each). Processes beyond the cores of the machine take turns: "cores allow" is n, at
most the number of cores, and nothing else may run on them. "Computing alone" is a forward and a backward pass of 2
systems a rank, on all ranks at once and without any message, until the last is done.

**Predicted**: steps as `ocpgem.train.scaling` predicts those of GPUs. It is given the step of one rank; the messages of
ZeRO-1 in one bucket; and the link that explains the seconds of an all-reduce of all gradients, measured by the same
processes. A rank computes as long as the one rank (weak) or its part of it (strong), times n / min(n, cores) ("from
cores"), or times what computing alone takes on n ranks over one ("from computing alone"), for processes on one machine
share caches and memory as well. Left out: that ZeRO-1 divides the optimiser's work, and how unequal systems are.

**Traffic**: collectives of one step are counted where torch hands them to the process group, and matrix products with
them. Bytes are those of the tensors; "sent" is what a ring sends from each rank: 2 (n - 1)/n of the bytes for an
all-reduce, (n - 1)/n for an all-gather or reduce-scatter. "Formula" is that of `ocpgem.train.scaling.messages` for the
model's trained parameters, which the predictions of docs/scaling.md rest on. "During backward" is the share of
the gradients' bytes that are sent before the last matrix product of the step, an order of events and no time.
"""

import os

if __name__ == "__main__":  # not where functions are imported
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

from benchmarks.recorded import RESULTS, write
from benchmarks.speed import ranks as side_by_side
from benchmarks.speed.machine import as_words, machine
from benchmarks.speed.structures import prepared, slab
from benchmarks.speed.traffic import CountedTraffic, StepTraffic
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.launch.local import run_local
from ocpgem.models.potential import Normalization, Potential
from ocpgem.parallel import group
from ocpgem.train.callbacks import Callback, Numbers
from ocpgem.train.config import TrainConfig
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.run import train
from ocpgem.train.scaling import messages

RANKS, QUICK_RANKS = (1, 2, 4), (1, 2)
N_ATOMS, N_SYSTEMS, PER_RANK, GLOBAL = 50, 64, 2, 4
QUICK_ATOMS = 20
WARM_UP = 2
COUNTED_STEPS = 3


@dataclass(frozen=True)
class Case:
    """One training run: its batch, and how ranks exchange gradients. buckets: into how many the model is divided."""

    batch_size: int
    zero_stage: int = 1
    buckets: int = 1
    overlap: bool = False

    @property
    def label(self) -> str:
        """The settings in words."""
        words = f"ZeRO-{self.zero_stage}, {self.buckets} bucket{'s' * (self.buckets > 1)}"
        return words + (", overlap" if self.overlap else "")


def counted_cases(quick: bool) -> list[Case]:
    """The exchanges that are counted."""
    stages = (0, 1) if quick else (0, 1, 2, 3)
    found = [Case(GLOBAL, stage) for stage in stages]
    found += [
        Case(GLOBAL, stage, buckets) for stage in stages[1:3] for buckets in ((8,) if quick else (4, 16))
    ]
    return found + [Case(GLOBAL, stage, 8 if quick else 16, overlap=True) for stage in stages[1:]]


def settings(case: Case, data: Path, n_steps: int, quick: bool) -> dict[str, Any]:
    """The configuration of a case."""
    width = 16 if quick else 64
    model = {"variant": "gemnet_dT", "atom_dim": width, "edge_dim": width}
    if quick:
        model |= {"n_blocks": 1}
    parallel: dict[str, Any] = {"zero_stage": case.zero_stage, "overlap": case.overlap}
    if case.buckets > 1:
        parallel["reduce_bucket"] = -(-n_parameters(model) // case.buckets)
    return {
        "steps": n_steps,
        "log_every_steps": 1,
        "model": model,
        "data": {"train": str(data), "batch_size": case.batch_size, "workers": 0},
        "normalization": {"energy_mean": 0.0, "energy_std": 1.0, "forces_std": 1.0},
        "scale_factors": {"batches": 1},
        "checkpoint": {"every_steps": 10**6},
        "loggers": {"tensorboard": False},
        "parallel": parallel,
    }


def n_parameters(model: dict[str, Any]) -> int:
    from ocpgem.models.gemnet.config import GemNetConfig
    from ocpgem.models.gemnet.model import GemNet

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GemNet(GemNetConfig.model_validate(model)).parameters())


class Steps(Callback):
    """The moments at which steps end; where collectives are counted, each step's own."""

    def __init__(self, traffic: CountedTraffic | None = None) -> None:
        self.moments: list[float] = []
        self._traffic = traffic

    def numbers(self, numbers: Numbers) -> None:
        self.moments.append(time.perf_counter())
        if self._traffic is not None:
            self._traffic.next_step()


def quiet_run(config: TrainConfig, run: Path, steps: Steps) -> None:
    """A training run that prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        train(config, run, callbacks=[steps])


def seconds_per_step(config: TrainConfig, run: Path) -> float:
    """The median."""
    steps = Steps()
    quiet_run(config, run, steps)
    between = [later - earlier for earlier, later in pairwise(steps.moments)]
    return statistics.median(between[WARM_UP:]) if between else 0.0  # ranks but 0 are told nothing


def traffic_of(config: TrainConfig, run: Path) -> StepTraffic:
    """What rank 0 takes part in during one step, not the first."""
    with CountedTraffic() as traffic:
        quiet_run(config, run, Steps(traffic))
    return traffic.steps[-2] if group.is_main() else StepTraffic()


def all_reduce_seconds(n_floats: int, repeats: int = 7) -> float:
    """The median time in which the ranks here add up so many numbers."""
    tensor = torch.zeros(n_floats)
    return median_together(lambda: dist.all_reduce(tensor), repeats)


def computing_seconds(config: TrainConfig, n_atoms: int, repeats: int) -> float:
    """The median time in which every rank here computes the gradients of systems of its own, and sends nothing."""
    systems = [slab(n_atoms, seed) for seed in range(PER_RANK)]
    batch, topology = prepared(systems, config.model.graph_spec)
    potential, counts = (
        Potential(config.model, Normalization()).train(),
        GlobalCounts(PER_RANK, PER_RANK * n_atoms),
    )

    def step() -> None:
        loss_share(potential(batch, topology), batch, config.loss, Normalization(), counts).backward()

    return median_together(step, repeats)


def median_together(call: Callable[[], object], repeats: int) -> float:
    """The median time in which all ranks make a call that they begin at once, the first not counted."""
    found = []
    for _ in range(repeats + 1):
        group.barrier()
        started = time.perf_counter()
        call()
        group.barrier()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def rank_program(out: Path, data: Path, n_steps: int, quick: bool) -> None:
    """What each rank does: every case in turn; rank 0 writes what it found."""
    torch.set_num_threads(1)
    group.init_from_environment("cpu")
    size = group.world_size()
    found: dict[str, Any] = {}
    for kind, batch_size in (("weak", PER_RANK * size), ("strong", GLOBAL)):
        case = settings(Case(batch_size), data, n_steps, quick)
        found[kind] = seconds_per_step(TrainConfig.model_validate(case), out / f"{kind}{size}")
    cases = counted_cases(quick) if size > 1 else [Case(GLOBAL)]
    found["traffic"] = []
    for number, case in enumerate(cases):
        config = TrainConfig.model_validate(settings(case, data, COUNTED_STEPS, quick))
        traffic = traffic_of(config, out / f"traffic{size}-{number}")
        found["traffic"].append(described(case, config, traffic, size))
    found["parameters"] = n_parameters(config.model.model_dump())
    found["all_reduce_s"] = all_reduce_seconds(found["parameters"])
    found["computing_s"] = computing_seconds(config, QUICK_ATOMS if quick else N_ATOMS, n_steps - WARM_UP - 1)
    if group.is_main():
        (out / f"found{size}.json").write_text(json.dumps(found))
    group.shutdown()


def described(case: Case, config: TrainConfig, traffic: StepTraffic, size: int) -> dict[str, Any]:
    """The collectives of a step beside what the formula says."""
    n = n_parameters(config.model.model_dump())
    expected = messages(n, case.zero_stage, config.parallel.reduce_bucket, case.overlap)
    kinds = sorted({each.kind for each in traffic.sent if not each.is_agreement})
    counted = {kind: {"calls": traffic.calls(kind), "bytes": traffic.size(kind)} for kind in kinds}
    rounds = {"all_reduce": 2}
    sent = sum(rounds.get(kind, 1) * found["bytes"] * (size - 1) / size for kind, found in counted.items())
    return asdict(case) | {
        "label": case.label,
        "collectives": counted,
        "agreements": traffic.agreements,
        "sent_bytes": sent,
        "formula_bytes": sum(message.sent(size) for message in expected) if size > 1 else 0.0,
        "products": traffic.products,
        "sent_during_backward": traffic.sent_during_backward,
    }


def measure(n_steps: int, quick: bool) -> dict[int, dict[str, Any]]:
    """Number of ranks -> what its rank 0 found. Raises SystemExit if a rank fails."""
    found: dict[int, dict[str, Any]] = {}
    program = [sys.executable, __file__, "--rank"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_atoms = QUICK_ATOMS if quick else N_ATOMS
        write_dataset(folder / "data", (slab(n_atoms, seed) for seed in range(N_SYSTEMS)))
        for size in QUICK_RANKS if quick else RANKS:
            words = [str(folder), str(folder / "data"), str(n_steps), str(int(quick))]
            code = run_local(words, size, program=program)
            if code:
                raise SystemExit(f"{size} ranks ended with code {code}")
            found[size] = json.loads((folder / f"found{size}.json").read_text())
    return found


def as_table(result: dict[str, Any]) -> list[str]:
    """Lines of Markdown: scaling, the same predicted, and the collectives of a step."""
    found, cores = result["ranks"], result["machine"]["cores"]
    lines = [
        f"{found[1]['parameters']:,} parameters; load before it began {result['machine']['load']:.1f} on {cores} cores "
        "(after other benchmarks, where this is a part of run.py).",
        "",
        *side_by_side.scaling_table(found, cores),
        "",
        *side_by_side.prediction_table(side_by_side.predicted(found, cores)),
        "",
        "| ranks | exchange | collectives of a step: calls, bytes | agreements | sent by a rank, bytes | formula | "
        "counted / formula | during backward |",
        "|---" * 8 + "|",
    ]
    return lines + [_traffic_row(size, each) for size, n in found.items() for each in n["traffic"]]


def _traffic_row(size: int, each: dict[str, Any]) -> str:
    kinds = "; ".join(
        f"{kind.replace('_', '-')} {part['calls']}, {part['bytes']:,}"
        for kind, part in each["collectives"].items()
    )
    ratio = f"{each['sent_bytes'] / each['formula_bytes']:.4f}" if each["formula_bytes"] else ""
    return (
        f"| {size} | {each['label']} | {kinds} | {each['agreements']} | {each['sent_bytes']:,.0f} | "
        f"{each['formula_bytes']:,.0f} | {ratio} | {each['sent_during_backward']:.0%} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        out, data, n_steps, quick = sys.argv[2:]
        rank_program(Path(out), Path(data), int(n_steps), bool(int(quick)))
        os._exit(0)  # as ocpgem.cli.run: the interpreter's own shutdown may abort after communication
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="narrow model, 1 and 2 ranks, fewer exchanges")
    parser.add_argument("--steps", type=int, default=12, help="of each timed run (default: 12)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    n_steps = 4 if arguments.quick else arguments.steps
    if n_steps < WARM_UP + 2:
        parser.error(f"--steps: at least {WARM_UP + 2}, of which the first {WARM_UP + 1} do not count")
    where = machine()
    found = measure(n_steps, arguments.quick)
    steps = side_by_side.predicted(found, where["cores"])
    result = {"machine": where, "ranks": found, "predicted": side_by_side.as_numbers(steps)}
    about = (__doc__ or "").partition("Writes scaling.json and scaling.md.")[2].strip()
    head = ["# Ranks on one machine", "", as_words(where) + ".", "", about, ""]
    write(arguments.out, "scaling", result, [*head, *as_table(result)])
    print("\n".join(as_table(result)))


if __name__ == "__main__":
    main()
