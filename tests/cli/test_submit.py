"""`submit --dry-run` and what is refused, without any cluster; tests/slurm holds those on a real one."""

from pathlib import Path

import pytest
import yaml

from ocpgem.checkpoint import save_potential
from ocpgem.cli import main
from ocpgem.models.potential import Normalization, Potential
from tests.tiny_runs import ROOT, listing, tiny_config, tiny_settings, write_settings, write_tiny_data

CLUSTER = str(ROOT / "slurm" / "local_cluster.yaml")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    train, val = write_tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin-without-slurm")
    return write_settings(tmp_path / "tiny.yml", tiny_settings(train, val))


def test_a_dry_run_shows_the_script_and_the_ranks_and_writes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = listing(tmp_path)
    words = [
        "submit",
        str(config),
        "--cluster",
        str(ROOT / "slurm" / "example.yaml"),
        "--nodes",
        "2",
        "--dry-run",
    ]
    words += ["--account", "0123"]  # text, whatever it looks like
    assert main([*words, "optim.lr=1e-3", "data.batch_size=8", "--set", "mail.when=[fail]"]) == 0
    out = capsys.readouterr().out
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=240G",
        "#SBATCH --time=1440",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=0123",
        "#SBATCH --mail-user=me@example.org",
        "#SBATCH --mail-type=FAIL",
        "#SBATCH --exclusive",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
        "module load cuda/12.8",
    ):
        assert line in out.splitlines()
    assert "--kill-on-bad-exit=1" in out
    assert "│ 1    │ 4-7   │ 0-3  │ 32    │" in out
    assert "dry run: nothing was queued and nothing was written" in out
    assert listing(tmp_path) == before


def test_a_sweep_is_an_array_with_a_run_directory_each(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep.yml").write_text("grid: {optim.lr: [1e-3, 1e-4], seed: [0, 1]}\nparallel: 2\n")
    assert main(["submit", str(config), "--cluster", CLUSTER, "--sweep", "sweep.yml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --array=0-3%2" in out
    assert (
        f"[3] each rank: python main.py train <frozen configuration> --run-dir {tmp_path}/runs/tiny/003_lr=0.0001"
        in out
    )


def test_every_mistake_is_told_at_once(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["data"]["val"] = {"a": "nowhere"}
    settings["start_from"] = {"checkpoint": "no_model"}
    write_settings(config, settings)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "thesis.tex").touch()
    assert main(["submit", str(config), "--cluster", CLUSTER, "--nodes", "4", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "nothing was queued; 4 mistakes:" in error
    assert "is not empty and holds no run" in error
    assert "data: nowhere does not exist" in error
    assert "start_from.checkpoint: no_model does not exist" in error
    assert "data.batch_size is 4 systems over all ranks, fewer than the 8 ranks; raise it" in error


@pytest.mark.parametrize("name", ["", "a b", "a|b", "x\n#SBATCH --uid=0"])
def test_a_name_that_tables_of_slurm_cannot_hold_is_a_mistake(
    config: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert (
        main(["submit", str(config), "--nodes", "1", "--cluster", CLUSTER, "--dry-run", f"--name={name}"])
        == 2
    )
    assert f"--name {name!r}: the name of a job consists of letters, digits" in capsys.readouterr().err
    assert (
        main(["submit", str(config), "--nodes", "1", "--cluster", CLUSTER, "--dry-run", "--name=a-1.b"]) == 0
    )
    assert "#SBATCH --job-name=a-1.b" in capsys.readouterr().out


def test_what_training_would_refuse_is_not_queued(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("empty.json").touch()
    wrong = {
        "parallel.graph=3": "parallel.graph is 3, but there are 4 ranks",
        "optim.groups=[{parameters: [nothing]}]": "optim.groups.0.parameters names 'nothing'",
        "start_from.checkpoint=empty": "start_from.checkpoint: empty holds no model",
        "normalization.file=empty.json": "empty.json",
        "scale_factors.file=empty.json": "scale_factors.file: empty.json",
    }
    words = ["submit", str(config), "--cluster", CLUSTER, "--nodes", "2", "--dry-run", *wrong]
    assert main([*words, "normalization.keep=false"]) == 2
    error = capsys.readouterr().err
    assert f"nothing was queued; {len(wrong)} mistakes:" in error
    for message in wrong.values():
        assert message in error


def test_what_is_hardly_meant_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting, said = (
        "optim.schedule.warmup_steps=50",
        "note: optim.schedule.warmup_steps is 50 and the run has 6 steps",
    )
    assert main(["submit", str(config), setting, "--nodes", "1", "--cluster", CLUSTER, "--dry-run"]) == 0
    assert said in capsys.readouterr().out
    assert main(["config", "check", str(config), setting]) == 0
    assert said in capsys.readouterr().out


def test_a_run_that_goes_on_is_queued_without_what_it_began_with(config: Path) -> None:
    words = ["submit", str(config), "start_from.checkpoint=gone", "--cluster", CLUSTER, "--dry-run"]
    assert main([*words, "--nodes", "1"]) == 2
    run = Path("runs", "tiny")
    (run / "checkpoints" / "4").mkdir(parents=True)
    (run / "preparation.json").touch()
    settings = yaml.safe_load(config.read_text()) | {"start_from": {"checkpoint": "gone"}}
    write_settings(run / "config.yaml", settings)
    assert main([*words, "--nodes", "1"]) == 0


def test_what_does_not_fit_into_a_gpu_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "submit",
        str(config),
        "--cluster",
        CLUSTER,
        "--gpus-per-node",
        "2",
        "--dry-run",
        "data.batch_size=8",
    ]
    assert main([*words, "--set", "gpu.memory_gb=80"]) == 0
    assert "a rank needs about" in capsys.readouterr().out
    assert main([*words, "--set", "gpu.memory_gb=1.0e-5"]) == 2
    error = capsys.readouterr().err
    assert "more than a GPU of 1e-05 GB (gpu.memory_gb of the profile); set data.max_edges" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny.yml", "--cluster", CLUSTER], "there is no SLURM here"),
        (["tiny.yml", "--cluster", CLUSTER, "--dry-run", "optim.lr=-1"], "optim.lr is -1"),
        (["tiny.yml", "--cluster", CLUSTER, "--dry-run", "--steps=3"], "submit does not know --steps=3"),
        (
            ["evalute", "RUN", "--data", "D", "--cluster", CLUSTER, "--dry-run"],
            "there is no command evalute to submit; did you mean evaluate?",
        ),
        (["trian", "tiny.yml", "--cluster", CLUSTER], "did you mean train?"),
        (["absent.yml", "--cluster", CLUSTER, "--dry-run"], "absent.yml: there is no such file"),
        (["tiny.yml", "--cluster", "absent.yaml", "--dry-run"], "absent.yaml: there is no such file"),
        (["tiny.yml", "--cluster", CLUSTER, "--time", "1-", "--dry-run"], "time is '1-'"),
        (
            ["evaluate", "model.pt", "--data", "train", "--cluster", CLUSTER, "--dry-run"],
            "model.pt does not exist",
        ),
        (["evaluate", "--cluster", CLUSTER, "--dry-run"], "the following arguments are required: CHECKPOINT"),
        (["evaluate", "tiny.yml", "--nproc", "2", "--cluster", CLUSTER], "give --nodes and --tasks-per-node"),
        (
            ["evaluate", "tiny.yml", "--data", "x", "--csv", "no/y", "--cluster", CLUSTER, "--dry-run"],
            "no is not a folder",
        ),
        (
            ["evaluate", "tiny.yml", "--sweep", "s", "--cluster", CLUSTER, "--dry-run"],
            "--sweep is for training",
        ),
    ],
)
def test_a_wrong_request_is_answered_in_a_sentence(
    config: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("evaluate empty --data empty --json empty", ("empty holds no model", "empty is a folder; name the")),
        ("evaluate model.pt --data val --data val", ("--data names val twice",)),
        ("evaluate model.pt", ("say with --data what to score it on",)),
        ("evaluate model.pt --data val --task is2re", ("has an energy but no relaxed one",)),
        ("predict model.pt --data empty --out x.txt", ("ending in .npz; x.txt does not", "empty")),
        ("predict model.pt --data val --out empty.npz", ("empty.npz is a folder; name the file",)),
        ("relax model.pt --data val --out o --fmax -1", ("fmax is -1.0 eV/A",)),
        ("relax tiny.yml --data no --out train --maxstep 0", ("maxstep is 0.0", "no relaxation", "tiny.yml")),
        ("relax model.pt --data val --out tiny.yml", ("tiny.yml is a file; name a folder with --out",)),
        ("evaluate GemNet-dT-OC20 --data val", ("GemNet-dT",)),
    ],
)
def test_what_a_command_would_refuse_is_not_queued(
    config: Path, words: str, messages: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for folder in ("empty", "empty.npz"):
        Path(folder).mkdir()
    save_potential(Potential(tiny_config().model, Normalization()), Path("model.pt"))
    before = listing(tmp_path)
    assert main(["submit", *words.split(), "--cluster", CLUSTER, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error
    assert listing(tmp_path) == before


@pytest.fixture
def _silent_slurm(tmp_path: Path) -> None:
    """SLURM's commands, and no controller that answers them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "scontrol", "sinfo", "squeue", "sacctmgr"):
        (folder / name).write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
        (folder / name).chmod(0o755)


@pytest.mark.usefixtures("_silent_slurm")
def test_a_silent_slurm_hides_neither_the_script_nor_the_mistakes(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    words = ["submit", str(config), "--cluster", CLUSTER, "--nodes", "1"]
    assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --nodes=1" in out
    assert "note: SLURM did not answer; partition, account and limits were not checked" in out
    assert main([*words, "--dry-run", "optim.no_decay=[xyz]"]) == 2
    shown = capsys.readouterr()
    assert "#SBATCH --nodes=1" in shown.out
    assert "nothing was queued: optim.no_decay names 'xyz'" in shown.err
    assert main([*words, "optim.no_decay=[xyz]"]) == 2
    error = capsys.readouterr().err
    assert "2 mistakes" in error
    assert "names 'xyz'" in error
    assert "scontrol --oneliner failed: Unable to contact slurm controller" in error
    assert main(words) == 1, "the request is right"
    assert not Path("runs").exists()


def test_what_a_command_can_do_is_queued(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_potential(Potential(tiny_config().model, Normalization()), Path("model.pt"))
    for words in (
        "evaluate model.pt --data a=val --data b=val --json m.json",
        "predict model.pt --data val --out new/p.npz",
        "predict model.pt --data val --out new/p.npz --task is2re --benchmark oc22",
        "relax model.pt --data val --out relaxed",
    ):
        assert main(["submit", *words.split(), "--cluster", CLUSTER, "--dry-run"]) == 0
    assert not Path("new").exists()


def test_runs_without_jobs_are_told(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["jobs"]) == 0
    assert "no jobs of this project" in capsys.readouterr().out
    assert main(["logs", "runs/none"]) == 2
    assert "runs/none does not exist" in capsys.readouterr().err
    assert main(["cancel", str(tmp_path)]) == 2
    assert "nothing was submitted for it" in capsys.readouterr().err
