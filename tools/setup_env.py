"""Prepare .venv: the packages of requirements.lock and, with --full, torch-scatter and Triton; compile our C.

Run by make, with nothing but the standard library. A second run finds everything in place and does nothing.
torch-scatter exists only as source for most platforms: it is compiled once and kept outside the clone, by
torch version, Python version and platform, where every clone on the machine finds it. Our own few functions in C take
a few seconds; where there is no compiler for them, torch computes what they would.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input"]
LOCK = ROOT / "requirements.lock"
STAMP = VENV / ".ocpgem-setup.json"
SCATTER_STAMP = VENV / ".ocpgem-torch-scatter"
KERNELS_STAMP = VENV / ".ocpgem-kernels"
KERNELS = ROOT / "ocpgem" / "kernels"
UNFINISHED = VENV / ".ocpgem-unfinished"
LOG = VENV / "setup.log"
SCATTER = "torch-scatter==2.1.2"
TRITON = "triton==3.9.0"
"""For the tests of the kernels, in its interpreter. A torch for GPUs brings its own, which stays."""
FIRST = ("torch", "setuptools", "wheel", "ninja")
WHEEL_INDEX = "https://data.pyg.org/whl/torch-VERSION+cpu.html"


class SetupError(Exception):
    """Something that the person at the keyboard has to know."""


def main() -> int:
    """Prepare the environment and say what was done; returns the exit code."""
    parser = argparse.ArgumentParser(description="Prepare .venv for ocpgem.")
    parser.add_argument(
        "--full", action="store_true", help="also torch-scatter, compiled if need be, and Triton"
    )
    full = parser.parse_args().full
    begin = time.monotonic()
    try:
        with _only_one(ROOT, "another set-up of this clone is running; waiting for it"):
            worked = _install_packages()
            worked = _compile_kernels() or worked
            worked = _install_scatter(full, first_time=worked) or worked
            worked = (full and _install_triton()) or worked
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    if worked:
        _say(f"set-up done in {time.monotonic() - begin:.0f} s.")
    return 0


def _install_packages() -> bool:
    """Create .venv and install requirements.lock unless that is done; says whether anything was done."""
    wanted = {
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "place": str(ROOT),  # the scripts in .venv/bin name it
    }
    if _stamp() == wanted:
        return False
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    first = [line for line in lines if line.split("==")[0] in FIRST]
    _say(f"Setting up .venv with Python {wanted['python']} (once; 1 to 3 minutes and 2 GB, more for GPUs):")
    if UNFINISHED.exists() or not _venv_fits(wanted["python"]):
        _empty(VENV)
        _run("creating .venv", [sys.executable, "-m", "venv", str(VENV)])
    UNFINISHED.touch()
    # torch with its dependencies: a CUDA build brings NVIDIA's libraries, which the lock does not list
    _pip("installing torch (about 1 minute)", ["--constraint", str(LOCK), *first])
    arguments = ["--no-deps", "--no-build-isolation", "--requirement", str(LOCK)]
    _pip(f"installing {len(lines) - len(first)} packages (about 1 minute)", arguments)
    STAMP.write_text(json.dumps(wanted))
    UNFINISHED.unlink()
    return True


def _stamp() -> dict[str, str] | None:
    """Return what the last complete set-up was made for."""
    try:
        found: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return None
    return found if PYTHON.exists() else None


def _venv_fits(version: str) -> bool:
    """Say whether there is a working .venv, made in this place with the Python that is asked for."""
    code = "import platform, pip; print(platform.python_version())"
    try:
        answer = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout
        script = (VENV / "bin" / "pip").read_text(errors="replace")
    except (OSError, subprocess.CalledProcessError):
        return False
    return answer.strip() == version and str(VENV) in script


def _empty(folder: Path) -> None:
    """Empty a folder, which may be a link to a place with more room, or make it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _install_scatter(full: bool, first_time: bool) -> bool:
    """Install torch-scatter from a kept wheel or, in a full set-up, make one; says if anything was done."""
    torch = _version_of("torch")
    if _scatter_works(torch):
        return False
    place = _wheel_folder(torch)
    wheel = _kept_wheel(place)
    if wheel is None and not full:
        if first_time:
            _say("  no torch-scatter at hand: torch sums segments (make setup-full compiles torch-scatter)")
        return False
    if wheel is not None:
        _pip("installing the torch-scatter wheel kept on this machine", _only(wheel))
        if _scatter_works(torch):
            return True
        uninstall = [*PIP, "uninstall", "--yes", "torch-scatter"]
        _run("removing that torch-scatter, which does not work here", uninstall)
        wheel.unlink()
        if not full:
            return True
    _pip("installing torch-scatter", _only(_make_wheel(place)))
    if not _scatter_works(torch):
        raise SetupError("torch-scatter is installed but .venv/bin/python -c 'import torch_scatter' fails")
    return True


def _compile_kernels() -> bool:
    """Compile our functions in C next to them, as setup.py says, unless that is done; says if anything was done."""
    sources = (*sorted(KERNELS.glob("*.[ch]")), ROOT / "setup.py", STAMP)
    wanted = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    compiler = shutil.which(os.environ.get("CC", "gcc").split()[0])
    if compiler is not None:
        wanted += f" {Path(compiler).resolve()} {Path(compiler).stat().st_mtime_ns}"
    before = KERNELS_STAMP.read_text().split("\n") if KERNELS_STAMP.exists() else [""]
    if before[0] == wanted and all((KERNELS / name).exists() for name in before[1:]):
        return False
    work = VENV / "build"
    shutil.rmtree(work, ignore_errors=True)
    command = [str(PYTHON), "setup.py", "build_ext", "--build-temp", str(work)]
    _run("compiling functions for CPUs", [*command, "--build-lib", str(work / "lib")])
    made = sorted((work / "lib").rglob("_native*"))
    for library in made:
        library.replace(KERNELS / library.name)  # at once, as processes may start meanwhile
    if not made:
        for earlier in KERNELS.glob("_native*.so"):
            earlier.unlink()
        _say(f"  no gcc 12 or later, so torch computes what they would, more slowly; see {LOG}")
    KERNELS_STAMP.write_text("\n".join([wanted, *(library.name for library in made)]))
    return True


def _install_triton() -> bool:
    """Install Triton where there are wheels and none is there; says if anything was done."""
    if not sys.platform.startswith("linux") or _version_of("triton"):
        return False
    _pip("installing Triton, 280 MB, for the tests of kernels (half a minute)", ["--no-deps", TRITON])
    return True


def _only(wheel: Path) -> list[str]:
    return ["--no-deps", "--force-reinstall", str(wheel)]


def _make_wheel(place: Path) -> Path:
    """Fetch or compile the wheel and move it into `place`; one process does it, others find its result."""
    place.mkdir(parents=True, exist_ok=True)
    with _only_one(place, "another process is making the torch-scatter wheel; waiting for it"):
        wheel = _kept_wheel(place)
        if wheel is not None:
            return wheel
        for left_over in place.glob("building-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix="building-", dir=place))
        try:
            made = _fetch(work) or _compile(work)
            return made.replace(place / made.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _fetch(work: Path) -> Path | None:
    """Look for a ready wheel where pip looks: PIP_FIND_LINKS can name the PyG wheel index."""
    arguments = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(work), SCATTER]
    result = subprocess.run([*PIP, *arguments], capture_output=True, check=False)
    return _kept_wheel(work) if result.returncode == 0 else None


def _compile(work: Path) -> Path:
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        raise SetupError(
            f"torch-scatter has to be compiled and there is no C++ compiler ({compiler}); install g++, or "
            f"let pip find a ready wheel: PIP_FIND_LINKS={WHEEL_INDEX} make setup-full"
        )
    jobs = str(max(1, min(4, os.cpu_count() or 1)))
    settings = work / "parallel.cfg"
    settings.write_text(f"[build_ext]\nparallel = {jobs}\n")
    environment = {
        **os.environ,
        "DIST_EXTRA_CONFIG": str(settings),  # compiles its extensions side by side
        "MAX_JOBS": jobs,
        "CXXFLAGS": os.environ.get("CXXFLAGS", "-g0 -DNDEBUG -fwrapv"),
    }
    arguments = ["wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-binary", "torch-scatter"]
    arguments += ["--no-cache-dir", "--wheel-dir", str(work), SCATTER]
    _run("compiling torch-scatter, once for this machine (3 to 8 minutes)", [*PIP, *arguments], environment)
    wheel = _kept_wheel(work)
    if wheel is None:
        raise SetupError(f"compiling torch-scatter left no wheel; see {LOG}")
    return wheel


def _scatter_works(torch: str) -> bool:
    """Say whether torch-scatter can be imported, trying it once for each torch."""
    if not _version_of("torch-scatter"):
        return False
    if SCATTER_STAMP.exists() and SCATTER_STAMP.read_text() == torch:
        return True
    result = subprocess.run([PYTHON, "-c", "import torch_scatter"], capture_output=True, check=False)
    works = result.returncode == 0
    if works:
        SCATTER_STAMP.write_text(torch)
    return works


def _kept_wheel(place: Path) -> Path | None:
    return next(iter(sorted(place.glob("torch_scatter-*.whl"))), None)


def _wheel_folder(torch: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    target = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return cache / "ocpgem" / "wheels" / f"torch-{torch}-{tag}-{target}"


def _version_of(package: str) -> str:
    """Return the version of a package in .venv, empty where it is not installed."""
    code = (
        f"from importlib.metadata import distributions as d; print(*(x.version for x in d(name='{package}')))"
    )
    command = [str(PYTHON), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _pip(what: str, arguments: Sequence[str]) -> None:
    environment = {**os.environ, "DS_BUILD_OPS": "0"}  # DeepSpeed without compiled operations
    _run(what, [*PIP, "install", "--progress-bar", "off", *arguments], environment)


def _run(what: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run a command with its output in the log, showing the time; raises SetupError with its last lines."""
    with LOG.open("ab") as output:
        output.write(f"\n== {what}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its compilers can be ended with it
        )
        try:
            _wait(what, process)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if process.returncode != 0:
        lines = LOG.read_text(errors="replace").splitlines()[-25:]
        raise SetupError(
            "\n".join([what, *(f"    {line}" for line in lines), f"The whole output is in {LOG}"])
        )


def _wait(what: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for a process; on a terminal the seconds count up, elsewhere a line comes every half minute."""
    begin, live = time.monotonic(), sys.stdout.isatty()
    _say(f"  {what} ...", end="" if live else "\n")
    shown = 0.0
    while process.poll() is None:
        time.sleep(0.2)
        seconds = time.monotonic() - begin
        if live:
            _say(f"\r  {what} ... {seconds:.0f} s", end="")
        elif seconds - shown >= 30:
            shown = seconds
            _say(f"    {seconds:.0f} s")
    word = "done" if process.returncode == 0 else "failed"
    prefix = f"\r  {what} ..." if live else "   "
    _say(f"{prefix} {word} in {time.monotonic() - begin:.0f} s")


@contextlib.contextmanager
def _only_one(folder: Path, message: str) -> Iterator[None]:
    """Hold a lock on a folder; it ends with the process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(message)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            _say(f"{folder} cannot be locked on its file system; going on without")
        yield
    finally:
        os.close(descriptor)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nset-up stopped; the next make goes on from here")
