"""Which settings let which model fit on which GPU: the table of docs/scaling.md, computed by `train --dry-run`.

    python benchmarks/scaling_table.py [--out FOLDER]            (some minutes; writes scaling_table.json and .md)

Systems are copper slabs with CO: a typical one of 98 atoms, one of 226, as large as OC20's largest, and for GemNet-XL
one of 1,794, larger than any there. Every number is
what `main.py train CONFIG --dry-run --gpu A100-80GB --nproc 8` says, with the overrides that the table names.
"""

import argparse
import contextlib
import io
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.graph_parallel import slab
from benchmarks.recorded import RESULTS, write
from benchmarks.speed.machine import as_words, machine
from ocpgem.cli import main as command_line
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.train.estimate import GPUS

ROOT = Path(__file__).resolve().parents[1]
RANKS = 8
MODELS = {  # configuration and systems per GPU, as published
    "GemNet-dT": ("gemnet_dT.yml", 32),
    "GemNet-OC": ("gemnet_OC.yml", 16),
    "GemNet-OC-Large": ("gemnet_OC_large.yml", 4),
    "GemNet-XL": ("gemnet_xl.yml", 2),
}
ONE = f"data.batch_size={RANKS}"
"""One system per rank: as far as a batch budget with micro-batches goes."""
GROUPED = f"data.batch_size={RANKS // 4}"
"""One per group of four ranks."""
RECOMPUTED = "activation_checkpointing=true"
STEPS = {
    "as published": ("typical", ""),
    "one system": ("large", ONE),
    "one system, groups of 4": ("large", f"{GROUPED} parallel.graph=4"),
    "one system, recomputation": ("large", f"{ONE} {RECOMPUTED}"),
    "one system, both": ("large", f"{GROUPED} {RECOMPUTED} parallel.graph=4"),
}
CHOICES = {
    "as published": "all at once",
    "one system": "micro-batches",
    "one system, recomputation": "and recomputation",
    "one system, groups of 4": "and groups of 4",
    "one system, both": "and both",
}
"""In the order in which to try them, and what to call them."""
STAGES = (0, 1, 2, 3)
STAGED = "GemNet-XL, one system, recomputation"


def needed(config: str, folder: Path, overrides: str) -> float:
    """GB of each rank, as the command says."""
    words = ["train", str(ROOT / "configs" / "s2ef" / "all" / config), "--dry-run", "--gpu", "A100-80GB"]
    words += ["--nproc", str(RANKS), f"data.train={folder}", f"data.val.val_id={folder.parent / 'val'}"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = command_line([*words, "data.eval_batch_size=1", "parallel.graph=1", *overrides.split()])
    found = re.search(r"total +([0-9.]+) GB", said.getvalue())
    if code or found is None:
        raise SystemExit(f"{config} {overrides}: {said.getvalue()}")
    print(f"{config} {overrides}: {found[1]} GB", flush=True)
    return float(found[1])


def write_slabs(folder: Path, size: tuple[int, int, int], count: int) -> Path:
    system = slab(size)
    write_dataset(folder, (replace(system, sid=number) for number in range(count)))
    return folder


def first_that_fits(amounts: dict[str, float], capacity: float) -> str:
    """The first choice with which a rank fits."""
    for step, name in CHOICES.items():
        if step in amounts and amounts[step] <= capacity:
            return name
    return "does not fit"


def amounts_of(folder: Path) -> dict[str, dict[str, float]]:
    """GB of each rank: by model and step of `STEPS`, and by ZeRO stage."""
    write_slabs(folder / "val", (4, 6, 4), 1)
    large = write_slabs(folder / "large", (8, 7, 4), RANKS)
    amounts: dict[str, dict[str, float]] = {}
    for model, (config, per_gpu) in MODELS.items():
        typical = write_slabs(folder / model, (4, 6, 4), RANKS * per_gpu)
        amounts[model] = {
            step: needed(config, typical if kind == "typical" else large,
                         overrides or f"data.batch_size={RANKS * per_gpu}")
            for step, (kind, overrides) in STEPS.items()
        }  # fmt: skip
    huge = write_slabs(folder / "huge", (16, 14, 8), RANKS)
    amounts["GemNet-XL, 1,794 atoms"] = {
        step: needed("gemnet_xl.yml", huge, STEPS[step][1]) for step in list(CHOICES)[1:]
    }
    return amounts | {
        STAGED: {
            str(stage): needed("gemnet_xl.yml", large, f"{ONE} {RECOMPUTED} parallel.zero_stage={stage}")
            for stage in STAGES
        }
    }


def tables(amounts: dict[str, dict[str, float]]) -> list[str]:
    """Lines of Markdown."""
    staged = amounts[STAGED]
    amounts = {model: found for model, found in amounts.items() if model != STAGED}
    lines = [f"| GB of each of {RANKS} ranks | {' | '.join(STEPS)} |", "|---" * (len(STEPS) + 1) + "|"]
    for model, found in amounts.items():
        lines.append(
            f"| {model} | "
            + " | ".join(f"{found[step]:.1f}" if step in found else "" for step in STEPS)
            + " |"
        )
    gpus = sorted((gpu.memory / 1e9, name) for name, gpu in GPUS.items() if gpu.memory)
    capacities = dict(gpus)  # of GPUs with equal memory one is enough
    lines += ["", f"| the first that fits | {' | '.join(capacities.values())} |"]
    lines.append("|---" * (len(capacities) + 1) + "|")
    for model, found in amounts.items():
        lines.append(f"| {model} | " + " | ".join(first_that_fits(found, each) for each in capacities) + " |")
    lines += ["", f"| ZeRO stage | {' | '.join(map(str, STAGES))} |", "|---" * (len(STAGES) + 1) + "|"]
    return [*lines, f"| {STAGED} | " + " | ".join(f"{gb:.1f}" for gb in staged.values()) + " |"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments, where = parser.parse_args(), machine()
    with tempfile.TemporaryDirectory() as name:
        amounts = amounts_of(Path(name))
    about = (__doc__ or "").partition(" and .md)\n\n")[2]
    head = ["# What fits on which GPU", "", as_words(where) + ".", "", about]
    what = [f"- {step}: `{overrides or 'data.batch_size'}`" for step, (_, overrides) in STEPS.items()]
    what[0] = "- as published: 98 atoms a system; systems per GPU: " + ", ".join(
        f"{model} {per_gpu}" for model, (_, per_gpu) in MODELS.items()
    )
    lines = tables(amounts)
    write(arguments.out, "scaling_table", {"machine": where, "gb": amounts}, [*head, *what, "", *lines])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
