"""The configuration of a training run: everything that `python main.py train CONFIG` reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ocpgem.config import Contradiction, Name, Section
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.train.data_section import DataSetEntry, DataSetSection, SkipSection, as_section
from ocpgem.train.logger_section import LoggerSection
from ocpgem.train.parallel_section import ParallelSection
from ocpgem.train.target_section import NormalizationEntry, NormalizationSection


class BatchBudget(Section):
    """A batch that is filled up to a budget; a system that exceeds it alone is a batch of its own."""

    atoms: int | None = Field(None, ge=1)
    edges: int | None = Field(None, ge=1, description="edges of the model's main graph, estimated")
    memory_gb: float | None = Field(
        None,
        ge=0.001,
        description="GB (1e9 bytes) that the forward pass keeps for the gradient, estimated by running the model on a "
        "few systems; parameters and the optimiser's state are not in it",
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """A budget has one unit."""
        units = ("atoms", "edges", "memory_gb")
        if sum(getattr(self, unit) is not None for unit in units) != 1:
            yield units, "a budget is given in one unit: {atoms: N}, {edges: N} or {memory_gb: X}"


BatchSize = Annotated[int, Field(ge=1)] | BatchBudget
"""So many systems, or a budget."""


class DataSection(Section):
    """Which records are trained and validated on, and how they are batched."""

    train: DataSetEntry | Annotated[list[DataSetEntry], Field(min_length=1)] = Field(
        description="data set to train on, or several; each a path, or a section with its path and what is used of it"
    )
    val: dict[Name, DataSetEntry] = Field(
        default_factory=dict, description="name -> data set; the first one picks the best model"
    )
    skip: SkipSection = SkipSection()
    batch_size: BatchSize = Field(
        8,
        description="systems per optimiser step, over all ranks, or a budget {atoms: N}, {edges: N} or {memory_gb: X}",
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
    stored_edges: bool = Field(
        False,
        description="read the edges of the model's graph that data edges has stored beside every data set, instead of "
        "searching them; batches then go by their exact numbers",
    )
    worker_start: Literal["fork", "spawn"] = Field(
        "fork",
        description="spawn: loader processes start anew, for libraries (some MPI and InfiniBand) that a fork breaks",
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

    def contradictions(self) -> Iterator[Contradiction]:
        """Weights concern training."""
        for name, entry in self.val_sets.items():
            if entry.weight != 1:
                key = f"val.{name}.weight"
                yield (key,), f"{key} must be 1: validation scores every record once"


class ScaleFactorSection(Section):
    """How the scale factors of the activations are fitted before the first step."""

    batches: int = Field(4, ge=1, le=1000, description="batches each factor is fitted on")
    file: str | None = Field(None, description="factors of fit-scales or a released file, instead of fitting")


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

    def contradictions(self) -> Iterator[Contradiction]:
        """Something is trained."""
        if self.energy == 0 and self.forces == 0:
            yield (
                ("energy", "forces"),
                "loss.energy and loss.forces are both 0; at least one must be positive",
            )


class PlateauSection(Section):
    """Lowers the learning rate whenever validations stop to improve `validation.metric`."""

    factor: float = Field(0.8, gt=0, lt=1, description="what the rate is multiplied with")
    patience: int = Field(3, ge=0, description="validations without improvement that are borne")
    threshold: float = Field(1e-4, ge=0, lt=1, description="smaller relative improvements count as none")
    cooldown: int = Field(0, ge=0, description="validations after a fall that are not counted")
    lowest: float = Field(0.0, ge=0, le=1, description="least factor that all falls make together")


class ScheduleSection(Section):
    """The learning rate as a function of the step, and of validations where there is `plateau`."""

    name: Literal["constant", "cosine", "step", "exponential", "plateau"] = Field(
        "cosine", description="plateau: constant but for what the section `plateau` does"
    )
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int | None = Field(
        None, ge=1, description="exponential: steps in which the rate falls to final_factor, and so on"
    )
    plateau: PlateauSection | None = Field(None, description="can be combined with every schedule")
    final_factor: float = Field(0.01, ge=0, le=1, description="cosine: last learning rate / lr")
    milestones: list[int] = Field(default_factory=list, description="step: multiply by gamma at these steps")
    gamma: float = Field(0.8, gt=0, le=1)

    def contradictions(self) -> Iterator[Contradiction]:
        """Each schedule has what it needs, and nothing of another."""
        if (self.name == "step") != bool(self.milestones):
            yield (
                ("name", "milestones"),
                "milestones must be given for the schedule 'step' and for no other",
            )
        if self.milestones != sorted(set(self.milestones)):
            yield ("milestones",), "milestones must increase"
        if (self.name == "exponential") != (self.decay_steps is not None):
            yield (
                ("name", "decay_steps"),
                "decay_steps must be given for the schedule 'exponential' and for no other",
            )
        if self.name == "exponential" and self.final_factor == 0:
            yield ("name", "final_factor"), "final_factor must be positive for the schedule 'exponential'"

    @property
    def on_plateau(self) -> PlateauSection | None:
        """What validations do to the rate, None if nothing."""
        return PlateauSection() if self.plateau is None and self.name == "plateau" else self.plateau


class ParameterGroup(Section):
    """Parameters that are trained in another way than the rest, or not at all."""

    parameters: list[str] = Field(
        min_length=1,
        description="names as in blocks.0.dense.weight; with * for any part, or a beginning as blocks.0",
    )
    lr_factor: float = Field(1.0, gt=0, le=1000, description="their learning rate / lr")
    weight_decay: float | None = Field(None, ge=0, le=10, description="null: that of the rest")
    frozen: bool = Field(False, description="keep the values they have")

    def contradictions(self) -> Iterator[Contradiction]:
        """Frozen parameters are not trained in any way."""
        if self.frozen and (self.lr_factor != 1 or self.weight_decay is not None):
            yield (
                ("frozen", "lr_factor", "weight_decay"),
                "frozen parameters have neither lr_factor nor weight_decay",
            )


class OptimSection(Section):
    """AdamW, its schedule, clipping and the moving average of the weights."""

    lr: float = Field(5e-4, gt=0, le=1)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0, le=10)
    no_decay: list[str] = Field(
        default_factory=list, description="parameters without weight decay, named as in groups"
    )
    groups: list[ParameterGroup] = Field(
        default_factory=list, description="the first that names a parameter counts"
    )
    layer_lr_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="the rate of the last block is lr, that of each block before it is multiplied by this once more; "
        "that of bases and embeddings once more than the first block's",
    )
    amsgrad: bool = True
    clip_norm: float = Field(10.0, gt=0, description="largest global norm of the gradient")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="0 turns the moving average off")
    schedule: ScheduleSection = ScheduleSection()


class ValidationSection(Section):
    """When the validation sets are scored and which number picks the best model."""

    every_steps: int = Field(500, ge=1)
    metric: Literal["forces_mae", "energy_mae"] = "forces_mae"
    parity_systems: int = Field(
        1000,
        ge=0,
        description="systems of each set whose predictions are drawn against their labels at every validation; 0: none",
    )


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


class StartSection(Section):
    """Fine-tuning: the weights that a run begins with."""

    checkpoint: str = Field(
        description="run directory or model file; import-checkpoint makes one of a release"
    )
    new_heads: bool = Field(
        False, description="output heads begin at random; else they keep their values, in eV and eV/A"
    )
    elements: dict[int, int] = Field(
        default_factory=dict,
        description="atomic number -> atomic number of the checkpoint whose embedding it begins with",
    )


class TrainConfig(Section):
    """One training run."""

    seed: int = Field(0, ge=0, lt=2**31)
    steps: int = Field(ge=1, description="optimiser steps of the whole run")
    precision: Literal["highest", "high", "bf16"] = Field(
        "highest",
        description="highest: float32; high: float32 with TF32 products on GPUs; bf16: dense layers in bfloat16, "
        "geometry, bases, sums and output layers stay in float32",
    )
    activation_checkpointing: bool = Field(
        False,
        description="compute activations again for the gradient instead of keeping them: a quarter of the memory "
        "for a third more work with direct forces (little is saved with gradient forces)",
    )
    compile: Literal["off", "blocks", "full"] = Field(
        "off",
        description="blocks: torch.compile translates the interaction blocks (a minute or more at the start); full: "
        "the whole model, for training batches that are filled up to at most 8 sizes (minutes for each size); direct "
        "forces only, the same numbers up to rounding",
    )
    log_every_steps: int = Field(10, ge=1)
    histograms_every_steps: int | None = Field(
        None, ge=1, description="hand the distributions of the averaged weights to the loggers; null: never"
    )
    loggers: LoggerSection = LoggerSection()
    start_from: StartSection | None = Field(None, description="null: random weights")
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

    @model_validator(mode="before")
    @classmethod
    def _fine_tuning_keeps_the_normalization(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("start_from") is not None:
            return {"normalization": "keep"} | values
        return values

    @property
    def files(self) -> list[tuple[str, Path]]:
        """Every path that a run with this configuration reads, each with the section that names it."""
        named = [("data", path) for path in self.data.files]
        named += [("normalization", path) for path in self.normalization.files]
        if self.scale_factors.file is not None:
            named.append(("scale_factors.file", self.scale_factors.file))
        if self.start_from is not None:
            named.append(("start_from.checkpoint", self.start_from.checkpoint))
        return [(section, Path(path)) for section, path in named]

    @field_validator("precision", mode="before")
    @classmethod
    def _fp16_is_refused(cls, value: object) -> object:
        if str(value).lower() in ("fp16", "float16", "16", "half", "amp"):
            raise ValueError(
                "float16 is refused: beyond 65,504 it overflows, as gradients here do (the authors of GemNet-XL found "
                "it unstable); use bf16, which has the range of float32"
            )
        return value

    def contradictions(self) -> Iterator[Contradiction]:
        """What the sections ask for can be done together."""
        yield from self._compiling()
        yield from self._without_forces()
        yield from self._sending()
        if self.normalization.keep and self.start_from is None:
            yield (
                ("normalization.keep", "start_from"),
                "normalization: keep needs start_from, whose normalisation it keeps",
            )
        if self.data.hide_elements > 0 and not self.model.shared_embedding:
            yield (
                ("data.hide_elements", "model.shared_embedding"),
                "data.hide_elements needs model.shared_embedding: true",
            )
        if self.optim.schedule.on_plateau is not None and not self.data.val:
            yield (
                ("optim.schedule.name", "optim.schedule.plateau", "data.val"),
                "optim.schedule.plateau needs a validation set (data.val)",
            )

    def _compiling(self) -> Iterator[Contradiction]:
        if self.compile == "off":
            return
        if self.model.forces == "gradient":
            yield (
                ("compile", "model.forces", "model.variant"),
                f"compile: {self.compile} does not work with model.forces: gradient, which need a second derivative "
                "that torch.compile does not have; use compile: off",
            )
        others = (
            ("activation_checkpointing", ": true", self.activation_checkpointing),
            ("parallel.zero_stage", ": 3", self.parallel.zero_stage == 3),
            ("parallel.graph", " above 1", self.parallel.graph > 1),
            ("parallel.overlap", ": true", self.parallel.overlap),
        )
        for key, value, is_on in others:
            if is_on:
                yield (
                    ("compile", key),
                    f"compile: {self.compile} does not work with {key}{value}; turn one of them off",
                )

    def _without_forces(self) -> Iterator[Contradiction]:
        forces = ("model.forces", "model.variant")
        if self.model.forces == "none" and self.loss.forces > 0:
            yield ("loss.forces", *forces), "loss.forces must be 0 for a model with forces: none"
        if self.model.forces == "none" and self.validation.metric == "forces_mae":
            yield (
                ("validation.metric", *forces),
                "validation.metric must be energy_mae for a model with forces: none",
            )
        if self.parallel.zero_stage == 3 and self.model.forces in ("gradient", "none"):
            yield (
                ("parallel.zero_stage", *forces),
                "parallel.zero_stage is 3, which works only with direct forces, but model.forces is "
                f"{self.model.forces}; use 0, 1 or 2",
            )

    def _sending(self) -> Iterator[Contradiction]:
        sending = (
            ("parallel.overlap", "true", self.parallel.overlap),
            ("parallel.zero_stage", "3", self.parallel.zero_stage == 3),
        )
        for key, value, sends_at_once in sending:
            if sends_at_once and self.faults.non_finite == "skip":
                yield (
                    ("faults.non_finite", key),
                    f"faults.non_finite: skip does not work with {key}: {value}, which has sent gradients before "
                    "all are known; change one of them",
                )
