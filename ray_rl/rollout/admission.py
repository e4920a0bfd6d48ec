"""Limits how far sampling may run ahead of training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admission:
    """The bound on prompts in flight. Rollouts that are taken in order are never older than `max_staleness` steps.

    Prompt number i is trained on at step i // prompts_per_step at the latest. It is admitted only if that step is at
    most `max_staleness` steps after the current version of the trainer, the oldest version that will sample it.
    """

    prompts_per_step: int
    max_staleness: int
    max_running: int
    """The largest number of prompts in flight."""

    def capacity(self, *, version: int, accepted: int, running: int) -> int:
        """Returns how many prompts may be admitted now; at least 0.

        min(max_running - running, (max_staleness + version + 1) * prompts_per_step - (accepted + running))

        Args:
            version: the trainer's version, counted from the start of the run.
            accepted: groups that finished and count for a batch, including those already trained on.
            running: prompts in flight.
        """
        ahead = (self.max_staleness + version + 1) * self.prompts_per_step - (accepted + running)
        return max(0, min(self.max_running - running, ahead))
