"""Finds what waits for what, and changes that make a step faster. Every change was planned and fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ray_rl.config import RunConfig
from ray_rl.config.gpus import role_groups, sharers_of_engines
from ray_rl.config.roles import ACTOR, CRITIC, REFERENCE, ROLLOUT, roles_of
from ray_rl.planner.advice import Changes, changed, planned, take_turns, words_of
from ray_rl.planner.assess import Assessment
from ray_rl.planner.throughput import Assumptions, Estimate, estimate

AT_LEAST = 1.05
"""Smaller gains are not proposed."""

SHOWN = 3
"""Most changes that are proposed."""


@dataclass(frozen=True, slots=True)
class Wait:
    """GPUs that do nothing for a part of the step."""

    roles: tuple[str, ...]
    gpus: int
    share: float
    """Part of the step."""
    phase: str
    """The longest work of others in that time."""

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}"
        return f"{'+'.join(self.roles)} ({gpus}) waits {self.share:.0%} of the step, for the {self.phase}"


@dataclass(frozen=True, slots=True)
class Faster:
    """Changes, and how many times as many steps per hour they give."""

    changes: Changes
    times: float

    @property
    def words(self) -> list[str]:
        """One word per change, quoted for a shell."""
        return words_of(self.changes)


def waits(assessment: Assessment, times: Estimate) -> list[Wait]:
    """Returns the groups that wait, those that waste the most GPU seconds first."""
    work = {"rollouts": times.rollout_s, "scores": times.score_s, "update": times.update_s}
    own = {"rollouts": {ROLLOUT}, "scores": {ACTOR, CRITIC, REFERENCE}, "update": {ACTOR, CRITIC}}
    found = []
    for group in assessment.layout.groups:
        share = 1 - times.busy_s[group.roles] / times.step_s
        others = {phase: seconds for phase, seconds in work.items() if not own[phase] & set(group.roles)}
        phase = max(others or work, key=lambda name: work[name])
        found.append(Wait(group.roles, group.bundles * group.gpus, share, phase))
    return sorted((wait for wait in found if wait.share > 0.05), key=lambda wait: -wait.gpus * wait.share)


def faster(config: RunConfig, assessment: Assessment, times: Estimate, assumed: Assumptions) -> list[Faster]:
    """Returns the changes that save the most time on the same GPUs."""
    found = []
    for changes in _candidates(config, assessment):
        better = planned(config, assessment.cluster, changes)
        if better is not None and better.fits and better.layout.gpus <= assessment.cluster.gpus:
            gain = times.step_s / estimate(changed(config, changes), better, assumed).step_s
            found.append(Faster(changes, gain))
    gaining = sorted((each for each in found if each.times >= AT_LEAST), key=lambda each: -each.times)
    return gaining[:SHOWN]


def _candidates(config: RunConfig, assessment: Assessment) -> Iterator[Changes]:
    for role in roles_of(config):
        if role.trained is not None and role.trained.gradient_checkpointing:
            yield {f"{role.key}.gradient_checkpointing": False}
        if role.trained is not None:
            yield {f"{role.key}.micro_batch_tokens": 4 * role.trained.micro_batch_tokens}
    if config.is_offline or sharers_of_engines(config):
        return
    if config.rollout.max_staleness == 0:
        yield {"rollout.max_staleness": 1}
    yield from _joined(config)
    together = take_turns(config, assessment.cluster)
    if together is not None:
        yield together.changes


def _joined(config: RunConfig) -> Iterator[Changes]:
    """Yields changes that give the GPUs of a reference alone to the actor, which shares them with it."""
    groups = role_groups(config)
    if (REFERENCE,) in groups and (ACTOR,) in groups:
        by_name = {role.name: role for role in roles_of(config)}
        workers = by_name[ACTOR].workers + by_name[REFERENCE].workers
        colocate = [*config.cluster.colocate, [ACTOR, REFERENCE]]
        yield {"cluster.colocate": colocate, "train.workers": workers, "reference.workers": workers}
