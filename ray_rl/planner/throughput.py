"""Estimates the time of a step: what each role takes, what runs at the same time, and who waits for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ray_rl.config import RunConfig
from ray_rl.config.gpus import scores_as_finished, sharers_of_engines
from ray_rl.config.rewards import ModelReward
from ray_rl.config.roles import ACTOR, REWARD, ROLLOUT, Role, base_reference, roles_of
from ray_rl.config.train import CriticConfig, ReferenceConfig, TrainConfig
from ray_rl.planner.adapters import NF4_BYTES, TrainedModel
from ray_rl.planner.arithmetic import step_arithmetic
from ray_rl.planner.assess import Assessment, known_shape
from ray_rl.planner.compute import Load, Team, scoring_s, training_s
from ray_rl.planner.lengths import Lengths
from ray_rl.planner.memory import Bounds
from ray_rl.planner.rates import Rates
from ray_rl.planner.sampling import Sampling, publish_s, sampling, sync_bytes

KERNELS_OF_LAYER = 25
"""Kernels of a decoder layer of transformers, which take `Rates.launch_s`."""
KERNELS_OF_ADAPTER = 4
"""Kernels that an adapter adds: the products with A and B, the scale, and the sum."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a time is computed from, apart from the configuration and the cluster."""

    lengths: Lengths | None = None
    """Lengths of completions; None is that all have `rollout.max_tokens`."""
    rates: Rates | None = None
    """Rates of a GPU; None are shares of its data sheet."""


ASSUMED = Assumptions()
"""Completions of full length, at the assumed shares of the data sheet."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of the phases of a step, and from one step to the next."""

    rollout_s: float
    """Until the last rollout ends and is scored by reward models, if nothing else runs."""
    score_s: float
    """Log-probabilities and values, apart from those that are computed while engines sample."""
    update_s: float
    sync_s: float
    turn_s: float
    """In which roles that take turns with engines leave the GPUs and come back."""
    step_s: float
    """From one step to the next."""
    sync_bytes: int
    """Bytes that rank 0 sends to every GPU of the engines: one copy of the weights."""
    tokens: float
    """Tokens of the sequences."""
    busy_s: Mapping[tuple[str, ...], float]
    """Seconds of a step in which a group computes or exchanges data, by its roles."""
    busy: float
    """Share of the GPU seconds of all groups in which they do."""

    @property
    def train_s(self) -> float:
        """Seconds of a step apart from its rollouts."""
        return self.score_s + self.update_s + self.sync_s + self.turn_s

    def run_s(self, steps: float) -> float:
        """Returns the seconds of a run with this many steps, without its start, checkpoints and export."""
        return steps * self.step_s


def estimate(config: RunConfig, assessment: Assessment, assumed: Assumptions = ASSUMED) -> Estimate:
    """Returns the estimate for a run whose plan fits, on GPUs of known speed or at measured rates."""
    return _Timing.of(config, assessment, assumed).estimate()


def trained_s(config: RunConfig, assessment: Assessment, assumed: Assumptions, role: Role) -> float:
    """Returns the seconds of a step in which a trained role scores, is updated, and takes turns with engines."""
    timing = _Timing.of(config, assessment, assumed)
    turn_s = 2 * assessment.memories[role.name].parked / timing.rates.host
    return timing.score_s(role) + timing.update_s(role) + turn_s


def overlapped_s(sampling: Sampling, judged: float, train_s: float, sync_s: float, *, staleness: int) -> float:
    """Returns the seconds from one step to the next while engines sample ahead of the trainer.

    The slower side decides. A batch must also be sampled before its weights are too old: it may start `staleness` steps
    before it is trained on, and its longest completion has to end in that time.
    """
    sampled_s = max(sampling.steady_s + sync_s, judged, sampling.rollout_s / staleness)
    return max(sampled_s, train_s, (train_s + sampling.longest_s) / (staleness + 1))


@dataclass(frozen=True, slots=True)
class _Timing:
    config: RunConfig
    assessment: Assessment
    rates: Rates
    lengths: Lengths
    roles: Mapping[str, Role]

    @classmethod
    def of(cls, config: RunConfig, assessment: Assessment, assumed: Assumptions) -> _Timing:
        rates, speed = assumed.rates, assessment.cluster.gpu.speed
        if rates is None:
            assert speed is not None, "there is no estimate for a GPU of unknown speed"
            rates = Rates.of(speed, Bounds(config).dtype)
        lengths = assumed.lengths or Lengths(config.most_tokens)
        return cls(config, assessment, rates, lengths, {role.name: role for role in roles_of(config)})

    def estimate(self) -> Estimate:
        config, layout = self.config, self.assessment.layout
        scores = {name: self.score_s(role) for name, role in self.roles.items()}
        updates = {name: self.update_s(role) for name, role in self.roles.items()}
        judged = scores.pop(REWARD, 0.0)
        score_s, update_s = self._together(scores), self._together(updates)
        busy = {name: scores.get(name, 0.0) + updates[name] for name in self.roles}
        if self.assessment.cache is None:
            return self._result(busy, score_s=score_s, update_s=update_s, step_s=score_s + update_s)
        policy = known_shape("model.path", config.model.path)
        found = sampling(config, policy, self.assessment.cache, self.rates, self.lengths)
        sync_s = publish_s(config, policy, layout, self.rates)
        turn_s, sharers = self._turn_s(), sharers_of_engines(config)
        # Reward models score groups while others are sampled, unless both need the same GPUs.
        rollout_s = found.rollout_s + judged if REWARD in sharers else max(found.rollout_s, judged)
        score_s = self._score_after_s(scores, rollout_s)
        train_s = score_s + update_s + sync_s + turn_s
        step_s, sampled_s = rollout_s + train_s, found.rollout_s
        if config.rollout.max_staleness:
            step_s = overlapped_s(found, judged, train_s, sync_s, staleness=config.rollout.max_staleness)
            sampled_s = min(found.steady_s, step_s - sync_s)
        busy[ACTOR] += sync_s
        busy[ROLLOUT] = sampled_s + (0.0 if sharers else sync_s)
        if judged:
            busy[REWARD] = judged
        return self._result(
            busy, score_s=score_s, update_s=update_s, step_s=step_s, rollout_s=rollout_s, sync_s=sync_s, turn_s=turn_s
        )

    def _result(
        self,
        busy: Mapping[str, float],
        *,
        score_s: float,
        update_s: float,
        step_s: float,
        rollout_s: float = 0.0,
        sync_s: float = 0.0,
        turn_s: float = 0.0,
    ) -> Estimate:
        groups = self.assessment.layout.groups
        by_group = {group.roles: sum(busy[role] for role in group.roles) for group in groups}
        gpus = {group.roles: group.bundles * max(1, group.gpus) for group in groups}
        used = sum(gpus[roles] * seconds for roles, seconds in by_group.items())
        policy = known_shape("model.path", self.config.model.path)
        return Estimate(
            rollout_s=rollout_s,
            score_s=score_s,
            update_s=update_s,
            sync_s=sync_s,
            turn_s=turn_s,
            step_s=step_s,
            sync_bytes=0 if self.config.is_offline else sync_bytes(self.config, policy),
            tokens=self._load(is_whole=True).tokens,
            busy_s=by_group,
            busy=used / (sum(gpus.values()) * step_s),
        )

    def _load(self, *, is_whole: bool = False) -> Load:
        """Returns the sequences of a step; if whole, each with its prompt, also where others share prefixes."""
        step = step_arithmetic(self.config)
        if self.config.is_offline:
            return Load(step.sequences, step.sequences * step.longest, step.sequences * step.longest**2)
        prompt = self.config.data.max_prompt_tokens if self.lengths.prompt is None else self.lengths.prompt
        mean, square = self.lengths.moments()
        squared = 2 * prompt * mean + square
        prompts = step.prompts if self._shares_prefixes and not is_whole else step.sequences
        return Load(
            step.sequences,
            tokens=prompts * prompt + step.sequences * mean,
            squares=prompts * prompt**2 + step.sequences * squared,
        )

    @property
    def _shares_prefixes(self) -> bool:
        """Whether each prompt is computed once for all its completions."""
        packing, on_cpu = self.config.train.packing, self.config.cluster.accelerator == "cpu"
        return packing == "shared_prefix" or (packing == "auto" and on_cpu)

    def _team(self, role: Role) -> Team:
        """Returns the workers of a role. On CPU the rates are those of the machine, of which each has its part."""
        places, rates = self.assessment.layout.places(role.name), self.rates
        if role.trained is not None:
            model = TrainedModel.of(self.config, role.trained, known_shape(*role.models[0]))
            kernels = 0 if model.adapters is None else KERNELS_OF_ADAPTER * len(model.adapters.targets)
            # A matrix in 4 bits is read, written in the type of the forward pass, and read again by each product.
            widened = model.in_4_bits / model.shape.layers * (NF4_BYTES + Bounds(self.config).element) / rates.memory
            rates = replace(rates, launch_s=(1 + kernels / KERNELS_OF_LAYER) * rates.launch_s + widened)
        if not self.assessment.layout.gpus:
            part = len(places)
            rates = replace(rates, training=rates.training / part, scoring=rates.scoring / part)
        return Team.at(places, rates)

    def _together(self, seconds: Mapping[str, float]) -> float:
        """Returns the seconds of roles that work at the same time; those that share GPUs, or a CPU, take turns."""
        groups = self.assessment.layout.groups
        by_group = [sum(seconds.get(role, 0.0) for role in group.roles) for group in groups]
        return max(by_group) if self.assessment.layout.gpus else sum(by_group)

    def _score_after_s(self, scores: Mapping[str, float], rollout_s: float) -> float:
        """Returns the seconds of scores after the last rollout; with `score_as_finished`, those of few groups."""
        if not self.assessment.layout.gpus:
            return self._together(scores)
        prompts = step_arithmetic(self.config).prompts

        def after_s(roles: Sequence[str]) -> float:
            trained = [role for role in roles if role in self.roles and self.roles[role].trained is not None]
            is_busy = REWARD in roles or (self.config.rollout.max_staleness > 0 and trained)
            begun = 0.0 if is_busy else sum(scores.get(r, 0.0) for r in roles if scores_as_finished(self.config, r))
            waiting = sum(scores.get(role, 0.0) for role in roles) - begun
            return waiting + max(begun / prompts, begun - rollout_s)

        return max(after_s(group.roles) for group in self.assessment.layout.groups)

    def score_s(self, role: Role) -> float:
        """Returns the seconds in which a role scores the rollouts of a step, or compares examples."""
        config, team = self.config, self._team(role)
        shapes = [known_shape(key, path) for key, path in role.models]
        element, budget = Bounds(config).element, config.train.micro_batch_tokens
        match role.settings:
            case ModelReward() as reward:
                parameters, budget = sum(shape.scorer_parameters for shape in shapes), reward.micro_batch_tokens
                return scoring_s(team, shapes[0], parameters, self._load(is_whole=True), budget=budget)
            case ReferenceConfig() as reference:
                parameters = shapes[0].parameters
                weights = element * parameters
                return scoring_s(
                    team,
                    shapes[0],
                    parameters,
                    self._load(),
                    budget=budget,
                    gathered=weights if reference.zero_stage == 3 else 0.0,
                    offloaded=weights / team.workers if reference.offload else 0.0,
                )
            case CriticConfig() as trained:
                passes, budget = 1, trained.micro_batch_tokens
            case TrainConfig() as trained:
                passes = self._passes_of_actor()
            case _:
                return 0.0
        parameters = TrainedModel.of(config, trained, shapes[0]).parameters
        gathered = element * parameters if trained.zero_stage == 3 else 0.0
        return passes * scoring_s(team, shapes[0], parameters, self._load(), budget=budget, gathered=gathered)

    def _passes_of_actor(self) -> int:
        """Returns how often the actor scores a batch: before its update, and without adapters as the reference."""
        config, reference = self.config, base_reference(self.config)
        if config.is_offline:
            return int(reference is not None and reference.when == "during")
        return int(config.online.needs_old_logprobs) + int(reference is not None)

    def update_s(self, role: Role) -> float:
        """Returns the seconds in which a role is trained on the batch of a step."""
        if role.trained is None:
            return 0.0
        config, shape = self.config, known_shape(*role.models[0])
        model = TrainedModel.of(config, role.trained, shape)
        epochs = 1 if config.is_offline else config.online.update_epochs
        updates = step_arithmetic(config).optimizer_steps
        return training_s(
            self._team(role),
            role.trained,
            shape,
            model.parameters,
            self._load(),
            updates=updates,
            epochs=epochs,
            element=Bounds(config).element,
            frozen=model.frozen,
        )

    def _turn_s(self) -> float:
        """Returns the seconds in which what shares GPUs with engines is copied to the host and back."""
        memories, size = self.assessment.memories, self.config.rollout.tensor_parallel
        sharers = sharers_of_engines(self.config) if self.assessment.layout.gpus else ()
        moved = sum(memories[role].parked for role in sharers)
        engine = memories[ROLLOUT].parked / size if sharers else 0.0
        return 2 * (moved + engine) / self.rates.host
