"""The summary at the end of a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray_rl.errors import Preempted
from ray_rl.metrics.phases import EVALUATE
from ray_rl.metrics.text import duration

EDGE_STEPS = 5
"""Most first and last steps whose means are compared. It is a quarter of all at most, so that the middle is in none."""


@dataclass(slots=True)
class Summary:
    """Sums over the steps so far."""

    planned: int
    """Steps in the configuration."""
    before: int = 0
    """Steps that the run had trained before it was resumed, or went back to a checkpoint."""
    resumed_at: int = 0
    """The step after which this process began; what it shows has only later steps."""
    steps: int = 0
    step_s: float = 0.0
    tokens: float = 0.0
    compared: Mapping[str, str] = field(default_factory=dict)
    """Keys of the values whose first and last ones are compared, by label."""
    seen: dict[str, list[float]] = field(default_factory=dict)
    """These values of each step that had them, by label."""
    phases_s: dict[str, float] = field(default_factory=dict)

    def add(self, values: Mapping[str, float], *, tokens: int) -> None:
        """Counts one step, by the keys of `metrics.jsonl`, and the tokens of its examples."""
        self.steps += 1
        self.step_s += values["time/step_s"]
        self.tokens += tokens
        for label, name in self.compared.items():
            if name in values:
                self.seen.setdefault(label, []).append(values[name])
        for key, value in values.items():
            if key.startswith("time/") and key != "time/step_s":
                phase = key.removeprefix("time/").removesuffix("_s")
                self.phases_s[phase] = self.phases_s.get(phase, 0.0) + value

    def title(self, *, total_s: float, failed: BaseException | None) -> str:
        """Returns one line that says how the run ended."""
        done = self.before + self.steps
        if isinstance(failed, Preempted):
            how = str(failed).partition(";")[0]
            return f"{how[0].upper()}{how[1:]}, in {duration(total_s)}"
        if failed is not None:
            what = "Interrupted" if isinstance(failed, KeyboardInterrupt) else f"Failed with {type(failed).__name__}"
            where = f"in step {done + 1} of {self.planned}" if done < self.planned else "after the last step"
            return f"{what} {where}, after {duration(total_s)}"
        return f"Done: {done} of {self.planned} steps in {duration(total_s)}"

    def rows(self, *, folder: str) -> list[tuple[str, str]]:
        """Returns label and text of each line: what the run did, and where its files are."""
        since = f", since step {self.resumed_at + 1}" if self.resumed_at else ""
        rows = [(label, _ends(self.seen[label], since)) for label in self.compared if label in self.seen]
        if self.steps:
            rows.append(("speed", self._speed()))
            rows.append(("time", self._shares()))
        rows.append(("run folder", folder))
        return rows

    def _speed(self) -> str:
        evaluating_s = self.phases_s.get(EVALUATE, 0.0)
        training_s = self.step_s - evaluating_s
        rate = f", {self.tokens / training_s:,.0f} tokens/s" if training_s > 0 else ""
        return f"{training_s / self.steps:.1f} s a step{rate}{', without evaluations' if evaluating_s else ''}"

    def _shares(self) -> str:
        total = self.step_s or 1.0
        shares = sorted(self.phases_s.items(), key=lambda item: -item[1])
        other = max(0.0, self.step_s - sum(self.phases_s.values()))
        return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in [*shares, ("other", other)])


def edges(values: Sequence[float]) -> tuple[float, float, int]:
    """Returns the means of the first and of the last values of all steps, and of how many values each is the mean."""
    count = min(EDGE_STEPS, max(1, len(values) // 4))
    return statistics.fmean(values[:count]), statistics.fmean(values[-count:]), count


def _ends(values: Sequence[float], since: str) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    first, last, count = edges(values)
    ends = f"mean of the first {count} and the last {count} steps" if count > 1 else "first and last step"
    return f"{first:.3f} -> {last:.3f} ({ends}{since})"
