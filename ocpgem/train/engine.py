"""The DeepSpeed engine: the only place that imports deepspeed, with its traps guarded (docs/architecture.md)."""

import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ocpgem.models.potential import Potential, Predictions
from ocpgem.parallel import group
from ocpgem.parallel.graph import GraphGroup
from ocpgem.train.config import OptimSection
from ocpgem.train.engine_state import OptimizerState, gather, gather_weights, restore, restore_weights
from ocpgem.train.parallel_section import ParallelSection
from ocpgem.train.parameters import freeze, torch_groups

_DIVIDES_WEIGHTS = 3
"""The ZeRO stage in which no rank holds all weights, so that even a forward pass is a collective."""


@dataclass(frozen=True)
class EngineState:
    """What an engine continues from."""

    weights: dict[str, Tensor]
    optimizer: OptimizerState


class _GivenGradients(nn.Module):
    """What DeepSpeed wraps below ZeRO-3: a loss whose gradient is exactly the one it is given.

    Gradients are computed before DeepSpeed hears of the step, so that everything that may fail on one rank is over when
    ranks begin to exchange them; parameters always become ready in the same order, as ZeRO-2 needs; and forces may be
    gradients.
    """

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, parameters: list[Tensor], gradients: list[Tensor]) -> Tensor:
        pairs = zip(parameters, gradients, strict=True)
        return torch.stack([(parameter * gradient).sum() for parameter, gradient in pairs]).sum()


class Engine:
    """A potential under DeepSpeed: gradients summed over micro-batches and ranks, clipped, and stepped with AdamW.

    The process group must exist. The parameters of rank 0 are those of every rank afterwards.
    """

    def __init__(
        self,
        potential: Potential,
        optim: OptimSection,
        parallel: ParallelSection,
        device: torch.device,
        graph: GraphGroup | None = None,
    ) -> None:
        deepspeed = import_deepspeed()
        deepspeed.init_distributed(dist_init_required=False)
        potential.to(device)
        freeze(potential, optim)
        zero_stage = parallel.zero_stage
        self.sends_at_once = zero_stage == _DIVIDES_WEIGHTS or parallel.overlap
        """Whether gradients are exchanged while others are still computed."""
        groups, self._lr_factors = torch_groups(potential, optim)
        optimizer = torch.optim.AdamW(  # fused: weights and moments pass through memory once a step
            groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, amsgrad=optim.amsgrad, fused=True
        )
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=potential if self.sends_at_once else _GivenGradients(potential),
            optimizer=optimizer,
            config=_settings(optim, parallel, potential),
            dist_init_required=False,
        )
        self._optimizer = optimizer
        self._trained = [parameter for parameter in potential.parameters() if parameter.requires_grad]
        self._gradients: list[Tensor] | None = None
        self.potential = potential
        self.zero_stage = zero_stage
        self.graph = graph
        """The ranks that share a batch with this one."""
        self.local_first = not self.sends_at_once and graph is None
        """Whether nothing is exchanged between ranks before `step`."""
        self._bucket = parallel.reduce_bucket
        if zero_stage == 0:  # whose own exchange has a fixed size; `step` asks for ours
            self._engine.enable_backward_allreduce = False

    def forward(self, batch: Any, topology: Any) -> Predictions:
        """Predictions with a graph for `backward`."""
        return self._engine(batch, topology) if self.sends_at_once else self.potential(batch, topology)

    def backward(self, loss_share: Tensor, last: bool) -> None:
        """Add the gradient of this micro-batch's share of the loss; `last` marks the last micro-batch of the step.

        DeepSpeed averages over ranks; shares add up to the mean, hence the factor.
        """
        if not self.sends_at_once:
            self._add_gradient(loss_share)
            return
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss_share * group.world_size(), scale_wrt_gas=False)
        if not last:
            self._engine.step()  # DeepSpeed counts micro-batches here; parameters change only at the boundary

    def _add_gradient(self, loss_share: Tensor) -> None:
        found = torch.autograd.grad(loss_share, self._trained, allow_unused=True)
        if self._gradients is None:
            self._gradients = [
                torch.zeros_like(parameter) if gradient is None else gradient
                for parameter, gradient in zip(self._trained, found, strict=True)
            ]
        else:
            # Not in place: two parameters may have been given the same tensor.
            self._gradients = [
                total if gradient is None else total + gradient
                for total, gradient in zip(self._gradients, found, strict=True)
            ]

    def gradient_is_finite(self) -> bool:
        """Whether this rank's gradient is; where gradients are exchanged at once, `step` tells by the norm."""
        if self._gradients is None:
            return True
        return bool(torch.isfinite(torch.stack(torch._foreach_norm(self._gradients))).all())

    def discard(self) -> None:
        """Forget the gradients since the last step; nothing else has changed."""
        assert not self.sends_at_once, "gradients are exchanged at once"
        self._gradients = None

    def step(self, lr: float) -> float | None:
        """Update the parameters with learning rate `lr`; returns the norm of the gradient before clipping, if known."""
        for param_group, factor in zip(self._optimizer.param_groups, self._lr_factors, strict=True):
            param_group["lr"] = lr * factor
        if self._gradients is not None:
            gradients, self._gradients = self._gradients, None
            self._engine.set_gradient_accumulation_boundary(True)
            loss = self._engine(self._trained, gradients)
            self._engine.backward(loss * group.world_size(), scale_wrt_gas=False)
        if self.zero_stage == 0:
            self._engine.allreduce_gradients(bucket_size=self._bucket)
        alone = self._norm() if self.zero_stage == 0 else None  # of which DeepSpeed does not tell the norm
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if alone is None else alone
        return None if norm is None else float(norm)

    def _norm(self) -> float:
        """The norm of the averaged gradient before clipping, where every rank holds all of it."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))

    def state(self) -> EngineState:
        """Weights and optimiser state by parameter name, on the CPU of rank 0; every rank calls it."""
        weights = gather_weights(self.potential, self.zero_stage)
        return EngineState(weights, gather(self.potential, self._zero, self.zero_stage))

    def load_state(self, state: EngineState) -> None:
        """Continue from what `state` returned, on any number of ranks and in any ZeRO stage.

        Raises CheckpointError, on every rank, where it belongs to another model or one rank cannot take its part.
        """
        restore_weights(self.potential, self._zero, self.zero_stage, state.weights)
        group.on_all(lambda: restore(self.potential, self._zero, self.zero_stage, state.optimizer))


def _settings(optim: OptimSection, parallel: ParallelSection, potential: Potential) -> dict[str, Any]:
    """DeepSpeed's own configuration.

    Clipping left out would mean 1.0; accumulation is steered by hand; the reduction buffer, by default 2 GB, need not
    exceed the model.
    """
    bucket = min(parallel.reduce_bucket, sum(p.numel() for p in potential.parameters()))
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": parallel.zero_stage,
            "overlap_comm": parallel.overlap,
            "reduce_bucket_size": bucket,
        },
        "steps_per_print": 2**31,
    }


def import_deepspeed() -> Any:
    """Import deepspeed without its chatter and without the collective library it would compile on a CPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed still calls what torch 2.13 has renamed; users can do nothing about it.
    warnings.filterwarnings(
        "ignore", r".*(all_gather_into|reduce_scatter)_tensor. is deprecated", FutureWarning
    )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
