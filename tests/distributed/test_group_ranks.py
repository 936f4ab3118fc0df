"""Collectives and the local launcher with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocpgem.errors import RequestError
from ocpgem.launch.local import Patience, run_local
from ocpgem.parallel.group import RANK_VARIABLES

COLLECTIVES = """
import os, sys, torch
from datetime import timedelta
from ocpgem.errors import DataError
from ocpgem.parallel import group
group.init_from_environment("cpu", timedelta(seconds=30))
n, size = group.rank(), group.world_size()
assert size == int(sys.argv[1]) and n == int(os.environ.get("RANK", "0"))
value = torch.tensor([float(n), 1.0], dtype=torch.float64)
assert group.all_reduce_sum(value).tolist() == [size * (size - 1) / 2, size]
assert group.all_reduce_max(value).tolist() == [size - 1, 1.0]
assert value.tolist() == [n, 1.0]
assert group.broadcast_object(f"from {n}", source=size - 1) == f"from {size - 1}"
gathered = group.gather_objects({"rank": n})
assert gathered == ([{"rank": i} for i in range(size)] if n == 0 else None)
group.barrier()
group.raise_together(None)
try:
    group.raise_together(DataError("record 3 is damaged") if n == size - 1 else None)
except DataError as error:
    assert str(error) == "record 3 is damaged"
else:
    raise AssertionError("nothing raised")
assert group.on_all(lambda: n) == n
def one_cannot():
    if n == size - 1:
        raise DataError("record 4 is damaged")
try:
    group.on_all(one_cannot)
except DataError as error:
    assert str(error) == "record 4 is damaged"
else:
    raise AssertionError("nothing raised")
group.shutdown()
print(f"done {n} threads {os.environ.get('OMP_NUM_THREADS')}", flush=True)
"""

QUICK = Patience(to_end_alone=0.2, to_terminate=0.5)


def program(tmp_path: Path, text: str) -> list[str]:
    script = tmp_path / "program.py"
    script.write_text("import os, sys, time, signal\nrank = int(os.environ['RANK'])\n" + text)
    return [sys.executable, str(script)]


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until(condition: object, seconds: float = 10.0) -> bool:
    assert callable(condition)
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("nproc", [1, 2, 3])
def test_collectives_agree_on_every_rank(
    nproc: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run_local([str(nproc)], nproc, program=[sys.executable, "-c", COLLECTIVES]) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    assert capfd.readouterr().out == f"done 0 threads {threads}\n"


def test_a_single_process_needs_no_environment() -> None:
    environ = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    command = [sys.executable, "-c", COLLECTIVES, "1"]
    subprocess.run(command, env=environ, check=True, cwd=Path(__file__).parents[2])


def test_a_failing_rank_ends_the_others_and_is_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "if rank == 1:\n    sys.exit('record 7 is damaged')\ntime.sleep(60)"
    begin = time.monotonic()
    assert run_local([], 3, program=program(tmp_path, text), patience=QUICK) == 1
    assert time.monotonic() - begin < 10
    error = capfd.readouterr().err
    assert "Rank 1 failed first, with exit code 1" in error
    assert "[rank 1] record 7 is damaged" in error


def test_a_rank_deaf_to_sigterm_is_killed(tmp_path: Path) -> None:
    text = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open(f'{tmp_path}/pid{{rank}}', 'w').write(str(os.getpid()))\n"
        "if rank == 0:\n    time.sleep(0.5)\n    sys.exit(3)\ntime.sleep(60)"
    )
    assert run_local([], 2, program=program(tmp_path, text), patience=QUICK) == 3
    assert not alive(int((tmp_path / "pid1").read_text()))


def test_the_worst_code_wins_and_a_killed_rank_counts_as_a_shell_counts_it(tmp_path: Path) -> None:
    text = "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else sys.exit(1)"
    assert run_local([], 2, program=program(tmp_path, text)) == 137


def test_a_wrong_request_is_reported_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "time.sleep(0.3 * (1 - rank))\nprint('no such option', file=sys.stderr)\nsys.exit(2)"
    assert run_local([], 2, program=program(tmp_path, text)) == 2
    assert capfd.readouterr().err == "no such option\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_rank_exactly_once(tmp_path: Path, number: signal.Signals) -> None:
    text = (
        "count = []\n"
        f"signal.signal({int(number)}, lambda *_: count.append(1))\n"
        f"open(f'{tmp_path}/ready{{rank}}', 'w').close()\n"
        "while not count:\n    time.sleep(0.02)\n"
        "time.sleep(0.4)\n"
        f"open(f'{tmp_path}/count{{rank}}', 'w').write(str(len(count)))\n"
    )
    launcher = start_launcher(program(tmp_path, text))
    try:
        assert wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in range(2)))
        # Ctrl-C in a terminal reaches the whole foreground group; twice, as `timeout` does.
        os.killpg(launcher.pid, number)
        os.killpg(launcher.pid, number)
        assert launcher.wait(20) == 0
    finally:
        launcher.kill()
        launcher.wait()
    assert [(tmp_path / f"count{rank}").read_text() for rank in range(2)] == ["1", "1"]


def test_ranks_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    text = f"open(f'{tmp_path}/pid{{rank}}.new', 'w').write(str(os.getpid()))\n"
    text += f"os.replace(f'{tmp_path}/pid{{rank}}.new', f'{tmp_path}/pid{{rank}}')\ntime.sleep(60)"
    launcher = start_launcher(program(tmp_path, text))
    assert wait_until(lambda: all((tmp_path / f"pid{rank}").exists() for rank in range(2)))
    launcher.kill()
    launcher.wait()
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)]
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


def test_fewer_than_one_process_is_refused() -> None:
    with pytest.raises(RequestError, match="--nproc is 0"):
        run_local([], 0)


def start_launcher(command: list[str]) -> subprocess.Popen[bytes]:
    code = "import sys; from ocpgem.launch.local import run_local as run; sys.exit(run([], 2, sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command], cwd=Path(__file__).parents[2], process_group=0
    )
