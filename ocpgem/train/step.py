"""One optimiser step, and what all ranks do together where one of them cannot do its part."""

import math
from typing import Any

import torch
from torch import Tensor

from ocpgem.data.loader import StepBatch
from ocpgem.errors import TrainingError
from ocpgem.graph.buckets import Buckets
from ocpgem.graph.topology import Topology
from ocpgem.parallel import group
from ocpgem.parallel.partition import partition
from ocpgem.train.faults import FaultFile, Report, Trouble, report_of
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.parts import RunParts


class StepRunner:
    """Does optimiser steps. No rank talks to another before all have said that their part is done.

    So a rank that fails leaves none waiting: all split the step (out of memory), all leave it out (a loss that is not
    finite, where `faults.non_finite` is skip), or all end with the same sentence.
    """

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts
        self._config = parts.config
        self._faults = FaultFile(parts.run.path)
        self._buckets = Buckets() if parts.config.compile == "full" else None
        self.skipped = 0
        """Steps left out so far, over the whole run."""

    def run(self, step_batch: StepBatch) -> tuple[Tensor, float | None] | None:
        """Take a step; returns this rank's share of the loss and the gradient norm, or None where it is left out.

        Raises TrainingError on every rank where one of them cannot go on.
        """
        parts, engine = self._parts, self._parts.engine
        parts.potential.train()
        n_parts = 1
        while True:
            total, report = self._compute(step_batch)
            worst = self._worst(report)
            if worst is Trouble.NONE:
                break
            engine.discard()
            reports = [each for each in group.all_gather_objects(report) if each.trouble is worst]
            if worst is Trouble.OUT_OF_MEMORY:
                n_parts *= 2
                step_batch = self._split(step_batch, n_parts, reports)
            elif worst is Trouble.NOT_FINITE:
                self._leave_out(step_batch, reports)
                return None
            else:
                self._give_up(step_batch, reports)
        norm = engine.step(parts.learning_rate(step_batch.step))
        if norm is not None and not math.isfinite(norm):  # the norm is that of all ranks, so all raise
            raise TrainingError(
                f"the gradient is not finite at step {step_batch.step + 1} although the loss is; "
                "lower optim.lr, then start again from the last checkpoint"
            )
        return total, norm

    def _compute(self, step_batch: StepBatch) -> tuple[Tensor, Report]:
        """This rank's share of loss and gradient, in silence (but under ZeRO-3, with overlap and in graph groups)."""
        parts = self._parts
        rank, doing = group.rank(), ""
        total = torch.zeros((), device=parts.device)
        n_real = len(step_batch.micro_batches) - step_batch.n_padding
        try:
            for index, (on_host, topology_on_host) in enumerate(step_batch.micro_batches):
                doing = _described(topology_on_host)
                # From pinned memory, so that the copy is queued while the device still computes.
                batch = on_host.to(parts.device, non_blocking=True)
                own = self._filled(partition(topology_on_host, parts.engine.graph))
                topology = own.to(parts.device, non_blocking=True)
                # Padding repeats a system only so that every rank runs as many micro-batches.
                share = self._share(step_batch, batch, topology) * float(index < n_real)
                if parts.engine.sends_at_once:
                    self._require_finite(step_batch, share)
                parts.engine.backward(share, last=index == len(step_batch.micro_batches) - 1)
                total = total + share.detach()
            if torch.isfinite(total) and parts.engine.gradient_is_finite():
                return total, Report(rank)
            what = "gradient" if torch.isfinite(total) else "loss"
            return total, Report(rank, Trouble.NOT_FINITE, what, self._culprits(step_batch))
        except Exception as error:
            if not parts.engine.local_first:
                raise
            report = report_of(rank, error, doing)
            report.divisible = step_batch.divisible
            return total, report

    def _filled(self, topology: Topology) -> Topology:
        """The topology, filled up to one of few sizes where a program is compiled for each."""
        if self._buckets is None:
            return topology
        filled = self._buckets.pad(topology)
        return filled.pin_memory() if self._parts.device.type == "cuda" else filled

    def _share(self, step_batch: StepBatch, batch: Any, topology: Topology) -> Tensor:
        parts, config = self._parts, self._config
        counts = GlobalCounts(step_batch.n_systems_global, step_batch.n_free_atoms_global)
        predictions = parts.engine.forward(batch, topology)
        progress = step_batch.step / config.steps
        share = loss_share(predictions, batch, config.loss, parts.potential.normalization, counts, progress)
        # Every rank of a graph group has the loss of the whole batch.
        return share if topology.part is None else share / topology.part.group.size

    def _worst(self, report: Report) -> Trouble:
        return Trouble(int(group.all_reduce_max(torch.tensor(int(report.trouble)))))

    def _require_finite(self, step_batch: StepBatch, share: Tensor) -> None:
        """Where ranks talk in the middle of a step, it can not be left out."""
        report = Report(group.rank())
        if not torch.isfinite(share):
            named = self._named(step_batch, set(step_batch.real_indices))
            report = Report(group.rank(), Trouble.NOT_FINITE, "loss", named)
        if self._worst(report) is Trouble.NOT_FINITE:
            reports = [each for each in group.all_gather_objects(report) if each.trouble]
            raise TrainingError(self._not_finite(step_batch, reports, "stop"))

    def _split(self, step_batch: StepBatch, n_parts: int, reports: list[Report]) -> StepBatch:
        """The same step in smaller micro-batches; raises where they cannot become smaller."""
        first = reports[0]
        where = f"step {step_batch.step + 1}: rank {first.rank} ran out of memory with {first.text}"
        if not all(report.divisible for report in reports):
            self._note(step_batch, "stop", reports)
            raise TrainingError(
                f"{where}; it cannot be split further, so start the same command again with "
                "activation_checkpointing=true or, on more ranks, with parallel.graph to go on from the last "
                "checkpoint, or use a smaller model"
            )
        self._note(step_batch, f"split into {n_parts} and done again", reports)
        self._say(
            f"{where}; all ranks split the step into {n_parts} times as many micro-batches and go on "
            "(set data.max_edges below that to avoid it)"
        )
        if self._parts.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._parts.loader.divided(step_batch, 2)

    def _leave_out(self, step_batch: StepBatch, reports: list[Report]) -> None:
        faults = self._config.faults
        may = faults.non_finite == "skip" and self.skipped < faults.max_skipped
        sentence = self._not_finite(step_batch, reports, "skipped" if may else "stop")
        if not may:
            limit = f" ({self.skipped} steps have been left out, the limit)" if self.skipped else ""
            raise TrainingError(sentence + limit)
        self.skipped += 1
        self._say(
            f"warning: {sentence}; the step is left out ({self.skipped} of at most {faults.max_skipped})"
        )

    def _not_finite(self, step_batch: StepBatch, reports: list[Report], done: str) -> str:
        """Keep the systems at fault in the file and say which they are."""
        where = self._note(step_batch, done, reports)
        records = [system["record"] for report in reports for system in report.systems]
        shown = ", ".join(records[:3]) + (f" and {len(records) - 3} more" if len(records) > 3 else "")
        ranks = ", ".join(str(report.rank) for report in reports)
        step = step_batch.step + 1
        sentence = f"the {reports[0].text} is not finite at step {step} on rank {ranks}: {shown} ({where})"
        if done == "stop":
            sentence += (
                "; check their labels or lower optim.lr, then start the same command again to go on from the last "
                "checkpoint, with faults.non_finite=skip to leave such steps out"
            )
            if self._parts.engine.sends_at_once:
                sentence += " (which needs parallel.overlap=false, and parallel.zero_stage below 3)"
        return sentence

    def _give_up(self, step_batch: StepBatch, reports: list[Report]) -> None:
        where = self._note(step_batch, "stop", reports)
        first = reports[0]
        if first.error is not None:
            raise first.error
        raise TrainingError(
            f"rank {first.rank} failed in step {step_batch.step + 1}: {first.text} ({where}); "
            "start the same command again to go on from the last checkpoint"
        )

    def _note(self, step_batch: StepBatch, done: str, reports: list[Report]) -> str:
        where = self._faults.add(step_batch.step + 1, done, reports) if group.is_main() else None
        return str(group.broadcast_object(where))

    def _say(self, text: str) -> None:
        self._parts.say(text)

    def _culprits(self, step_batch: StepBatch) -> list[dict[str, Any]]:
        """The systems whose own loss or gradient is not finite; all of them where none is it alone."""
        parts = self._parts
        found = []
        # Only whole batches can be looked through by one rank: the others may have found nothing.
        for index in step_batch.real_indices if parts.engine.graph is None else ():
            batch, topology = parts.loader.single(step_batch, index)
            share = self._share(step_batch, batch.to(parts.device), topology.to(parts.device))
            gradients = torch.autograd.grad(share, list(parts.potential.parameters()), allow_unused=True)
            values = [share, *(gradient for gradient in gradients if gradient is not None)]
            if not all(bool(torch.isfinite(value).all()) for value in values):
                found.append(index)
        return self._named(step_batch, set(found or step_batch.real_indices))

    def _named(self, step_batch: StepBatch, chosen: set[int]) -> list[dict[str, Any]]:
        """What to call the chosen records of a step."""
        origin = self._parts.loader.dataset.origin
        found = {}
        for indices, (batch, _) in zip(step_batch.indices, step_batch.micro_batches, strict=True):
            for index, sid, frame in zip(
                indices.tolist(), batch.sid.tolist(), batch.fid.tolist(), strict=True
            ):
                name = f"{origin(index)} (sid {sid}, frame {frame})"
                found[index] = {"index": index, "sid": sid, "frame": frame, "record": name}
        return [found[index] for index in sorted(chosen)]


def _described(topology: Topology) -> str:
    return (
        f"a micro-batch of {topology.n_systems} systems, {topology.n_atoms} atoms and "
        f"{topology.main.n_edges} edges"
    )
