"""The configuration of a training run: everything that `python main.py train CONFIG` reads."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ocpgem.config import Section
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.train.data_section import DataSetEntry, DataSetSection, SkipSection, as_section
from ocpgem.train.target_section import NormalizationEntry, NormalizationSection


class BatchBudget(Section):
    """A batch that is filled up to a budget; a system that exceeds it alone is a batch of its own."""

    atoms: int | None = Field(None, ge=1)
    edges: int | None = Field(None, ge=1, description="edges of the model's main graph, estimated")

    @model_validator(mode="after")
    def _has_one_unit(self) -> "BatchBudget":
        if sum(amount is not None for amount in (self.atoms, self.edges)) != 1:
            raise ValueError("a budget is given in one unit: {atoms: N} or {edges: N}")
        return self


BatchSize = Annotated[int, Field(ge=1)] | BatchBudget
"""So many systems, or a budget."""


class DataSection(Section):
    """Which records are trained and validated on, and how they are batched."""

    train: DataSetEntry | Annotated[list[DataSetEntry], Field(min_length=1)] = Field(
        description="data set to train on, or several; each a path, or a section with its path and what is used of it"
    )
    val: dict[str, DataSetEntry] = Field(
        default_factory=dict, description="name -> data set; the first one picks the best model"
    )
    skip: SkipSection = SkipSection()
    batch_size: BatchSize = Field(
        8, description="systems per optimiser step, over all ranks, or {atoms: N}, {edges: N}"
    )
    max_edges: int | None = Field(
        None, ge=1, description="edges of the model's main graph that a rank computes at once, at most"
    )
    hide_elements: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that training does not tell the model one of a system's elements",
    )
    eval_batch_size: BatchSize = Field(16, description="the same per batch and rank in validation")
    workers: int = Field(
        1, ge=0, le=256, description="loader processes per rank; 0 loads in the training process"
    )

    @property
    def train_sets(self) -> list[DataSetSection]:
        """The data sets to train on."""
        entries = self.train if isinstance(self.train, list) else [self.train]
        return [as_section(entry) for entry in entries]

    @property
    def val_sets(self) -> dict[str, DataSetSection]:
        """The data sets to validate on, by name."""
        return {name: as_section(entry) for name, entry in self.val.items()}

    @property
    def files(self) -> list[str]:
        """Every path that this section names."""
        return [path for entry in (*self.train_sets, *self.val_sets.values()) for path in entry.files]

    @model_validator(mode="after")
    def _weights_concern_training(self) -> "DataSection":
        weighted = [name for name, entry in self.val_sets.items() if entry.weight != 1]
        if weighted:
            raise ValueError(f"val.{weighted[0]}.weight must be 1: validation scores every record once")
        return self


class ScaleFactorSection(Section):
    """How the scale factors of the activations are fitted before the first step."""

    batches: int = Field(4, ge=1, le=1000, description="batches each factor is fitted on")
    file: str | None = Field(None, description="factors written by fit-scales, instead of fitting")


class LossSection(Section):
    """Weights of the energy MAE and of the mean L2 norm of the force error, both on normalised targets."""

    energy: float = Field(1.0, ge=0)
    forces: float = Field(100.0, ge=0)
    forces_softening: float = Field(
        0.0,
        ge=0,
        description="eV/A; errors much smaller than this count quadratically at the start of the run, so that rare "
        "large forces lead; falls to 0 by the middle of the run",
    )


class ScheduleSection(Section):
    """The learning rate as a function of the step."""

    name: Literal["constant", "cosine", "step"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    final_factor: float = Field(0.01, ge=0, le=1, description="cosine: last learning rate / lr")
    milestones: list[int] = Field(default_factory=list, description="step: multiply by gamma at these steps")
    gamma: float = Field(0.8, gt=0, le=1)

    @model_validator(mode="after")
    def _milestones_belong_to_step(self) -> "ScheduleSection":
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("milestones must be given for the schedule 'step' and for no other")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError("milestones must increase")
        return self


class OptimSection(Section):
    """AdamW, its schedule, clipping and the moving average of the weights."""

    lr: float = Field(5e-4, gt=0, le=1)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0, le=10)
    amsgrad: bool = True
    clip_norm: float = Field(10.0, gt=0, description="largest global norm of the gradient")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="0 turns the moving average off")
    schedule: ScheduleSection = ScheduleSection()


class ValidationSection(Section):
    """When the validation sets are scored and which number picks the best model."""

    every_steps: int = Field(500, ge=1)
    metric: Literal["forces_mae", "energy_mae"] = "forces_mae"


class CheckpointSection(Section):
    """When the state of the run is written and how many states are kept."""

    every_steps: int = Field(500, ge=1)
    keep: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_every_steps: int | None = Field(
        None, ge=1, description="checkpoints of multiples of this step are kept for good"
    )
    keep_hours: float = Field(0.0, ge=0, description="checkpoints younger than this are kept")
    keep_best: bool = Field(
        True,
        description="keep the checkpoint of the best validation, where one was written at that step; best/ holds the "
        "model in any case",
    )


class FaultSection(Section):
    """What a run does where a step cannot be done as planned."""

    non_finite: Literal["stop", "skip"] = Field(
        "stop", description="a loss or gradient that is not finite: end the run, or leave the step out"
    )
    max_skipped: int = Field(10, ge=1, description="steps left out over the whole run before it ends")
    hang_seconds: float = Field(
        900.0, ge=1, description="seconds without any progress of a rank before the run ends and names it"
    )


class ParallelSection(Section):
    """How the work is divided over ranks."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="DeepSpeed ZeRO: what is divided over the ranks; 0 nothing, 1 the optimiser state, 2 gradients as "
        "well, 3 (direct forces only) also the weights",
    )


class TrainConfig(Section):
    """One training run."""

    seed: int = Field(0, ge=0, lt=2**31)
    steps: int = Field(ge=1, description="optimiser steps of the whole run")
    precision: Literal["highest", "bf16"] = Field(
        "highest",
        description="bf16: dense layers in bfloat16; geometry, bases, sums and output layers stay in float32",
    )
    activation_checkpointing: bool = Field(
        False,
        description="compute activations again for the gradient instead of keeping them: a fifth of their memory for a "
        "third more work with direct forces (little is saved with gradient forces)",
    )
    log_every_steps: int = Field(10, ge=1)
    data: DataSection
    model: GemNetConfig
    normalization: NormalizationEntry = NormalizationSection(fit=True)
    scale_factors: ScaleFactorSection = ScaleFactorSection()
    loss: LossSection = LossSection()
    optim: OptimSection = OptimSection()
    validation: ValidationSection = ValidationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    parallel: ParallelSection = ParallelSection()
    faults: FaultSection = FaultSection()

    @model_validator(mode="after")
    def _forces_are_trained_only_if_predicted(self) -> "TrainConfig":
        if self.model.forces == "none" and self.loss.forces > 0:
            raise ValueError("loss.forces must be 0 for a model with forces: none")
        if self.model.forces == "none" and self.validation.metric == "forces_mae":
            raise ValueError("validation.metric must be energy_mae for a model with forces: none")
        if self.parallel.zero_stage == 3 and self.model.forces in ("gradient", "none"):
            raise ValueError(
                "parallel.zero_stage is 3, which works only with direct forces, but model.forces is "
                f"{self.model.forces}; use 0, 1 or 2"
            )
        if self.data.hide_elements > 0 and not self.model.shared_embedding:
            raise ValueError("data.hide_elements needs model.shared_embedding: true")
        if self.loss.energy == 0 and self.loss.forces == 0:
            raise ValueError("loss.energy and loss.forces are both 0; at least one must be positive")
        return self
