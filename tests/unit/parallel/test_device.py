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


SPARING = r"""
import re
import torch
from ocpgem.parallel.device import set_up_device

def held_mb() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024

def left_by(n_numbers: int, n: int) -> int:
    # What stays of n tensors, all but the last of which are freed: that one keeps the heap from shrinking.
    before = held_mb()
    tensors = [torch.ones(n_numbers) for _ in range(n)]
    del tensors[:-1]
    return held_mb() - before

set_up_device(spare_memory=True)
print(left_by(2**22, 20), left_by(2**20, 80))  # of 16 and of 4 MiB each, 320 MiB together
"""


def numbers_of(program: str) -> list[int]:
    """What a program prints in a process that has glibc's own allocator, whatever a developer may preload."""
    command = [sys.executable, "-c", program]
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return [int(word) for word in done.stdout.split()]


glibc_alone = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are"
)


@glibc_alone
def test_freed_memory_is_used_again_without_page_faults() -> None:
    handed_back, kept = numbers_of(PROGRAM)
    assert handed_back > 5 * 16_000
    assert kept < 1_000


@glibc_alone
def test_where_memory_is_short_large_blocks_are_handed_back_and_others_kept() -> None:
    of_large, of_small = numbers_of(SPARING)
    assert of_large < 40
    assert of_small > 280


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "hpu", "xla", ""])
def test_a_device_that_is_not_there_is_a_wrong_request(name: str) -> None:
    with pytest.raises(
        RequestError, match=rf"device '{name}' cannot be used here \(.*\); this machine has cpu"
    ):
        find_device(name)


def test_a_device_may_be_named_or_given() -> None:
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
