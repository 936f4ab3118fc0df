"""What all tests share: their order, one thread a worker, and the GPU marker."""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: the workers share the cores
    for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[_variable] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background has Ctrl-C ignored, and the programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
ORDER = ("unit", "property", "parity", "cli", "distributed", "slurm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the fast folders first and everything marked slow last."""
    root = Path(__file__).parent

    def rank(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.relative_to(root).parts[0] if item.path.is_relative_to(root) else ""
        place = ORDER.index(folder) if folder in ORDER else len(ORDER)
        return item.get_closest_marker("slow") is not None, place

    items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _handlers_of_signals() -> Iterator[None]:
    """What has been asked to stop ignores further signals; programs that later tests start would inherit that."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
