"""Run by test_graph_parallel.py: whole runs in several layouts of ranks, in processes forked from one that has torch.

Each argument after the folder is the words of a command.
"""

import sys
from pathlib import Path

from tests.distributed import forked

PATIENCE = 250.0


def main() -> None:
    folder = Path(sys.argv[1])
    forked.preload()
    for number, call in enumerate(sys.argv[2:]):
        run = forked.start(call.split(), folder / f"said-{number}")
        code = run.finish(PATIENCE)
        said = run.err.read_text()
        assert code == 0, (call, said, run.out.read_text())
        assert said == "", (call, said)


if __name__ == "__main__":
    main()
