"""From a configuration to a finished run: opens the data, builds the model, fits what is to be fitted, trains."""

import json
import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress

from ocpgem.checkpoint import load_potential
from ocpgem.data.cost import SYSTEMS, Batching, Budget, fit_edge_cost
from ocpgem.data.dataset import Dataset
from ocpgem.data.loader import Recipe, TrainLoader, WorkerSettings
from ocpgem.errors import OcpgemError, TrainingError
from ocpgem.evaluate.predict import Effort
from ocpgem.files import write_text
from ocpgem.models.potential import Normalization, Potential, n_parameters
from ocpgem.parallel import group
from ocpgem.parallel.device import choose_device, set_up_device
from ocpgem.parallel.graph import graph_group
from ocpgem.parallel.signals import StopRequest
from ocpgem.parallel.watchdog import Watchdog, is_lost_peer
from ocpgem.train.batching import (
    eval_batching,
    prepare_costs,
    require_work_for_all,
    train_batching,
    unbalanced,
)
from ocpgem.train.callbacks import Callback
from ocpgem.train.checkpoint_files import Retention
from ocpgem.train.compiling import compile_blocks, compile_full
from ocpgem.train.config import CheckpointSection, TrainConfig
from ocpgem.train.datasets import describe_sets
from ocpgem.train.ema import moving_average
from ocpgem.train.ending import ADVICE
from ocpgem.train.engine import Engine
from ocpgem.train.examine import examine
from ocpgem.train.loggers import loggers_of
from ocpgem.train.loop import TrainingLoop
from ocpgem.train.parts import RunParts, TrainSummary
from ocpgem.train.random_state import seed_all
from ocpgem.train.run_directory import RunDirectory
from ocpgem.train.scale_file import apply_factors, origin_of, read_scale_factors
from ocpgem.train.scale_fitting import FittedScale, fit_scale_factors
from ocpgem.train.schedule import Plateau
from ocpgem.train.start import start_factors, start_weights
from ocpgem.train.state import Checkpoints
from ocpgem.train.targets import (
    describe_targets,
    element_pairs_of,
    elements_of,
    fit_targets,
    require_references,
)
from ocpgem.train.terminal import make_console
from ocpgem.train.unusable import leave_out_unusable, usable_training_set

log = logging.getLogger("ocpgem")
_FITTING_BATCH = 16


def train(
    config: TrainConfig, run_path: Path, stop: StopRequest | None = None, callbacks: Sequence[Callback] = ()
) -> TrainSummary:
    """Train in `run_path`, going on from its latest checkpoint if it has one. Every rank calls it.

    Raises RequestError or ConfigError before anything is computed for a request that cannot work.

    stop: receives the signals that end the run early; made here where the caller has none.
    callbacks: told what happens, on rank 0, beside the loggers that the configuration asks for.
    """
    if stop is None:
        stop = StopRequest()
        with stop.listening():
            return train(config, run_path, stop, callbacks)
    device = set_up_device(spare_memory=config.activation_checkpointing)
    # The watchdog, which knows more, must be the first to lose patience.
    group.init_from_environment(device, timedelta(seconds=2 * config.faults.hang_seconds + 60))
    try:
        loop = _prepared(config, run_path, stop, device, callbacks)
    except (RuntimeError, dist.DistError) as error:
        if not is_lost_peer(error):
            raise
        raise TrainingError("another rank ended before the first step; its own message says why") from error
    return loop.run()


def _prepared(
    config: TrainConfig,
    run_path: Path,
    stop: StopRequest,
    device: torch.device,
    callbacks: Sequence[Callback],
) -> TrainingLoop:
    console = make_console()
    seed_all(config.seed)
    run = RunDirectory(run_path)
    examined = examine(config, group.world_size(), run.has_begun)
    data = examined.require()
    set_precision(config, device)
    checkpoints = Checkpoints(run.checkpoints, _retention(config.checkpoint))
    found = _prepare_on_main(run, config, device, checkpoints, console)
    for note in examined.notes:
        _say(console, f"note: {note}")
    with run.discarded_on_failure():
        data = leave_out_unusable(config, data, run.path, partial(_say, console))
        parts = _assemble(config, run, data.training_set, data.val, device, console, stop, found is not None)
    parts.callbacks = [*loggers_of(config.loggers), *callbacks]
    return TrainingLoop(parts, checkpoints, found)


def set_precision(config: TrainConfig, device: torch.device) -> None:
    """Let a GPU multiply in TF32 if the configuration allows it; nothing else knows TF32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.precision == "high" else "highest")


def _assemble(
    config: TrainConfig,
    run: RunDirectory,
    train_set: Dataset,
    val_sets: dict[str, Dataset],
    device: torch.device,
    console: Console,
    stop: StopRequest,
    resumed: bool,
) -> RunParts:
    """Everything the loop works with."""
    potential = prepare_potential(config, train_set, run, console, resumed)
    group.on_main(lambda: require_references(potential.normalization, val_sets))
    console.print(
        f"{config.model.variant} with {n_parameters(potential):,} parameters, {len(train_set):,} training systems, "
        f"{group.world_size()} rank(s) on {device.type}; run directory {run.path}",
        highlight=False,
        soft_wrap=True,
    )
    for line in describe_sets(config.data, train_set, config.seed):
        console.print(line, highlight=False, soft_wrap=True)
    settings = WorkerSettings(
        config.data.workers, pin_memory=device.type == "cuda", start=config.data.worker_start
    )
    recipe = Recipe(
        train_set,
        potential.graph_spec,
        config.model.n_elements,
        config.data.hide_elements,
        potential.normalization.elements,
        labels=("energy", "forces") if config.loss.forces > 0 else ("energy",),
    )
    costs = prepare_costs(run, potential, recipe, config.data)
    batching = train_batching(config.data, costs)
    graph = graph_group(config.parallel.graph)
    # The ranks of a graph group load the same systems.
    number, n_groups = group.rank() // config.parallel.graph, group.world_size() // config.parallel.graph
    loader = TrainLoader(recipe, batching, config.seed, number, n_groups, settings)
    require_work_for_all(config.data, batching, train_set, n_groups)
    if group.is_main() and (remark := unbalanced(batching, train_set, n_groups)):
        _say(console, remark)
    if config.compile == "blocks":
        compile_blocks(potential, device)
    elif config.compile == "full":
        compile_full(potential, device)
    engine = Engine(potential, config.optim, config.parallel, device, graph)
    return RunParts(
        config=config,
        potential=potential,
        engine=engine,
        ema=moving_average(potential, config.optim.ema_decay, config.parallel.zero_stage),
        loader=loader,
        val_sets=val_sets,
        effort=Effort(eval_batching(config.data, costs), settings=settings, progress=False),
        run=run,
        console=console,
        device=device,
        stop=stop,
        watchdog=Watchdog(config.faults.hang_seconds, run.path, ADVICE),
        plateau=Plateau(config.optim.schedule.on_plateau),
    )


def prepare_potential(
    config: TrainConfig, train_set: Dataset, run: RunDirectory, console: Console, resumed: bool
) -> Potential:
    """The model of a run before its first step, normalisation and scale factors fitted; the same on every rank.

    resumed: whether a checkpoint is read into it later, so that the weights of `start_from` are not needed.

    Fitted values are kept in `preparation.json` of the run directory, so that they are fitted once.
    """
    file = run.path / "preparation.json"
    # Only rank 0 looks: the others could see the file before or after it is written.
    values = group.on_main(lambda: json.loads(file.read_text()) if file.is_file() else None)
    if values is None:
        normalization = _fit_targets(config, train_set, console)
        values = group.on_main(lambda: _fit(config, train_set, normalization, console))
    group.on_main(lambda: write_text(file, json.dumps(values, indent=2) + "\n"))
    torch.manual_seed(config.seed)
    potential = Potential(config.model, Normalization.model_validate(values["normalization"]))
    if config.model.shared_embedding:
        potential.model.atom_embedding.start_from_shared(values["elements"])
    if potential.model.element_pairs is not None:
        potential.model.element_pairs.set_known(values["element_pairs"])
    if config.start_from is not None and not resumed:
        for line in start_weights(potential, config.start_from):
            _say(console, line)
    apply_factors(potential, values["scale_factors"], str(file))
    potential.train_in_bf16 = config.precision == "bf16"
    potential.model.checkpoint_activations = config.activation_checkpointing
    return potential


def _fit_targets(config: TrainConfig, train_set: Dataset, console: Console) -> Normalization:
    """The normalisation of a new run; every rank reads its part of the records that it is fitted to."""
    if config.normalization.keep and config.start_from is not None:
        kept = load_potential(Path(config.start_from.checkpoint)).normalization
        _say(console, f"normalisation of {config.start_from.checkpoint} kept: {describe_targets(kept)}")
        return kept
    targets = fit_targets(
        config.normalization, train_set, config.loss.forces > 0, "fitting the normalisation"
    )
    for remark in targets.remarks:
        _say(console, remark)
    if targets.moments is not None:
        _say(console, f"normalisation fitted: {describe_targets(targets.normalization)}")
    return targets.normalization


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
    log.info(text)


def _fit(
    config: TrainConfig, train_set: Dataset, normalization: Normalization, console: Console
) -> dict[str, Any]:
    """What is fitted on rank 0 alone."""
    potential = Potential(config.model, normalization)
    if config.scale_factors.file is not None:
        factors, remarks = read_scale_factors(Path(config.scale_factors.file), config.model)
        for remark in remarks:
            _say(console, remark)
        apply_factors(potential, factors, origin_of(Path(config.scale_factors.file)))
    elif config.start_from is not None:
        factors = start_factors(potential, config.start_from)
    else:
        fitted = fit_scales(config, train_set, potential, console)
        factors = {scale.name: scale.factor for scale in fitted}
    values: dict[str, Any] = {"normalization": normalization.model_dump(), "scale_factors": factors}
    if config.model.shared_embedding:
        values["elements"] = elements_of(train_set)
    if config.model.unseen_pairs == "damp":
        values["element_pairs"] = element_pairs_of(train_set)
    return values


def fit_scales_of(config: TrainConfig, console: Console) -> list[FittedScale]:
    """Fit the scale factors of a configuration's model, without a run."""
    train_set = usable_training_set(config, partial(_say, console))
    torch.manual_seed(config.seed)
    return fit_scales(config, train_set, Potential(config.model, Normalization()), console)


def run_path(config_file: Path) -> Path:
    """Where a run goes that names no directory."""
    return Path("runs") / config_file.stem


def fit_scales(
    config: TrainConfig, train_set: Dataset, potential: Potential, console: Console
) -> list[FittedScale]:
    """Fit the scale factors of `potential` on the first batches of the training order."""
    device = choose_device()
    recipe = Recipe(train_set, potential.graph_spec, config.model.n_elements, labels=())
    size, max_edges = config.data.batch_size, config.data.max_edges
    batching = Batching(
        Budget(SYSTEMS, min(size, _FITTING_BATCH) if isinstance(size, int) else _FITTING_BATCH),
        None if max_edges is None else Budget(fit_edge_cost(train_set, potential.graph_spec), max_edges),
    )
    batches = []
    for step in islice(TrainLoader(recipe, batching, config.seed).steps(), config.scale_factors.batches):
        batches += [(batch.to(device), topology.to(device)) for batch, topology in step.micro_batches]
        if step.epoch >= 1:
            break
    potential.to(device)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("fitting scale factors", total=None)

        def show(scale: FittedScale, number: int, total: int) -> None:
            bar.update(task, completed=number, total=total)

        fitted = fit_scale_factors(potential, batches, show)
    console.print(f"{len(fitted)} scale factors fitted on {len(batches)} batches", highlight=False)
    return fitted


def _retention(section: CheckpointSection) -> Retention:
    return Retention(section.keep, section.keep_every_steps, section.keep_hours, section.keep_best)


def _prepare_on_main(
    run: RunDirectory,
    config: TrainConfig,
    device: torch.device,
    checkpoints: Checkpoints,
    console: Console,
) -> Path | None:
    """Look for a checkpoint before anything is changed, then prepare the folder. Returns what to resume from."""
    error: OcpgemError | None = None
    found: Path | None = None
    complaints: list[str] = []
    if group.is_main():
        try:
            found, complaints = checkpoints.find()
            run.prepare(config, {"ranks": group.world_size(), "device": device.type})
            found = checkpoints.take(found)
            run.open_log()
            for sentence in complaints:
                log.warning("%s", sentence)
                console.print(f"warning: {sentence}", highlight=False, soft_wrap=True)
        except OcpgemError as caught:
            error = caught
    group.raise_together(error)
    return group.broadcast_object(found)
