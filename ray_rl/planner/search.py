"""Searches the layouts of a run for the fastest ones that fit its GPUs.

The space: the layouts of `ray_rl.planner.layouts`, times the settings of each trained role (ZeRO 2 and 3 and the stage
that it has, with adapters also ZeRO 1; gradient checkpointing; micro-batches of 1 to 16 of the longest sequences and of
the size that they have; the optimizer's offload only if it is set or nothing fits without it) and of the reference
(whole or sharded). What is learnt does not depend on these, except for `rollout.max_staleness`, so that layouts with
and without it are searched separately. Adapters stay as they are.

The pruning: a layout with the fastest settings, whether they fit or not, and without the time of the publish, has a
time below every other time of that layout. Layouts are taken in the order of this bound. A family (what is shared, the
size of engines, the staleness) ends once its best time is below the next bound; the search ends once that holds for
as many families as are shown. In a layout each trained role in turn, the actor first, gets the fastest settings that
fit next to the smallest ones of those after it, and the reference is whole if there is room left. For PPO on 48 GPUs
there are about 700 bounds, and some seconds pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

from ray_rl.config import RunConfig
from ray_rl.config.gpus import sharers_of_engines
from ray_rl.config.roles import REFERENCE, Role, roles_of
from ray_rl.config.train import Trained
from ray_rl.planner.advice import Changes, changed, engine_fraction, only_new, planned, words_of
from ray_rl.planner.arithmetic import step_arithmetic
from ray_rl.planner.assess import Assessment, assess
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.layouts import Family, Layout, layouts
from ray_rl.planner.memory import Bounds
from ray_rl.planner.sharing import peak_of
from ray_rl.planner.throughput import Assumptions, Estimate, estimate, trained_s

SHOWN = 5
"""Most layouts that are returned of each kind: with `rollout.max_staleness=0`, and with more."""

ROWS = (1, 2, 4, 8, 16)
"""Longest sequences of a micro-batch."""


@dataclass(frozen=True, slots=True)
class Found:
    """A run on the given GPUs that fits."""

    changes: Changes
    """What it changes; nothing for the given run."""
    config: RunConfig
    assessment: Assessment
    times: Estimate

    @property
    def words(self) -> list[str]:
        """One word per change, quoted for a shell."""
        return words_of(self.changes)

    @property
    def rate(self) -> float:
        """Tokens per second and GPU of the cluster."""
        return self.times.tokens / self.times.step_s / self.assessment.cluster.gpus

    @property
    def busy(self) -> float:
        """Share of the GPU seconds of the whole cluster in which GPUs compute."""
        return self.times.busy * self.assessment.layout.gpus / self.assessment.cluster.gpus

    @property
    def fullest_bytes(self) -> float:
        """Bytes of the fullest GPU."""
        return max(peak_of(group.roles, self.assessment.memories) for group in self.assessment.layout.groups)


@dataclass(frozen=True, slots=True)
class Search:
    """What was found, the fastest first."""

    given: Found | None
    """The run as it was given; None if it does not fit."""
    on_policy: list[Found]
    """Runs that train on samples of the newest weights."""
    stale: list[Found]
    """Faster ones than those, which train on samples of older weights."""

    def times(self, found: Found) -> float | None:
        """Returns how many times as many steps per hour as the given run it has; None if that does not fit."""
        return None if self.given is None else self.given.times.step_s / found.times.step_s


def search(config: RunConfig, cluster: ClusterShape, assumed: Assumptions) -> Search:
    """Returns the fastest layouts that fit a cluster of GPUs of known speed, one of each family, and obey all rules."""
    given = _given(config, cluster, assumed)
    searching = _Searching(config, cluster, assumed)
    bounds = sorted(searching.bounds(), key=lambda bound: bound[0])
    on_policy = searching.fastest(bound for bound in bounds if bound[1].family.staleness == 0)
    at_most = on_policy[0].times.step_s if on_policy else float("inf")
    stale = searching.fastest(bound for bound in bounds if bound[1].family.staleness > 0 and bound[0] < at_most)
    return Search(given, on_policy, [found for found in stale if found.times.step_s < at_most])


def _given(config: RunConfig, cluster: ClusterShape, assumed: Assumptions) -> Found | None:
    assessment = planned(config, cluster, {})
    if assessment is None or not assessment.fits:
        return None
    return Found({}, config, assessment, estimate(config, assessment, assumed))


@dataclass(frozen=True, slots=True)
class _Searching:
    config: RunConfig
    cluster: ClusterShape
    assumed: Assumptions
    ordered: dict[tuple[str, int, bool, bool], list[Changes]] = field(default_factory=dict)
    """Settings of a role by its workers, whether they take turns and may be offloaded, the fastest first."""

    def bounds(self) -> Iterator[tuple[float, Layout]]:
        """Yields a time that no run of a layout goes below, and the layout."""
        for layout in layouts(self.config, self.cluster):
            config = changed(self.config, self._placed(layout))
            fastest: Changes = {}
            for role in roles_of(config):
                if role.trained is not None:
                    fastest |= self._settings(config, role)[0]
                elif role.name == REFERENCE:
                    fastest[f"{role.key}.zero_stage"] = 0
            config = changed(config, fastest)
            assessment = assess(config, self.cluster)
            has_room = assessment.cache is None or assessment.cache.sequences > 0
            if has_room and assessment.layout.nodes <= self.cluster.nodes:
                times = estimate(config, assessment, self.assumed)
                yield times.step_s - times.sync_s, layout

    def fastest(self, bounds: Iterable[tuple[float, Layout]]) -> list[Found]:
        """Returns the fastest runs, one of each family of layouts; the bounds ascend."""
        best: dict[Family, Found] = {}
        for bound, layout in bounds:
            leaders = sorted(found.times.step_s for found in best.values())[:SHOWN]
            if len(leaders) == SHOWN and leaders[-1] <= bound:
                break
            before = best.get(layout.family)
            if before is not None and before.times.step_s <= bound:
                continue
            found = self._fitted(layout)
            if found is not None and (before is None or found.times.step_s < before.times.step_s):
                best[layout.family] = found
        return sorted(best.values(), key=lambda found: found.times.step_s)[:SHOWN]

    def _placed(self, layout: Layout) -> Changes:
        """Returns the changes of a layout, with as much memory for engines as those they share GPUs with leave."""
        changes = layout.changes(self.config)
        if layout.family.takes_turns:
            room = engine_fraction(changed(self.config, changes), self.cluster)
            changes["rollout.gpu_memory_fraction"] = min(room, self.config.rollout.gpu_memory_fraction)
        return changes

    def _fitted(self, layout: Layout) -> Found | None:
        """Returns the fastest run of a layout that fits, or None."""
        placed = self._placed(layout)
        config = changed(self.config, placed)
        roles = [role for role in roles_of(config) if role.trained is not None]
        for is_offloaded in (False, True):
            small = placed | self._smallest(config, is_offloaded=is_offloaded)
            if self._fits(small):
                break
        else:
            return None
        for role in roles:
            options = self._settings(config, role, is_offloaded=is_offloaded)
            small |= next((option for option in options if self._fits(small | option)), {})
        for role in roles_of(config):
            whole = {f"{role.key}.zero_stage": 0}
            if role.name == REFERENCE and self._fits(small | whole):
                small |= whole
        changes = only_new(self.config, small)
        assessment = planned(self.config, self.cluster, changes)
        assert assessment is not None, "the same values were tried before"
        final = changed(self.config, changes)
        return Found(changes, final, assessment, estimate(final, assessment, self.assumed))

    def _fits(self, changes: Changes) -> bool:
        assessment = planned(self.config, self.cluster, changes)
        return assessment is not None and assessment.fits

    def _smallest(self, config: RunConfig, *, is_offloaded: bool) -> Changes:
        """Returns the settings that take the least memory."""
        changes: Changes = {}
        for role in roles_of(config):
            if role.trained is not None:
                smallest: Changes = {
                    f"{role.key}.gradient_checkpointing": True,
                    f"{role.key}.micro_batch_tokens": Bounds(config).micro_batch(0),
                    f"{role.key}.offload.optimizer": is_offloaded or role.trained.offload.optimizer,
                }
                stages = _stages(config, role.trained)
                options: list[Changes] = [smallest | {f"{role.key}.zero_stage": stage} for stage in stages]
                sizes = [self._size(config, option, role.name) for option in options]
                changes |= options[sizes.index(min(sizes))]
            elif role.name == REFERENCE:
                changes[f"{role.key}.zero_stage"] = 3
        return changes

    def _size(self, config: RunConfig, changes: Changes, name: str) -> float:
        """Returns the most memory of a worker of a role; infinite if a rule forbids the changes."""
        assessment = planned(config, self.cluster, changes)
        return float("inf") if assessment is None else assessment.memories[name].peak

    def _settings(self, config: RunConfig, role: Role, *, is_offloaded: bool = False) -> list[Changes]:
        """Returns the settings of a trained role on its GPUs, the fastest first."""
        key = (role.name, role.workers, role.name in sharers_of_engines(config), is_offloaded)
        if key not in self.ordered:
            assert role.trained is not None, "only trained roles have settings"
            timed = []
            for option in _options(config, role, role.trained, is_offloaded=is_offloaded):
                one = changed(config, option)
                itself = next(each for each in roles_of(one) if each.name == role.name)
                timed.append((trained_s(one, assess(one, self.cluster), self.assumed, itself), option))
            self.ordered[key] = [option for _, option in sorted(timed, key=lambda pair: pair[0])]
        return self.ordered[key]


def _stages(config: RunConfig, trained: Trained) -> list[int]:
    """Returns the stages of ZeRO that are tried: 1 for adapters, of which there is little to shard, and 3 if it may."""
    adapter = config.model.adapter
    more = {3} if adapter is None else {1} if adapter.quantise is not None else {1, 3}
    return sorted({trained.zero_stage, 2} | more)


def _options(config: RunConfig, role: Role, trained: Trained, *, is_offloaded: bool) -> Iterator[Changes]:
    """Yields the settings of a trained role; micro-batches are no larger than what a worker has to do."""
    whole, share = Bounds(config).micro_batch(0), step_arithmetic(config).shares[role.name].sequences
    most = share // Bounds(config).whole_rows
    tokens = {whole * rows for rows in ROWS if rows <= most} | {max(whole, trained.micro_batch_tokens)}
    stages = _stages(config, trained)
    offloads = {False, is_offloaded, trained.offload.optimizer}
    for stage, checkpointing, size, offload in product(stages, (False, True), sorted(tokens), sorted(offloads)):
        yield {
            f"{role.key}.zero_stage": stage,
            f"{role.key}.gradient_checkpointing": checkpointing,
            f"{role.key}.micro_batch_tokens": size,
            f"{role.key}.offload.optimizer": offload,
        }
