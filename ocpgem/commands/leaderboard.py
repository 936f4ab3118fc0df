"""Commands that make and examine submissions: `leaderboard build`, `check`, `score`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocpgem.commands.arguments import Subparsers, benchmark_argument, require_parent
from ocpgem.commands.output import make_console
from ocpgem.errors import DataError, RequestError

if TYPE_CHECKING:
    from ocpgem.data.dataset import Dataset
    from ocpgem.evaluate.leaderboard.format import Format

_SPLITS = "id, ood_ads, ood_cat, ood_both"


def add_commands(commands: Subparsers) -> None:
    """Add the commands of this module."""
    leaderboard = commands.add_parser("leaderboard", help="build, check and score submissions")
    actions = leaderboard.add_subparsers(required=True, metavar="ACTION")

    build = actions.add_parser("build", help="join the predictions of four splits to one submission")
    build.add_argument(
        "files", nargs="+", metavar="SPLIT=FILE", help=f"raw predictions or relaxations of {_SPLITS}"
    )
    build.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="submission to write")
    build.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="SPLIT=PATH",
        help="test set to check the submission against before it is written; may be repeated",
    )
    _format_arguments(build)
    build.set_defaults(command=_build)

    check = actions.add_parser("check", help="look for everything a host would refuse a submission for")
    score = actions.add_parser("score", help="score a submission on labelled data")
    for action in (check, score):
        action.add_argument("submission", type=Path, metavar="FILE.npz")
        action.add_argument(
            "--data",
            action="append",
            default=[],
            metavar="SPLIT=PATH",
            help=f"data set of {_SPLITS}; may be repeated",
        )
        _format_arguments(action)
    score.add_argument("--json", type=Path, help="also write the metrics to this file")
    check.set_defaults(command=_check)
    score.set_defaults(command=_score)


def _format_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=["s2ef", "is2re", "is2rs"], default="s2ef", help="(default: s2ef)")
    parser.add_argument(
        "--dialect",
        choices=["ocp", "hub"],
        default="ocp",
        help="ocp: the first host, free atoms, cast, sorted; hub: the present host, all atoms, uncast (default: ocp)",
    )
    benchmark_argument(parser)


def _build(args: argparse.Namespace) -> int:
    from ocpgem.evaluate.leaderboard.build import build_submission, describe, write_submission
    from ocpgem.evaluate.leaderboard.check import check_submission
    from ocpgem.evaluate.leaderboard.manifest import read_manifest
    from ocpgem.evaluate.prediction_set import read_provenance
    from ocpgem.evaluate.provenance import as_text, environment, sha256_of
    from ocpgem.files import write_text

    if args.out.suffix != ".npz":
        raise RequestError(f"a submission is a file ending in .npz; {args.out} does not")
    require_parent(args.out)
    form = _format(args)
    files = {split: Path(path) for split, path in _pairs(args.files).items()}
    content, warnings = build_submission(files, form)
    sets = _open(args.data)
    if sets:
        faults = check_submission(content, form, read_manifest(sets, form)).faults
        if faults:
            raise DataError(f"nothing is written: {'; '.join(faults)}")
    splits = {
        split: {"file": str(path), "sha256": sha256_of(path), "made_by": read_provenance(path)}
        for split, path in files.items()
    }
    write_submission(content, args.out)
    record = {
        "submission": {"sha256": sha256_of(args.out), **describe(form)},
        "splits": splits,
        **environment(),
    }
    beside = args.out.with_suffix(".provenance.json")
    write_text(beside, as_text(record))
    for warning in warnings:
        print(f"warning: {warning}")
    total = sum(len(value) for key, value in content.items() if key.endswith("_ids"))
    checked = f"checked against {len(sets)} test sets" if sets else "not checked; see leaderboard check"
    print(f"{total} systems of {len(files)} splits in {args.out} ({checked}); where they come from: {beside}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from ocpgem.evaluate.leaderboard.check import check_submission, read_submission
    from ocpgem.evaluate.leaderboard.manifest import read_manifest

    form = _format(args)
    manifest = read_manifest(_open(args.data), form)
    findings = check_submission(read_submission(args.submission), form, manifest)
    for sentence in findings.faults:
        print(f"fault: {sentence}")
    for sentence in findings.warnings:
        print(f"warning: {sentence}")
    if findings.faults:
        n = len(findings.faults)
        raise DataError(f"{args.submission} has {n} {'fault' if n == 1 else 'faults'}")
    print(
        f"{args.submission} is a sound {form.task} submission of the {form.dialect} dialect for {form.benchmark}"
    )
    return 0


def _score(args: argparse.Namespace) -> int:
    from ocpgem.evaluate import tables
    from ocpgem.evaluate.leaderboard.check import check_submission, read_submission
    from ocpgem.evaluate.leaderboard.manifest import read_manifest
    from ocpgem.evaluate.leaderboard.score import score_submission
    from ocpgem.files import write_text

    form = _format(args)
    sets = _open(args.data)
    if not sets:
        raise RequestError(f"say with --data SPLIT=PATH where the labels of {_SPLITS} are")
    if args.json is not None:
        require_parent(args.json)
    columns = read_submission(args.submission)
    faults = check_submission(columns, form, read_manifest(sets, form)).faults
    if faults:
        raise DataError(f"{args.submission} cannot be scored: {'; '.join(faults)}")
    scores = score_submission(columns, form, sets)
    results = {split: each.values for split, each in scores.items()}
    make_console().print(tables.metrics_table(results, str(args.submission), tables.intervals_of(scores)))
    if args.json is not None:
        write_text(args.json, tables.as_json(results, scores))
        print(f"metrics written to {args.json}")
    return 0


def _format(args: argparse.Namespace) -> "Format":
    from ocpgem.evaluate.leaderboard.format import Format

    return Format(args.task, args.dialect, args.benchmark)


def _open(items: list[str]) -> "dict[str, Dataset]":
    from ocpgem.data.open import open_dataset

    return {split: open_dataset(path) for split, path in _pairs(items).items()}


def _pairs(items: list[str]) -> dict[str, Any]:
    pairs: dict[str, str] = {}
    for item in items:
        split, separator, path = item.partition("=")
        if not separator:
            raise RequestError(f"{item!r} names no split; write SPLIT=PATH, with a split of {_SPLITS}")
        if split in pairs:
            raise RequestError(f"the split {split} is named twice")
        pairs[split] = path
    return pairs
