"""Decides when prompts are sampled, and which finished groups form the next batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray_rl.metrics.metric import Last, Mean, Metric
from ray_rl.metrics.rollout_metrics import is_informative, staleness
from ray_rl.rollout.admission import Admission
from ray_rl.rollout.collected import Collected, Finished
from ray_rl.types import Prompt, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """Size and order of batches, and how far sampling may run ahead of training."""

    prompts_per_step: int
    max_staleness: int = 0
    max_running: int | None = None
    """The most prompts in flight. None: those of max_staleness + 1 steps."""
    order: Literal["admission", "completion"] = "admission"
    """admission: groups are taken in the order of their prompts. Batches wait for slow completions, and do not prefer
    quick ones. completion: groups are taken as they finish, and dropped once they are older than max_staleness."""
    max_draws: int | None = None
    """Dynamic sampling: groups with equal rewards are refused, until max_draws * prompts_per_step prompts were drawn
    for a batch. None: every group counts."""
    in_waves: bool = False
    """Whether prompts start only when none is in flight, as in deterministic runs."""


class Schedule:
    """Tracks prompts from their admission to their batch. `Collector` connects it with engines and tasks.

    `Admission` limits the prompts. With `max_staleness: 0`, those of a step are admitted when its batch is requested;
    with more, also those of the next steps, so that engines sample while the trainer trains.
    """

    def __init__(self, settings: ScheduleSettings) -> None:
        """Makes a schedule at the start of a run."""
        per_step, ahead = settings.prompts_per_step, settings.max_staleness
        self.settings = settings
        self._admission = Admission(per_step, ahead, settings.max_running or (ahead + 1) * per_step)
        self.version = 0
        """The version of the trainer, which is the number of the next batch."""
        self._admitted = 0
        self._accepted = 0
        self.in_flight: dict[int, Prompt] = {}
        """Prompts that are being sampled, and after `restore` those that must be started again, by their number."""
        self._waiting: list[Finished] = []
        self._refused: list[Finished] = []
        """Groups with equal rewards since the last batch, in dynamic sampling."""
        self._stale = 0
        """Number of groups since the last batch that were dropped because they were too old."""

    def room(self, *, running: int) -> int:
        """Returns how many prompts may start now.

        Args:
            running: number of prompts that are being sampled.
        """
        if self.settings.in_waves and running:
            return 0
        return self._admission.capacity(version=self.version, accepted=self._accepted, running=running)

    def admit(self, prompt: Prompt) -> int:
        """Marks a prompt as in flight, and returns its number."""
        number, self._admitted = self._admitted, self._admitted + 1
        self.in_flight[number] = prompt
        return number

    def place_of(self, number: int) -> tuple[int, int]:
        """Returns the last step in which a prompt can be trained on, and its index in that step."""
        return divmod(number, self.settings.prompts_per_step)

    def finish(self, finished: Finished) -> bool:
        """Adds a group that is complete and scored, and returns whether it counts for a batch."""
        del self.in_flight[finished.number]
        is_wanted = self._is_wanted(finished.group)
        if is_wanted:
            self._accepted += 1
            self._waiting.append(finished)
        else:
            self._refused.append(finished)
        return is_wanted

    def ready(self) -> list[Finished]:
        """Returns the groups that can be taken now, in the order of their prompts; drops those that are too old."""
        if self.settings.order == "admission":
            self._waiting.sort(key=lambda each: each.number)
            first_open = min(self.in_flight, default=self._admitted)
            return [each for each in self._waiting if each.number < first_open]
        bound = self.settings.max_staleness
        fresh = [each for each in self._waiting if staleness([each.group], version=self.version) <= bound]
        dropped = len(self._waiting) - len(fresh)
        self._waiting = fresh
        self._stale += dropped
        self._accepted -= dropped
        return sorted(fresh[: self.settings.prompts_per_step], key=lambda each: each.number)

    def take(self, batch: list[Finished], *, running: int) -> list[Metric]:
        """Removes a batch of ready groups from the schedule, and returns its metrics.

        Args:
            batch: the groups.
            running: number of prompts that are being sampled.
        """
        numbers = {each.number for each in batch}
        self._waiting = [each for each in self._waiting if each.number not in numbers]
        metrics = [metric for each in (*batch, *self._refused) for metric in each.metrics]
        if self.settings.max_draws is not None:
            drawn = len(batch) + len(self._refused)
            metrics.append(Mean("rollout/groups_dropped_fraction", len(self._refused), drawn))
        if self.settings.max_staleness > 0:
            metrics.append(Last("rollout/groups_ahead", len(self._waiting) + running))
            metrics.append(Last("rollout/groups_stale", self._stale))
        self._refused, self._stale = [], 0
        return metrics

    def position(self, source: Mapping[str, Any]) -> Collected:
        """Returns the current position; `source` is the position of the prompt source."""
        return Collected(
            source=source,
            admitted=self._admitted,
            accepted=self._accepted,
            in_flight=tuple(self.in_flight.items()),
            waiting=tuple(self._waiting),
            refused=tuple(self._refused),
            stale=self._stale,
        )

    def restore(self, state: Collected) -> None:
        """Continues from a position of a schedule with the same settings. Call it before the first batch.

        Counts include the whole run, like the trainer's version, so that the bound on staleness still holds.
        """
        self._admitted, self._accepted, self._stale = state.admitted, state.accepted, state.stale
        self.in_flight = dict(state.in_flight)
        self._waiting, self._refused = list(state.waiting), list(state.refused)

    def _is_wanted(self, group: RolloutGroup) -> bool:
        """Returns whether a group counts for a batch. Dynamic sampling refuses equal rewards until `max_draws`."""
        most = self.settings.max_draws
        return (
            most is None or is_informative(group) or len(self._refused) >= (most - 1) * self.settings.prompts_per_step
        )
