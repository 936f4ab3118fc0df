"""import-checkpoint and export-checkpoint as a user types them: what they write, what they say, their exit codes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.checkpoint import load_potential, read_model_file
from ocpgem.cli import main
from ocpgem.download import Downloaded, Progress
from ocpgem.models.import_weights import catalogue
from tests.tiny_runs import listing
from tests.unit.models.released_files import MODELS, OC20, container, equal_weights, random_potential


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A container as fairchem v1 writes it."""
    folder = tmp_path / "released"
    folder.mkdir()
    torch.save(container(folder)[1], folder / "released.pt")
    return folder / "released.pt"


def failure(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit code and the one line that says why."""
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as exit_:  # of the argument parser
        code = exit_.code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return code, error


def test_there_and_back_through_the_command_line(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, back = tmp_path / "ours.pt", tmp_path / "back.pt"
    assert main(["import-checkpoint", str(released), "--out", str(ours)]) == 0
    said = capsys.readouterr().out
    for part in (
        "weights: those of the state dict",
        "scale factors: 12 from",
        "normalisation: energy mean -0.755445",
    ):
        assert part in said
    assert f"parameters, in {ours}" in said
    facts = read_model_file(ours)["extra"]
    assert facts["imported_from"] == str(released)
    assert len(facts["sha256"]) == 64
    assert main(["export-checkpoint", str(ours), "--out", str(back)]) == 0
    assert str(back) in capsys.readouterr().out
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (released, back))
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)
    assert load_potential(ours).normalization == OC20
    assert listing(tmp_path) >= {"ours.pt", "back.pt"}


def test_options_reach_the_importer(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(released, weights_only=True)
    state = content["state_dict"]
    scales = {key: value for key, value in state.items() if key.endswith(".scale_factor")}
    torch.save(scales, tmp_path / "scales.pt")
    torch.save({key: value for key, value in state.items() if key not in scales}, tmp_path / "bare.pt")
    settings = {key: value for key, value in content["config"]["model"].items() if key != "name"}
    lines = ["model:", "  name: gemnet_t", *(f"  {key}: {value}" for key, value in settings.items())]
    (tmp_path / "settings.yml").write_text("\n".join(lines) + "\n")
    words = [
        "import-checkpoint",
        tmp_path / "bare.pt",
        "--out",
        tmp_path / "ours.pt",
        "--config",
        tmp_path / "settings.yml",
    ]
    assert main([*map(str, words), "--scale-file", str(tmp_path / "scales.pt"), "--weights", "raw"]) == 0
    assert "settings.yml" in capsys.readouterr().out
    assert equal_weights(load_potential(tmp_path / "ours.pt"), random_potential(MODELS["dT"]))


def test_mistakes_are_told_in_one_sentence_and_leave_nothing(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pt"
    text = tmp_path / "text.pt"
    text.write_text("energy,forces\n")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        (("import-checkpoint",), 2, "is required"),
        (("import-checkpoint", released), 2, "--out"),
        (("import-checkpoint", released, "--list"), 2, "not allowed with"),
        (("import-checkpoint", tmp_path / "nowhere.pt", "--out", out), 2, "no such file"),
        (("import-checkpoint", released, "--out", tmp_path / "no" / "out.pt"), 2, "is not a folder"),
        (("import-checkpoint", released, "--out", out, "--weights", "ema"), 2, "keeps no moving averages"),
        (("import-checkpoint", released, "--out", out, "--weights", "best"), 2, "invalid choice"),
        (("import-checkpoint", released, "--out", out, "--scale-file", "nowhere.json"), 2, "no such file"),
        (("import-checkpoint", released, "--out", out, "--config", "nowhere.yml"), 2, "no such file"),
        (("import-checkpoint", text, "--out", out), 2, "is text, not a checkpoint"),
        (
            ("import-checkpoint", "--download", "GemNet-X", "--out", out),
            2,
            "no released checkpoint is called",
        ),
        (("import-checkpoint", "--download", "GemNet-Q"), 2, "--out"),
        (("import-checkpoint", "--list", "--weights", "raw"), 2, "belong to a checkpoint"),
        (("export-checkpoint", tmp_path / "nowhere", "--out", out), 2, "does not exist"),
        (("export-checkpoint", released, "--out", out), 1, "is not a model file"),
    ]
    before = listing(tmp_path)
    for words, expected, message in cases:
        code, error = failure(capsys, *words)
        assert (code, message in error) == (expected, True), (words, code, error)
    assert listing(tmp_path) == before


def test_the_list_shows_every_released_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-checkpoint", "--list"]) == 0
    said = capsys.readouterr().out
    for entry in catalogue.CATALOGUE:
        assert entry.name in said
        assert entry.url in said
    assert said.count("sha256: none published") == len(catalogue.CATALOGUE)


def test_a_download_brings_the_file_of_that_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def pretend(url: str, path: Path, sha256: str | None, progress: Progress) -> Downloaded:
        asked.append((url, path, sha256))
        progress(3, 3)
        path.write_bytes(b"abc")
        return Downloaded(3, "00")

    monkeypatch.setattr(catalogue, "download", pretend)
    out = tmp_path / "file.pt"
    assert main(["import-checkpoint", "--download", "gemnet-q", "--out", str(out)]) == 0
    assert asked == [(catalogue.find("GemNet-Q").url, out, None)]
    said = capsys.readouterr().out
    assert "none was published, so it could not be verified" in said
    assert listing(tmp_path) == {"file.pt", "file_kwargs.json"}


def test_an_import_does_not_replace_a_file(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.pt"
    out.write_bytes(b"another model")
    code, error = failure(capsys, "import-checkpoint", released, "--out", out)
    assert code == 2
    assert "exists already" in error
    assert out.read_bytes() == b"another model"
