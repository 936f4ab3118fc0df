"""Commands that only look: `config`, `models`, `doctor`."""

import argparse
from pathlib import Path

from ocpgem.commands.arguments import Subparsers, config_arguments, positive, require_parent
from ocpgem.commands.output import make_console
from ocpgem.errors import RequestError


def add_commands(commands: Subparsers) -> None:
    """Add the commands of this module."""
    config = commands.add_parser("config", help="look at a configuration").add_subparsers(
        required=True, metavar="ACTION"
    )
    for action, text in (
        ("show", "print it with includes and defaults filled in"),
        ("check", "say what is wrong with it"),
    ):
        sub = config.add_parser(action, help=text)
        config_arguments(sub)
        sub.set_defaults(command=_show_config if action == "show" else _check_config)
    imported = config.add_parser("import", help="translate a configuration of fairchem v1 / OCP")
    imported.add_argument("file", type=Path, metavar="FILE", help="YAML file; what it includes is read, too")
    imported.add_argument("--out", type=Path, help="YAML file to write (default: print it)")
    imported.add_argument(
        "--gpus", type=positive, default=1, help="on how many GPUs the old run was made (default: 1)"
    )
    imported.set_defaults(command=_import_config)
    models = commands.add_parser("models", help="the variants of GemNet and their sizes")
    models.add_argument("--json", action="store_true", help="print JSON instead of a table")
    models.set_defaults(command=_models)
    doctor = commands.add_parser("doctor", help="what is installed and what this machine can run")
    doctor.set_defaults(command=_doctor)


def _show_config(args: argparse.Namespace) -> int:
    from ocpgem.config import dump_config, load_config
    from ocpgem.train.config import TrainConfig

    print(dump_config(load_config(args.config, args.overrides, TrainConfig)), end="")
    return 0


def _import_config(args: argparse.Namespace) -> int:
    from ocpgem.train.import_config import import_config

    if args.out is not None:
        require_parent(args.out)
    imported = import_config(args.file, args.gpus)
    if args.out is None:
        print(imported.text, end="")
    else:
        args.out.write_text(imported.text)
        print(f"written to {args.out}, with {imported.n_notes} notes at its top")
    if imported.mistakes is not None:
        raise RequestError(f"the translation of {args.file} has to be completed: {imported.mistakes}")
    return 0


def _models(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from ocpgem.models.overview import describe_variants

    variants = describe_variants()
    if args.json:
        print(json.dumps([dataclasses.asdict(variant) for variant in variants], indent=2))
        return 0
    from rich.table import Table

    table = Table(title="variants of GemNet, in their published sizes", title_justify="left")
    for column in ("model.variant", "parameters", "forces", "path", "cutoff", "neighbours"):
        left = column in ("model.variant", "forces", "path")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for variant in variants:
        paths = variant.paths
        table.add_row(
            variant.variant,
            f"{variant.n_parameters:,}",
            variant.forces,
            "\n".join(path.name for path in paths),
            "\n".join(f"{path.cutoff:g} A" for path in paths),
            "\n".join(str(path.max_neighbors or "all") for path in paths),
            end_section=True,
        )
    make_console().print(table)
    return 0


def _check_config(args: argparse.Namespace) -> int:
    from ocpgem.config import load_config
    from ocpgem.train.config import TrainConfig

    config = load_config(args.config, args.overrides, TrainConfig)
    from ocpgem.train.examine import examine

    examined = examine(config, n_ranks=None)
    for note in examined.notes:
        print(f"note: {note}")
    if not examined.wrong and examined.absent:  # as on a machine that is not to train
        missing = ", ".join(f"{path} ({section})" for section, path in examined.absent)
        raise RequestError(
            f"{args.config} is well-formed, but these files or folders do not exist: {missing}"
        )
    examined.require()
    print(f"{args.config}: no mistakes found")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from ocpgem import doctor

    return doctor.main()
