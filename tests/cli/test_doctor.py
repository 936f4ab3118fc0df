"""The doctor: what it reports, and that only what is necessary makes it fail."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ocpgem import doctor, segment

ROOT = Path(__file__).parents[2]
TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")


def found(name: str) -> doctor.Check:
    return next(check for check in doctor.report() if check.name == name)


def test_this_environment_is_complete() -> None:
    checks = doctor.report()
    assert [check for check in checks if check.status == "missing"] == []
    assert {"Python", "packages", "torch", "segment sums", "SLURM", "machine", "can run"} <= {
        c.name for c in checks
    }


def test_the_report_is_printed_one_finding_a_line_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok      Python") for line in lines)
    assert all(len(line) <= 120 for line in lines)


def test_the_command_line_runs_it() -> None:
    command = [sys.executable, str(ROOT / "main.py"), "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "can run" in result.stdout


def test_a_missing_package_is_necessary_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "lmdb":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "pydantic" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    check = found("packages")
    assert check.status == "missing"
    assert "lmdb is not installed" in check.text
    assert "pydantic is 1.0" in check.text
    assert doctor.main() == 1
    assert "cannot work here until this is mended: packages" in capsys.readouterr().out


def test_versions_other_than_the_tested_ones_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_tested_versions", lambda: {"lmdb": "0.1"})
    check = found("packages")
    assert check.status == "note"
    assert "(tested: 0.1)" in check.text


@pytest.mark.parametrize(
    ("gpu", "backend", "status", "text"),
    [
        (False, "torch", "ok", "torch's own"),
        (False, "scatter", "ok", "torch-scatter 2.1.2"),
        (True, "torch", "note", "torch's own"),
        (True, "scatter", "ok", "torch-scatter 2.1.2"),
    ],
)
def test_the_segment_sums_in_use_are_named(
    gpu: bool, backend: str, status: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu:
        pretend_gpus(monkeypatch, 9)
        monkeypatch.setattr(segment, "scatter_has_cuda", lambda: True)
    monkeypatch.setattr(segment, "BACKEND", backend)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.1.2" if name == "torch-scatter" else real(name))
    check = found("segment sums")
    assert (check.status, text in check.text) == (status, True)
    assert status != "note" or f"data.pyg.org/whl/torch-{torch.__version__}.html" in check.text


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, major: int) -> None:
    gpu = SimpleNamespace(name="Imaginary 9000", total_memory=80 * 2**30, major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)


@pytest.mark.parametrize(("major", "words"), [(9, "80 GiB, bf16, TF32"), (7, "no fast bf16")])
def test_every_gpu_is_listed(major: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, major)
    assert words in found("GPU 1").text
    assert "training on 2 GPUs (--nproc 2)" in found("can run").text


def test_a_torch_scatter_without_cuda_is_noted_on_a_gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 9)
    monkeypatch.setattr(segment, "BACKEND", "scatter")
    monkeypatch.setattr(segment, "scatter_has_cuda", lambda: False)
    assert "built without CUDA" in found("segment sums").text


def test_a_driver_without_a_cuda_torch_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/true" if name == "nvidia-smi" else None)
    assert "torch sees no GPU" in found("GPU").text


def test_slurm_clients_are_named_with_those_that_are_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho slurm 22.05.8\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = found("SLURM")
    assert check.status == "note"
    assert check.text.startswith("slurm 22.05.8; sbatch, srun; not found: squeue")


@pytest.mark.parametrize(
    ("ping", "status"),
    [
        ("echo 'Slurmctld(primary) at head is UP'", "ok"),
        ("echo 'Slurmctld(primary) at head is DOWN'", "note"),
        ("echo 'scontrol: error: no configuration' >&2; exit 1", "note"),
    ],
)
def test_a_slurm_without_a_controller_is_noted(
    ping: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "srun", "squeue", "scontrol", "sacct"):
        text = f"if [ $1 = ping ]; then {ping}; else echo slurm 22.05.8; fi"
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = found("SLURM")
    assert check.status == status
    assert ("no controller answers" in check.text) == (status == "note")


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    assert found("cache").status == "note"
    assert list(tmp_path.iterdir()) == [blocker]


@pytest.mark.parametrize(
    ("library", "told"),
    [
        ("", "the system's; tcmalloc holds"),
        pytest.param(
            str(TCMALLOC),
            "tcmalloc\n",
            marks=pytest.mark.skipif(not TCMALLOC.exists(), reason="needs Debian's libtcmalloc-minimal4"),
        ),
    ],
)
def test_the_allocator_of_the_process_is_told(library: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "doctor"],
        env=os.environ | {"LD_PRELOAD": library},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    (line,) = [line for line in (done.stdout + "\n").splitlines(keepends=True) if "allocator " in line]
    assert f"ok      allocator     {told}" in line
