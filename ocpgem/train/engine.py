"""The DeepSpeed engine: the only place that imports deepspeed, with its traps guarded (docs/architecture.md)."""

import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocpgem.models.potential import Potential, Predictions
from ocpgem.parallel import group
from ocpgem.train.config import OptimSection
from ocpgem.train.engine_state import OptimizerState, gather, gather_weights, restore, restore_weights


@dataclass(frozen=True)
class EngineState:
    """What an engine continues from."""

    weights: dict[str, Tensor]
    optimizer: OptimizerState


class Engine:
    """A potential under DeepSpeed: gradients summed over micro-batches and ranks, clipped, and stepped with AdamW.

    The process group must exist. The parameters of rank 0 are those of every rank afterwards.
    """

    def __init__(
        self, potential: Potential, optim: OptimSection, zero_stage: int, device: torch.device
    ) -> None:
        deepspeed = _import_deepspeed()
        potential.to(device)
        optimizer = torch.optim.AdamW(
            potential.parameters(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            amsgrad=optim.amsgrad,
        )
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=potential,
            optimizer=optimizer,
            config=_settings(optim, zero_stage, potential),
            dist_init_required=False,
        )
        self._optimizer = optimizer
        self.potential = potential
        self.zero_stage = zero_stage

    def forward(self, batch: Any, topology: Any) -> Predictions:
        """Predictions with a graph for `backward`."""
        return self._engine(batch, topology)

    def backward(self, loss_share: Tensor, last: bool) -> None:
        """Add the gradient of this micro-batch's share of the loss; `last` marks the last micro-batch of the step.

        DeepSpeed averages over ranks; shares add up to the mean, hence the factor.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss_share * group.world_size(), scale_wrt_gas=False)
        if not last:
            self._engine.step()  # DeepSpeed counts micro-batches here; parameters change only at the boundary

    def step(self, lr: float) -> float | None:
        """Update the parameters with learning rate `lr`; returns the norm of the gradient before clipping, if known."""
        for param_group in self._optimizer.param_groups:
            param_group["lr"] = lr
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def state(self) -> EngineState:
        """Weights and optimiser state by parameter name, on the CPU of rank 0; every rank calls it."""
        weights = gather_weights(self.potential, self.zero_stage)
        return EngineState(weights, gather(self.potential, self._zero, self.zero_stage))

    def load_state(self, state: EngineState) -> None:
        """Continue from what `state` returned, on any number of ranks and in any ZeRO stage.

        Raises CheckpointError where it belongs to another model.
        """
        restore_weights(self.potential, self._zero, self.zero_stage, state.weights)
        restore(self.potential, self._zero, self.zero_stage, state.optimizer)


def _settings(optim: OptimSection, zero_stage: int, potential: Potential) -> dict[str, Any]:
    """DeepSpeed's own configuration.

    Clipping left out would mean 1.0; accumulation is steered by hand; the reduction buffer, by default 2 GB, need not
    exceed the model.
    """
    bucket = min(500_000_000, sum(p.numel() for p in potential.parameters()))
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": False, "reduce_bucket_size": bucket},
        "steps_per_print": 2**31,
    }


def _import_deepspeed() -> Any:
    """Import deepspeed without its chatter and without the collective library it would compile on a CPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed still calls what torch 2.13 has renamed; users can do nothing about it.
    warnings.filterwarnings("ignore", r".*all_gather_into_tensor. is deprecated", FutureWarning)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False)
    return deepspeed
