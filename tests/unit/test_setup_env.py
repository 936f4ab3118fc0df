"""The set-up: the lock fits what pyproject.toml needs, and an environment made elsewhere is not reused."""

import importlib.util
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from tests.compilers import gcc_can_compile_ours

ROOT = Path(__file__).parents[2]
PINNED = {
    line.partition("==")[0].lower(): line.partition("==")[2]
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if line and not line.startswith("#")
}


@pytest.fixture
def setup_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The set-up script, working in a folder that is not this clone."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / "clone" / ".venv"
    for name, value in {"VENV": venv, "PYTHON": venv / "bin" / "python", "LOG": tmp_path / "log"}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module


def test_the_lock_pins_what_pyproject_needs_and_for_any_platform() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(PINNED[requirement.name.lower()]), line
    assert all(version and "+" not in version and "@" not in version for version in PINNED.values())


def test_no_environment_or_one_that_was_moved_is_not_reused(setup_env: ModuleType) -> None:
    version = platform.python_version()
    assert not setup_env._venv_fits(version)
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(setup_env.VENV)], check=True)
    assert setup_env._venv_fits(version)
    assert not setup_env._venv_fits("3.12.99")
    setup_env.VENV = setup_env.VENV.parent.rename(setup_env.VENV.parents[1] / "moved") / ".venv"
    setup_env.PYTHON = setup_env.VENV / "bin" / "python"
    assert not setup_env._venv_fits(version)


def test_a_wheel_is_kept_by_torch_python_and_platform(setup_env: ModuleType, tmp_path: Path) -> None:
    folder = setup_env._wheel_folder("2.13.0+cpu")
    assert folder.is_relative_to(tmp_path / "cache" / "ocpgem" / "wheels")
    assert folder.name.startswith(f"torch-2.13.0+cpu-cp{sys.version_info[0]}{sys.version_info[1]}-")
    assert setup_env._wheel_folder("2.13.0+cu130") != folder


def test_one_process_makes_the_wheel_and_leaves_nothing_else(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "wheels"
    (place / "building-left-over").mkdir(parents=True)
    calls = []

    def compiles(work: Path) -> Path:
        calls.append(work)
        wheel = work / "torch_scatter-2.1.2-x.whl"
        wheel.write_text("wheel")
        return wheel

    monkeypatch.setattr(setup_env, "_fetch", lambda work: None)
    monkeypatch.setattr(setup_env, "_compile", compiles)
    first, second = setup_env._make_wheel(place), setup_env._make_wheel(place)
    assert first == second == place / "torch_scatter-2.1.2-x.whl"
    assert len(calls) == 1
    assert list(place.iterdir()) == [first]


def test_a_missing_compiler_is_said_with_the_way_round_it(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(setup_env.SetupError, match=r"no-such-compiler.*PIP_FIND_LINKS"):
        setup_env._compile(tmp_path)


def test_a_failing_step_ends_with_its_last_lines(setup_env: ModuleType) -> None:
    with pytest.raises(setup_env.SetupError, match=r"(?s)trying.*it broke.*whole output"):
        setup_env._run("trying", [sys.executable, "-c", "print('it broke'); raise SystemExit(3)"])


@pytest.mark.skipif(not gcc_can_compile_ours(), reason="needs gcc 12 or later")
def test_functions_are_compiled_once_and_what_was_compiled_before_goes(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = setup_env.VENV.parent
    kernels = root / "ocpgem" / "kernels"
    kernels.mkdir(parents=True)
    setup_env.VENV.mkdir()
    for source in (ROOT / "setup.py", *(ROOT / "ocpgem" / "kernels").glob("*.[ch]")):
        shutil.copy(source, root / source.relative_to(ROOT))
    places = {"ROOT": root, "PYTHON": Path(sys.executable), "KERNELS": kernels}
    places |= {"STAMP": setup_env.VENV / "stamp", "KERNELS_STAMP": setup_env.VENV / "kernels"}
    for name, value in places.items():
        monkeypatch.setattr(setup_env, name, value)
    setup_env.STAMP.write_text("one Python")

    assert setup_env._compile_kernels()
    assert len(list(kernels.glob("_native*.so"))) == 1
    assert not setup_env._compile_kernels()
    assert not (root / "build").exists()
    next(kernels.glob("_native*.so")).unlink()
    assert setup_env._compile_kernels()
    assert len(list(kernels.glob("_native*.so"))) == 1

    setup_env.STAMP.write_text("another Python")
    monkeypatch.setenv("CC", "false")
    capsys.readouterr()
    assert setup_env._compile_kernels()
    assert not list(kernels.glob("_native*.so"))
    assert "no gcc 12 or later, so torch computes what they would" in capsys.readouterr().out
    assert not setup_env._compile_kernels()
    monkeypatch.delenv("CC")
    assert setup_env._compile_kernels()
    assert len(list(kernels.glob("_native*.so"))) == 1
