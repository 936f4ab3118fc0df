"""Which parameters are trained, and how: the groups of a configuration over the parameters of its model."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ocpgem.errors import ConfigError
from ocpgem.models.potential import Potential
from ocpgem.train.config import OptimSection


@dataclass(frozen=True)
class Treatment:
    """How a parameter is trained."""

    lr_factor: float
    weight_decay: float


def treatments(potential: Potential, optim: OptimSection) -> dict[str, Treatment | None]:
    """The treatment of every parameter, by its name in the model; None for frozen ones.

    Raises ConfigError for a name that no parameter has, and if all are frozen.
    """
    names = [name for name, _ in potential.model.named_parameters()]
    _check_names(optim, names)
    n_blocks = potential.config.n_blocks
    found: dict[str, Treatment | None] = {}
    for name in names:
        group = next((group for group in optim.groups if matches(name, group.parameters)), None)
        if group is not None and group.frozen:
            found[name] = None
            continue
        decay = 0.0 if matches(name, optim.no_decay) else optim.weight_decay
        factor = optim.layer_lr_decay ** _layers_above(name, n_blocks)
        if group is not None:
            factor *= group.lr_factor
            decay = decay if group.weight_decay is None else group.weight_decay
        found[name] = Treatment(factor, decay)
    if all(treatment is None for treatment in found.values()):
        raise ConfigError("optim.groups freezes every parameter; nothing is left to train")
    return found


def freeze(potential: Potential, optim: OptimSection) -> None:
    """Let the parameters that are frozen want no gradient."""
    frozen = treatments(potential, optim)
    for name, parameter in potential.model.named_parameters():
        parameter.requires_grad_(frozen[name] is not None)


def torch_groups(potential: Potential, optim: OptimSection) -> tuple[list[dict[str, object]], list[float]]:
    """Parameter groups for torch's optimisers, and the factor of the learning rate of each."""
    parameters = dict(potential.model.named_parameters())
    members: dict[Treatment, list[nn.Parameter]] = {}
    for name, treatment in treatments(potential, optim).items():
        if treatment is not None and parameters[name].requires_grad:
            members.setdefault(treatment, []).append(parameters[name])
    groups: list[dict[str, object]] = [
        {"params": found, "weight_decay": treatment.weight_decay} for treatment, found in members.items()
    ]
    return groups, [treatment.lr_factor for treatment in members]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern is the name, its beginning up to a dot, or fits it with * for any characters."""
    return any(name == p or name.startswith(f"{p}.") or fnmatchcase(name, p) for p in patterns)


def _layers_above(name: str, n_blocks: int) -> int:
    part, _, rest = name.partition(".")
    if part == "blocks":
        return n_blocks - 1 - int(rest.partition(".")[0])
    return n_blocks if part in ("bases", "atom_embedding", "edge_embedding") else 0


def _check_names(optim: OptimSection, names: list[str]) -> None:
    places = [("optim.no_decay", optim.no_decay)]
    places += [
        (f"optim.groups.{index}.parameters", group.parameters) for index, group in enumerate(optim.groups)
    ]
    for place, patterns in places:
        for pattern in patterns:
            if not any(matches(name, [pattern]) for name in names):
                parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
                raise ConfigError(
                    f"{place} names {pattern!r}, which is no parameter of the model; its parts are {parts}"
                )
