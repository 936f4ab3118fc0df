"""The whole path of ocpgem in some minutes: make data, fit scale factors, train, evaluate, predict, draw.

Every step is a command of the README, printed before it runs; its output goes where it would go by hand.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")
DATA, RUN, TUNED = Path("data/demo"), Path("runs/demo"), Path("runs/demo_finetuned")
CONFIG, TUNING = Path("configs/quickstart.yml"), Path("configs/quickstart_finetune.yml")


def commands(extra: list[str]) -> list[tuple[str, list[str]]]:
    """What each step does, and its command."""
    main, scales, s2ef = "main.py", str(RUN.with_name("demo_scales.json")), DATA / "s2ef"
    overrides = [f"scale_factors.file={scales}", *extra]
    sets = [item for split in SPLITS for item in ("--data", f"{split}={s2ef / split}")]
    predict = ["predict", str(RUN), "--data", str(s2ef / "val_id"), "--dialect", "raw"]
    return [
        ("make the demo data set (EMT slabs with adsorbates)", ["datasets/demo.py", "--out", str(DATA)]),
        ("fit the scale factors", [main, "fit-scales", str(CONFIG), *extra, "--out", scales]),
        ("train a small GemNet-dT", [main, "train", str(CONFIG), *overrides, "--run-dir", str(RUN)]),
        (
            "evaluate it on four splits",
            [main, "evaluate", str(RUN), *sets, "--json", str(RUN / "evaluation.json")],
        ),
        ("predict one of them", [main, *predict, "--out", str(RUN / "predictions" / "val_id.npz")]),
        ("draw curves and parity plots", [main, "report", str(RUN)]),
        ("fine-tune it on twenty frames", [main, "train", str(TUNING), "--run-dir", str(TUNED)]),
    ]


def run(command: list[str]) -> int:
    """Run a command to its end; on Ctrl-C it gets the time to save what it has."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to the command as well
        process.wait()
        print(f"\nstopped; go on with: python {' '.join(command)}", flush=True)
        return 130


def run_step(number: int, total: int, title: str, command: list[str]) -> None:
    """Run one command; ends the program with its exit code if it fails."""
    print(f"\n=== step {number} of {total}: {title}\n$ python {' '.join(command)}", flush=True)
    start = time.monotonic()
    code = run(command)
    if code != 0:
        print(
            f"\nstep {number} failed (exit code {code}); run the command above to look at it alone",
            flush=True,
        )
        sys.exit(code)
    print(f"=== step {number} took {time.monotonic() - start:.0f} s", flush=True)


def summary(seconds: float) -> str:
    """Where everything is."""
    files = [
        ("data sets", DATA),
        ("model", RUN / "best" / "model.pt"),
        ("metrics", RUN / "evaluation.json"),
        ("predictions", RUN / "predictions" / "val_id.npz"),
        ("picture", RUN / "figures" / "overview.png"),
        ("report", RUN / "report.html"),
        ("fine-tuned", TUNED / "best" / "model.pt"),
    ]
    lines = [f"\nThe demo took {seconds / 60:.1f} minutes. What it made:"]
    lines += [f"  {name:<12} {path}" for name, path in files]
    lines.append("Next: the README says how to train on real OC20 data.")
    return "\n".join(lines)


def show_metrics() -> None:
    """The metrics of the four splits once more, as the last thing to read."""
    from rich.console import Console

    from ocpgem.evaluate.tables import metrics_table

    results = json.loads((ROOT / RUN / "evaluation.json").read_text())
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(metrics_table(results["splits"], "\nGemNet-dT of the demo"))


def main() -> None:
    """Run the demo from the beginning; the data set is made once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings of configs/quickstart.yml to change"
    )
    extra = parser.parse_args().overrides
    for run_dir in (RUN, TUNED):
        if (ROOT / run_dir).exists():
            print(f"removing the previous demo run in {run_dir}")
            shutil.rmtree(ROOT / run_dir)
    (ROOT / RUN).parent.mkdir(exist_ok=True)
    start = time.monotonic()
    steps = commands(extra)
    for number, (title, command) in enumerate(steps, start=1):
        run_step(number, len(steps), title, command)
    show_metrics()
    print(summary(time.monotonic() - start))


if __name__ == "__main__":
    main()
