"""Run by test_faults.py: small runs on two ranks, each with a fault of its own, and how each ended as JSON.

One process runs them all, because loading the libraries takes longer than most of the runs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ocpgem.data.lmdb_store import write_dataset
from tests.distributed import forked
from tests.distributed.moments import (
    MOMENTS,
    at,
    die,
    find_damage,
    hang,
    raise_error,
    refuse,
    run_out_of_memory,
)
from tests.distributed.processes import alive, descendants
from tests.tiny_runs import random_systems, tiny_settings, write_settings

PATIENCE = 280.0
HANG_SECONDS = 25.0
"""Far more than a step takes on a loaded machine."""
N_STEPS = 12
BAD_SID = 9


@dataclass
class Told:
    """How a run ended."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[int]
    """Processes of it that still run."""


def settings_of(folder: Path) -> dict:
    """Twelve systems in steps of four, so that both ranks have work for a split."""
    return tiny_settings(
        folder / "train",
        folder / "val",
        steps=N_STEPS,
        log_every_steps=1,
        validation={"every_steps": 5},
        checkpoint={"every_steps": 3},
        optim={"lr": 5e-3},
        faults={"hang_seconds": HANG_SECONDS},
    )


def write_data(folder: Path) -> None:
    write_dataset(folder / "train", random_systems(12))
    write_dataset(folder / "val", random_systems(7, seed=1))
    bad = list(random_systems(12))
    bad[BAD_SID].forces[0] = 1e30  # finite, but not its square
    bad[BAD_SID].fixed[0] = False
    write_dataset(folder / "bad", iter(bad))


class Scenarios:
    """Starts runs in `folder` and keeps how they end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: dict[str, Told] = {}
        settings = settings_of(folder)
        self.config = write_settings(folder / "config.yml", settings)
        data = settings["data"] | {"train": str(folder / "bad")}
        fixed = {"energy_mean": -3.0, "energy_std": 1.0, "forces_std": 1.0}
        self.bad_config = write_settings(
            folder / "bad.yml", settings | {"data": data, "normalization": fixed}
        )

    def start(
        self,
        name: str,
        *words: object,
        config: Path | None = None,
        run: str = "",
        fault: forked.Fault | None = None,
    ) -> Callable[[], Told]:
        """Start a run; the result waits for its end."""
        begin = time.monotonic()
        arguments = [
            "train",
            config or self.config,
            "--run-dir",
            self.folder / (run or name),
            "--nproc",
            2,
            *words,
        ]
        under_way = forked.start(arguments, self.folder / f"said-{name}", fault)

        def wait() -> Told:
            everything: set[int] = set()
            while under_way.launcher.poll() is None:
                everything |= set(descendants(under_way.launcher.pid))
                assert time.monotonic() - begin < PATIENCE, (
                    f"{name} does not end: {under_way.err.read_text()}"
                )
                time.sleep(0.05)
            code = under_way.finish(1.0)
            told = Told(
                code,
                under_way.out.read_text(),
                under_way.err.read_text(),
                time.monotonic() - begin,
                [pid for pid in everything if alive(pid)],
            )
            self.told[name] = told
            return told

        return wait

    def go(self, *arguments: object, **options: object) -> Told:
        return self.start(*arguments, **options)()  # type: ignore[arg-type]


def full_disk(scenarios: Scenarios) -> None:
    """A run on a disk that is full from step 6 on, and then no longer; not where mounting is forbidden."""
    disk = scenarios.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return

    def fill() -> None:
        (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free))

    try:
        scenarios.go("full disk", run="disk/run", fault=at("optimiser step", 0, 6, fill))
        (disk / "other").unlink()
        scenarios.go("disk with room", run="disk/run")
        shutil.copytree(disk / "run", scenarios.folder / "disk with room")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


PLATEAU = "{name: plateau, warmup_steps: 2, plateau: {patience: 0, factor: 0.5, threshold: 0.9}}"
"""Only an error ten times smaller counts as better, so that the rate falls at every validation but the first."""
ZERO_3 = ("parallel.zero_stage=3", "--nproc", "3")
"""On a number of ranks that does not divide every parameter."""
FROZEN = "optim.groups=[{parameters: [bases, energy_head], frozen: true}]"
KINDS: dict[str, tuple[str, ...]] = {
    "zero 3": (*ZERO_3, FROZEN),
    "plateau": (f"optim.schedule={PLATEAU}", "validation.every_steps=2"),
}


def killed_twice(scenarios: Scenarios) -> None:
    """Each kind of run whole, and killed once in its optimiser step and once in a validation."""
    for kind, words in KINDS.items():
        scenarios.go(f"{kind} whole", *words)
        for moment, rank, occurrence in (("optimiser step", 1, 8), ("validation", 0, 2)):
            fault = at(moment, rank, occurrence, die)
            scenarios.go(f"{kind} killed in {moment}", *words, run=f"{kind} killed", fault=fault)
        scenarios.go(f"{kind} after the kills", *words, run=f"{kind} killed")


def resumed_otherwise(scenarios: Scenarios) -> None:
    """The last steps of the whole run once more, under ZeRO-3 and on more ranks; at first one of them cannot."""
    run = scenarios.folder / "whole, then zero 3"
    shutil.copytree(scenarios.folder / "whole", run)
    shutil.rmtree(run / "checkpoints" / str(N_STEPS))
    for name, fault in (
        ("cannot read", at("read", 1, 1, find_damage)),
        ("cannot restore", at("resume", 2, 1, refuse)),
        (run.name, None),
    ):
        scenarios.go(name, *ZERO_3, run=run.name, fault=fault)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    forked.preload()
    write_data(folder)
    scenarios = Scenarios(folder)
    go, start = scenarios.go, scenarios.start
    hanging = start("hang", fault=at("forward", 1, 3, hang))
    stopping = start("stopped", fault=at("forward", 1, 3, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    go("whole")
    go("frozen", FROZEN)
    go("memory in forward", fault=at("forward", 1, 3, run_out_of_memory))
    go("memory in backward", fault=at("backward", 0, 3, run_out_of_memory))
    go("raises in forward", fault=at("forward", 1, 3, raise_error))
    go("raises in validation", fault=at("validation", 1, 1, raise_error))
    go("raises in save", fault=at("save", 0, 1, raise_error))
    go("not finite", config=scenarios.bad_config)
    go("not finite, overlap", "parallel.overlap=true", config=scenarios.bad_config)
    go(
        "skip",
        "faults.non_finite=skip",
        "faults.max_skipped=4",
        config=scenarios.bad_config,
        run="not finite",
    )
    go("skip too often", "faults.non_finite=skip", "faults.max_skipped=2", config=scenarios.bad_config)
    for number, moment in enumerate(MOMENTS):
        rank = 0 if moment in ("save", "move of the pointer") else number % 2
        go(f"kill in {moment}", run="killed", fault=at(moment, rank, 2, die))
    go("after the kills", run="killed")
    go("signal in validation", fault=at("validation", 1, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    go("after the signal", run="signal in validation")
    killed_twice(scenarios)
    resumed_otherwise(scenarios)
    full_disk(scenarios)
    hanging()
    stopping()
    told = {name: asdict(each) for name, each in scenarios.told.items()}
    (folder / "told.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
