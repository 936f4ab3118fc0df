"""The part of a configuration that says where the numbers of a run go."""

from typing import Literal

from pydantic import Field

from ocpgem.config import Section


class WandbSection(Section):
    """Weights & Biases; needs its package, wandb, which ocpgem does not install."""

    project: str = Field(min_length=1)
    entity: str | None = Field(None, description="user or team; null: that of the key")
    group: str | None = None
    name: str | None = Field(None, description="null: the name of the run directory")
    tags: list[str] = Field(default_factory=list)
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: written below the run directory, for `wandb sync` later"
    )


class LoggerSection(Section):
    """Where the numbers of a run go besides metrics.jsonl, which is always written."""

    tensorboard: bool = True
    wandb: WandbSection | None = Field(None, description="null: not used")
