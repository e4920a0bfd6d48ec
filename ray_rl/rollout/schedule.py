"""Which prompts are sampled when, and which finished groups make the next batch."""

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
    """Prompts in flight at once. None: those of max_staleness + 1 steps."""
    order: Literal["admission", "completion"] = "admission"
    """admission: batches come in the order of the prompts, so that quick completions do not come first and a straggler
    is waited for. completion: as groups finish, and what has become older than max_staleness is dropped."""
    max_draws: int | None = None
    """Dynamic sampling: groups of equal rewards are refused, until so many times `prompts_per_step` prompts were drawn
    for a batch. None: every group counts."""
    in_waves: bool = False
    """Start prompts only when none is in flight, for deterministic runs."""


class Schedule:
    """Counts prompts from their admission to their batch. It knows no engine and no task: see `Collector`.

    Prompts are admitted as `Admission` allows: with `max_staleness: 0` those of one step, when it is taken; above,
    those of the next steps too, so that engines sample while the trainer trains.
    """

    def __init__(self, settings: ScheduleSettings) -> None:
        """Makes a schedule at the start of a run."""
        per_step, ahead = settings.prompts_per_step, settings.max_staleness
        self._settings = settings
        self._admission = Admission(per_step, ahead, settings.max_running or (ahead + 1) * per_step)
        self.version = 0
        """Of the trainer, which is the number of the batch that is taken."""
        self._admitted = 0
        self._accepted = 0
        self.in_flight: dict[int, Prompt] = {}
        """Prompts that are being sampled, and those that a restored schedule has yet to start."""
        self._waiting: list[Finished] = []
        self._refused: list[Finished] = []
        """Groups of equal rewards since the last batch, under dynamic sampling."""
        self._stale = 0
        """Groups dropped as too old since the last batch."""

    @property
    def prompts_per_step(self) -> int:
        """Groups of a batch."""
        return self._settings.prompts_per_step

    @property
    def in_waves(self) -> bool:
        """Whether prompts start only when none is in flight."""
        return self._settings.in_waves

    def room(self, *, running: int) -> int:
        """Returns how many prompts may start now.

        Args:
            running: prompts that are being sampled.
        """
        if self._settings.in_waves and running:
            return 0
        return self._admission.capacity(version=self.version, accepted=self._accepted, running=running)

    def admit(self, prompt: Prompt) -> int:
        """Returns the number of a prompt, which is in flight from now on."""
        number, self._admitted = self._admitted, self._admitted + 1
        self.in_flight[number] = prompt
        return number

    def place_of(self, number: int) -> tuple[int, int]:
        """Returns the step that a prompt is for at the latest, and its place in that step."""
        return divmod(number, self.prompts_per_step)

    def finish(self, finished: Finished) -> None:
        """Takes in a group that is complete and scored."""
        del self.in_flight[finished.number]
        if self._is_wanted(finished.group):
            self._accepted += 1
            self._waiting.append(finished)
        else:
            self._refused.append(finished)

    def ready(self) -> list[Finished]:
        """Returns the groups that may be taken now, in the order of their prompts; drops those that are too old."""
        if self._settings.order == "admission":
            self._waiting.sort(key=lambda each: each.number)
            first_open = min(self.in_flight, default=self._admitted)
            return [each for each in self._waiting if each.number < first_open]
        bound = self._settings.max_staleness
        fresh = [each for each in self._waiting if staleness([each.group], version=self.version) <= bound]
        dropped = len(self._waiting) - len(fresh)
        self._waiting = fresh
        self._stale += dropped
        self._accepted -= dropped
        return sorted(fresh[: self.prompts_per_step], key=lambda each: each.number)

    def take(self, batch: list[Finished], *, running: int) -> list[Metric]:
        """Hands out a batch of groups that are ready, and returns its metrics.

        Args:
            batch: the groups.
            running: prompts that are being sampled.
        """
        numbers = {each.number for each in batch}
        self._waiting = [each for each in self._waiting if each.number not in numbers]
        metrics = [metric for each in (*batch, *self._refused) for metric in each.metrics]
        if self._settings.max_draws is not None:
            drawn = len(batch) + len(self._refused)
            metrics.append(Mean("rollout/groups_dropped_fraction", len(self._refused), drawn))
        if self._settings.max_staleness > 0:
            metrics.append(Last("rollout/groups_ahead", len(self._waiting) + running))
            metrics.append(Last("rollout/groups_stale", self._stale))
        self._refused, self._stale = [], 0
        return metrics

    def position(self, source: Mapping[str, Any]) -> Collected:
        """Returns where it is now, with the position of the prompt source."""
        return Collected(
            source=source,
            admitted=self._admitted,
            accepted=self._accepted,
            under_way=tuple(self.in_flight.items()),
            waiting=tuple(self._waiting),
            refused=tuple(self._refused),
            stale=self._stale,
        )

    def restore(self, state: Collected) -> None:
        """Continues from a position of the same settings; before the first batch.

        The counts are of the whole run, as the trainer's version is, so that the bound on staleness still holds.
        """
        self._admitted, self._accepted, self._stale = state.admitted, state.accepted, state.stale
        self.in_flight = dict(state.under_way)
        self._waiting, self._refused = list(state.waiting), list(state.refused)

    def _is_wanted(self, group: RolloutGroup) -> bool:
        """Whether a group counts for a batch: under dynamic sampling, within the bound, not one of equal rewards."""
        most = self._settings.max_draws
        return most is None or is_informative(group) or len(self._refused) >= (most - 1) * self.prompts_per_step
