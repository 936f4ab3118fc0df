"""Devices that are there and those that are not; what a process does with the memory that it frees."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ocpgem.errors import RequestError
from ocpgem.parallel.device import find_device

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import ctypes
import resource
import torch
from ocpgem.parallel.device import set_up_device

PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # pages of 4 kB, whatever the machine prefers

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

handed_back = faults()
set_up_device()
for _ in range(4):  # until there are as many blocks as gaps between others that are too small (glibc before 2.38)
    faults()
print(handed_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    # Not with what a developer may preload: that is another allocator.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    handed_back, kept = map(int, done.stdout.split())

    assert handed_back > 5 * 16_000
    assert kept < 1_000


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "hpu", "xla", ""])
def test_a_device_that_is_not_there_is_a_wrong_request(name: str) -> None:
    with pytest.raises(
        RequestError, match=rf"device '{name}' cannot be used here \(.*\); this machine has cpu"
    ):
        find_device(name)


def test_a_device_may_be_named_or_given() -> None:
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
