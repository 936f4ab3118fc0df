"""Which compiler this machine has."""

import shutil
import subprocess


def gcc_can_compile_ours() -> bool:
    """Whether there is gcc 12 or later, which the C functions of ocpgem/kernels need."""
    if shutil.which("gcc") is None:
        return False
    version = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    return int(version.split(".")[0]) >= 12
