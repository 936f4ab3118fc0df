"""Run by test_graph_parallel.py: whole runs in several layouts of ranks, in processes forked from one that has torch.

Each argument after the configuration is a call: the folder of the run, the number of ranks and overrides.
"""

import sys
from pathlib import Path

from tests.distributed import forked

PATIENCE = 250.0


def main() -> None:
    config, folder = Path(sys.argv[1]), Path(sys.argv[2])
    forked.preload()
    for number, call in enumerate(sys.argv[3:]):
        name, nproc, *overrides = call.split()
        words = ["train", config, *overrides, "--run-dir", folder / name, "--nproc", nproc]
        run = forked.start(words, folder / f"said-{number}")
        code = run.finish(PATIENCE)
        said = run.err.read_text()
        assert code == 0, (call, said, run.out.read_text())
        assert said == "", (call, said)


if __name__ == "__main__":
    main()
