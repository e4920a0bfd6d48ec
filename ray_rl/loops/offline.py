"""Training on given examples: supervised fine-tuning, reward models, and preferences.

What happens in a step, from top to bottom:

    examples                  the next ones of the epoch, packed
        |
        v
    reference                 its log-probabilities: stored before the first step, or live
        |
        v
    baseline                  KTO alone: policy and reference on mismatched prompts and answers
        |
        v
      actor                   update
        |
        v
    evaluation                where it is due: the loss on held-out examples, without a gradient
        |
        v
    checkpoint                where it is due, and of the best step so far

A request to stop is handled between steps. The files of a checkpoint are written in the background of later steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ray_rl.loops.evaluating import evaluate
from ray_rl.loops.finite import require_finite_reference, without_loss_tokens
from ray_rl.loops.guard import NONFINITE
from ray_rl.loops.session import OfflineSession
from ray_rl.metrics.metric import values_of_each
from ray_rl.metrics.sinks import ExampleRecords
from ray_rl.types import Example, OfflineBatch


async def train(s: OfflineSession) -> None:
    """Trains up to step `run.steps`, or until evaluations stop improving, then exports the model.

    Raises:
        Preempted: someone asked the run to stop, and everything is saved.
    """
    with s.run.phase("start"):
        if s.reference is not None:
            await s.reference.prepare(s.run)  # before the restore: the actor still has its first weights
        await s.checkpoints.restore()
    s.stop.finish_steps(s.run.tell)
    async with s.in_background():
        s.end_if_stalled()
        while s.run.step < s.run.steps:
            if s.stop.is_asked:
                raise await s.preempted()
            await step(s)
            s.end_if_stalled()
            await s.checkpoints.save_if_due(s.run)
    await s.export()


async def step(s: OfflineSession) -> None:
    """Trains on one batch of examples, and evaluates where that is due."""
    examples = s.examples.take()
    batch, records = s.pack(examples), ExampleRecords(examples)
    try:
        if s.reference is not None:
            with s.run.phase("reference"):
                batch = await with_reference(s, examples, batch)
    except NONFINITE as error:
        s.guard.skip(error, records)
        batch = without_loss_tokens(batch)
    with s.run.phase("train"), s.guard.saving(records):
        trained = await s.actor.update(batch)
    guarded = s.guard.counted(trained, records)
    evaluated = await evaluate(s) if s.evaluation.is_due(s.run.step + 1, last=s.run.steps) else []
    s.run.advance()
    records = replace(records, values=values_of_each(trained))
    s.run.log([*s.examples.metrics(), *trained, *guarded, *evaluated], records)


async def with_reference(s: OfflineSession, examples: Sequence[Example], batch: OfflineBatch) -> OfflineBatch:
    """Adds the reference's log-probabilities to a batch, and KTO's baseline, which is of the whole batch.

    Raises:
        TrainingError: one of them is not finite.
    """
    if s.reference is None:
        return batch
    batch = replace(batch, reference_R=await s.reference.sums(examples, batch))
    if s.baseline is not None:
        batch = replace(batch, baseline=await s.baseline.of(examples))
    require_finite_reference(batch)
    return batch
