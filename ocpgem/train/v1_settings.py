"""Reading configurations of fairchem v1 / OCP: files with includes, and settings that are each taken once."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ocpgem.config.tree import Tree, read_tree
from ocpgem.errors import ConfigError


def read_v1(file: Path, chain: tuple[Path, ...] = ()) -> Tree:
    """A configuration of v1 merged with its includes, whose paths are relative to the file or to a folder above it.

    Raises ConfigError for a file that is missing, unreadable or part of a circle.
    """
    path = file.resolve()
    if path in chain:
        raise ConfigError(f"{chain[-1]} includes a file that includes it again: {file}")
    try:
        tree = read_tree(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{file}: is a folder, not a configuration file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not a text file in UTF-8") from None
    names = tree.content.pop("includes", None) or Tree([], str(file))
    merged = Tree({}, str(file))
    for name in names.content if isinstance(names.content, list) else [names]:
        merged = merged.merged(read_v1(_included(name, path), (*chain, path)))
    return merged.merged(tree)


def _included(name: Tree, by: Path) -> Path:
    for folder in (*by.parents, Path.cwd()):
        if (folder / str(name.content)).is_file():
            return folder / str(name.content)
    raise ConfigError(
        f"{name.origin}: the included file {name.content} is found neither in the folder of {by.name} nor in one above"
    )


class Settings:
    """The settings of a v1 configuration by dotted path; each is taken once, so that what is left over is known.

    Elements of a list of maps are numbered, as in `dataset.0.src`; a setting that is null counts as absent.
    """

    def __init__(self, tree: Tree) -> None:
        tree = _with_switches(tree)
        self.plain: dict[str, Any] = tree.plain()
        self._left = {path: leaf for path, leaf in _leaves(tree, "") if leaf.content is not None}

    def take(self, *paths: str) -> Any:
        """The value of the first of `paths` that is there; None if none is."""
        leaf = self._pop(paths)
        return None if leaf is None else leaf.content

    def take_number(self, *paths: str) -> Any:
        """The same for a number (or None); raises ConfigError for anything else."""
        leaf = self._pop(paths)
        if leaf is None:
            return None
        if isinstance(leaf.content, bool) or not isinstance(leaf.content, int | float):
            raise ConfigError(f"{leaf.origin}: {leaf.content!r} must be a number")
        return leaf.content

    def take_flag(self, *paths: str) -> bool:
        """Whether a switch is there and on."""
        return self.take(*paths) is True

    def take_all(self, pattern: str) -> list[str]:
        """Take every setting whose path matches `pattern`; returns their paths."""
        found = [path for path in self._left if re.fullmatch(pattern, path)]
        for path in found:
            del self._left[path]
        return found

    def left(self) -> dict[str, Tree]:
        """What has not been taken."""
        return dict(self._left)

    def _pop(self, paths: tuple[str, ...]) -> Tree | None:
        return next((self._left.pop(path) for path in paths if path in self._left), None)


def _with_switches(tree: Tree) -> Tree:
    """The tree with yes, no, on and off as what they meant in the YAML of v1."""
    content = tree.content
    if isinstance(content, dict):
        return Tree({key: _with_switches(value) for key, value in content.items()}, tree.origin)
    if isinstance(content, list):
        return Tree([_with_switches(value) for value in content], tree.origin)
    if isinstance(content, str) and content.lower() in ("yes", "on", "no", "off"):
        return Tree(content.lower() in ("yes", "on"), tree.origin)
    return tree


def _leaves(tree: Tree, path: str) -> Iterator[tuple[str, Tree]]:
    content = tree.content
    if isinstance(content, list) and any(isinstance(item.content, dict) for item in content):
        content = {str(number): item for number, item in enumerate(content)}
    if not isinstance(content, dict):
        yield path, Tree(tree.plain(), tree.origin)
        return
    for key, value in content.items():
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


WITHOUT_COUNTERPART: tuple[tuple[str, str], ...] = (
    (
        r"logger(\..*)?",
        "metrics go to metrics.jsonl and tensorboard/ of the run directory; for wandb set loggers.wandb.project",
    ),
    (r"trainer", "there is one trainer; what it trains follows from the model and the loss"),
    (
        r"task\.(dataset|description|type|metric|labels|grad_input)|outputs\..*",
        "a GemNet gives one energy per system and forces on its atoms",
    ),
    (
        r"task\.eval_on_free_atoms|evaluation_metrics\..*",
        "all metrics are always computed, those of forces on free atoms",
    ),
    (r"task\.prediction_dtype", "predict --dialect says how predictions are written"),
    (
        r"task\.(relax.*|write_pos|num_relaxation_batches|save_full_traj)",
        "relaxations are not part of training",
    ),
    (
        r"(val_)?dataset\.(.*\.)?(format|key_mapping.*|a2g_args.*|metadata_path)",
        "a data set is recognised by what it holds",
    ),
    (
        r"(dataset\.(1|val)|val_dataset)\.(normalize_labels|(grad_)?target_(mean|std)|transforms.*|lin_ref|oc20_ref)",
        "targets are normalised in one way, that of the training set",
    ),
    (
        r"(test_dataset|dataset\.(2|test))\..*",
        "a run has no test set; name it as --data of evaluate and predict",
    ),
    (r"optim\.load_balancing.*", "ranks are always balanced, by edges"),
    (
        r"optim\.(scheduler_params\.)?warmup_factor",
        "the warm-up rises from lr / (warmup_steps + 1), not from a given share of lr",
    ),
    (r"optim\.(scheduler_params\.)?epochs", "a schedule always covers all steps"),
    (
        r"slurm(\..*)?|gpus|world_size|local_rank|distributed.*|init_method|no_ddp|noddp|num_gpus|num_nodes|gp_gpus|cpu"
        r"|submit|summit|cmd\..*",
        "how a job is started is not part of a configuration; see train --nproc",
    ),
    (
        r"identifier|timestamp_id|run_dir|results_dir|is_debug|is_vis|hide_eval_progressbar|mode|checkpoint|commit",
        "the run directory, named by train --run-dir, holds everything and is resumed from",
    ),
)
"""(pattern of the dotted path, why there is no counterpart); the first pattern that matches counts."""
