"""How far sampling may run ahead of training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admission:
    """The bound on prompts under way: no rollout that is taken in order is ever older than `max_staleness` steps.

    Prompt number i is trained on at step i // prompts_per_step at the latest. It is admitted only if that step is at
    most `max_staleness` after the trainer's version now, which is the oldest version that will sample it.
    """

    prompts_per_step: int
    max_staleness: int
    max_running: int
    """Prompts under way at once."""

    def capacity(self, *, version: int, accepted: int, running: int) -> int:
        """How many prompts may be admitted now; not below 0.

        min(max_running - running, (max_staleness + version + 1) * prompts_per_step - (accepted + running))

        Args:
            version: of the trainer, counted from where the run started.
            accepted: groups that finished and count for a batch, those already trained on included.
            running: prompts under way.
        """
        ahead = (self.max_staleness + version + 1) * self.prompts_per_step - (accepted + running)
        return max(0, min(self.max_running - running, ahead))
