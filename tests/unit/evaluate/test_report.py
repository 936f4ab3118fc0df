"""Reports: what is read, what is drawn, and one sentence for whatever is missing or damaged."""

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from make_run import make_predictions, make_records, make_run
from test_metrics import reference

from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.evaluate.figures import DARK, LIGHT, overview, point_density, running_mean
from ocpgem.evaluate.history import History, read_history, series
from ocpgem.evaluate.prediction_set import PredictionSet, score, write_predictions
from ocpgem.evaluate.report import write_overview, write_report


class Strict(HTMLParser):
    """Collects the tags of a page and fails where one is not closed in order."""

    void = frozenset({"meta", "img", "source", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


def test_a_report_is_one_page_and_a_folder_of_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    target = write_report(run)
    assert target == run / "report.html"
    errors = ["error_by_adsorbate", "error_by_element", "error_by_force", "error_by_size"]
    names = ["energy_parity", *errors, "force_parity", "overview", "training_curves"]
    assert sorted(path.stem for path in (run / "figures").iterdir()) == names
    for name in names:
        assert min(png_size(run / "figures" / f"{name}.png")) > 300
    page = target.read_text()
    parser = Strict()
    parser.feed(page)
    assert not parser.open
    sources = [attrs.get("src") or attrs.get("srcset") or attrs.get("href") for _, attrs in parser.tags]
    assert all(source.startswith("data:image/png;base64,") for source in sources if source)
    assert len([source for source in sources if source]) == 14  # seven figures, light and dark
    assert not any(tag in ("script", "link") for tag, _ in parser.tags)
    assert not re.search(r"url\(|@import|https?:", page)
    text = re.sub(r"<[^>]*>", " ", page)
    for expected in (
        "forces_mae",
        "val_ood_ads",
        "average",
        "gemnet_dT  # &lt;small&gt;",
        "torch 2.13.0",
        "1,200",
    ):
        assert expected in text


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", splits=("val_id",))
    first = write_report(run).read_text()
    assert write_report(run).read_text() == first
    assert not list(run.rglob("*.partial"))


def test_a_run_without_predictions_has_curves_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", splits=())
    write_report(run)
    assert sorted(path.stem for path in (run / "figures").iterdir()) == ["overview", "training_curves"]


def test_predictions_of_other_kinds_are_named_but_not_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", splits=("val_id",))
    each = make_predictions(5)
    write_predictions(each, run / "predictions" / "host.npz", "ocp")
    unlabelled = PredictionSet(each.sid, each.fid, each.natoms, each.energy, each.fixed, each.atomic_numbers)
    write_predictions(unlabelled, run / "predictions" / "test.npz", "raw")
    assert "host.npz, test.npz" in write_report(run).read_text()


@pytest.mark.parametrize("splits", [(), ("one",), ("one", "two"), ("a", "b", "c", "d", "e")])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_any_number_of_splits_is_drawn(splits: tuple[str, ...], theme: object, tmp_path: Path) -> None:
    history = read_history(make_run(tmp_path / "run", splits=()))
    sets = {split: make_predictions(3, number) for number, split in enumerate(splits)}
    assert overview(theme, history, sets).startswith(b"\x89PNG")


def test_an_ensemble_shows_how_its_spread_compares_with_its_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", splits=("val_id",))
    each = make_predictions(40)
    spread = {
        "energy_spread": np.full(40, 0.1),
        "forces_spread": np.linalg.norm(each.forces - each.forces_true, axis=1),
    }
    write_predictions(PredictionSet(**each.columns() | spread), run / "predictions" / "ensemble.npz", "raw")
    write_report(run)
    assert min(png_size(run / "figures" / "spread_against_error.png")) > 300


def test_odd_predictions_are_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", splits=("val_id",))
    one = make_predictions(1)
    columns = one.columns()
    energies_only = {name: value for name, value in columns.items() if "forces" not in name}
    all_fixed = columns | {"fixed": np.ones_like(one.fixed)}
    perfect = columns | {"energy": one.energy_true, "forces": one.forces_true}
    for name, each in (("energies", energies_only), ("fixed", all_fixed), ("perfect", perfect)):
        write_predictions(PredictionSet(**each), run / "predictions" / f"{name}.npz", "raw")
    write_report(run)


def test_the_overview_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", splits=("val_id",))
    assert png_size(write_overview(run, tmp_path / "picture.png"))[0] > 1000
    assert write_overview(run) == run / "figures" / "overview.png"


def test_scores_of_a_file_are_the_metrics(tmp_path: Path) -> None:
    each = make_predictions(12)
    cuts = np.cumsum(each.natoms)[:-1]
    systems = [
        {"energy": energy, "energy_pred": ours, "forces": true, "forces_pred": forces, "fixed": fixed}
        for energy, ours, true, forces, fixed in zip(
            each.energy_true,
            each.energy,
            np.split(each.forces_true, cuts),
            np.split(each.forces, cuts),
            np.split(each.fixed, cuts),
            strict=True,
        )
    ]
    assert score(each) == pytest.approx(reference(systems), rel=1e-12)


def test_a_resumed_run_counts_each_step_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, splits=("val_id",))
    again = {"kind": "train", "step": 20, "loss": 7.0, "seconds": 1.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    history = read_history(run)
    steps, loss = series(history.train, "loss")
    assert len(steps) == len(set(steps)) == len(make_records()) - 20
    assert loss[1] == 7.0
    assert list(steps) == sorted(steps)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, splits=("val_id",))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5000, "lo')
    assert read_history(run).n_steps == 1200


@pytest.mark.parametrize(
    "line", ["{broken", "[1, 2]", '{"kind": "train"}', '{"kind": "val", "step": 3}', "null"]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path, splits=("val_id",))
    content = (run / "metrics.jsonl").read_text().splitlines()
    content[2] = line
    (run / "metrics.jsonl").write_text("\n".join(content) + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 3 is not a record"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_numbers_that_are_not_finite_are_left_out_of_curves() -> None:
    records = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": float("nan")},
        {"step": 3},
        {"step": 4, "loss": "x"},
    ]
    assert series(records, "loss")[0].tolist() == [1.0]


def test_history_without_training_records_is_enough() -> None:
    history = History([], {"val_id": [{"step": 5, "seconds": 2.0, "energy_mae": 1.0}]})
    assert (history.n_steps, history.seconds) == (5, 2.0)


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), RequestError, "has no metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text(""), DataError, "holds no records yet"),
        (
            lambda run: (run / "predictions" / "val_id.npz").write_bytes(b"PK"),
            DataError,
            r"val_id\.npz cannot be read",
        ),
        (lambda run: (run / "environment.json").write_text("{"), DataError, r"environment\.json is damaged"),
        (lambda run: (run / "figures").write_text(""), OcpgemError, "figures cannot be made"),
    ],
)
def test_missing_and_damaged_input_is_one_sentence(tmp_path: Path, damage, kind: type, message: str) -> None:
    run = make_run(tmp_path, splits=("val_id",))
    damage(run)
    with pytest.raises(kind, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        write_report(tmp_path / "nowhere")


def test_density_is_highest_where_most_points_are() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=1000) * 0.1, [3.0]])
    density = point_density(x, x, (-4, 4))
    assert density[-1] == density.min() > 0
    assert density[np.abs(x).argmin()] > 10 * density[-1]


def test_a_running_mean_keeps_a_constant_and_shrinks_at_the_ends() -> None:
    np.testing.assert_allclose(running_mean(np.full(9, 3.0), 5), 3.0)
    np.testing.assert_allclose(running_mean(np.array([1.0, 4.0, 16.0]), 3), [2.0, 4.0, 8.0])
