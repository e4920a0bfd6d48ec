"""Estimates the time of a step to a factor of two: compute from floating-point operations, decoding from bytes read.

Training takes 6 N operations per token, 2 N more if activations are recomputed, and 2 N for a pass without gradients
(arXiv:2001.08361, section 2.1). In decoding, each step reads the weights once, and for each sequence its keys and
values. The shares of the peak below are assumptions, not measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ray_rl.catalog.shapes import ModelShape
from ray_rl.config import RunConfig
from ray_rl.config.rewards import ModelReward
from ray_rl.config.roles import roles_of
from ray_rl.config.train import CriticConfig, ReferenceConfig, Trained
from ray_rl.planner.arithmetic import step_arithmetic
from ray_rl.planner.assess import Assessment, known_shape
from ray_rl.planner.engines import KvCache
from ray_rl.planner.memory import Bounds

TRAINING_SHARE = 0.35
"""Share of the peak that training with ZeRO and padded rows reaches (MFU)."""
SCORING_SHARE = 0.45
"""Share of the peak in passes without gradients and in prefill."""
BANDWIDTH_SHARE = 0.6
"""Share of the memory bandwidth that decoding reaches."""
SYNC_BYTES_PER_S = 20e9
"""Rate of a publish: one sender over one 400 Gbit/s port, including gathering and checks."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of the phases of a step in which every sequence has full length, and the bytes of a publish."""

    rollout_s: float
    score_s: float
    update_s: float
    sync_s: float
    sync_bytes: int
    """Bytes that rank 0 sends to every GPU of the engines: one copy of the weights."""
    tokens: int
    """Tokens of the sequences."""

    @property
    def step_s(self) -> float:
        """Seconds of a step: the sum of its phases."""
        return self.rollout_s + self.score_s + self.update_s + self.sync_s

    def run_s(self, steps: float) -> float:
        """Returns the seconds of a run with this many steps, without its start, checkpoints and export."""
        return steps * self.step_s


@dataclass(frozen=True, slots=True)
class _Peak:
    """The peak rates of a GPU in the dtype of the run."""

    flops: float
    bandwidth: float

    @classmethod
    def of(cls, config: RunConfig, assessment: Assessment) -> _Peak:
        speed = assessment.cluster.gpu.speed
        assert speed is not None, "there is no estimate for a GPU of unknown speed"
        return cls(speed.flops(Bounds(config).dtype), speed.bandwidth)


def sync_bytes(config: RunConfig, shape: ModelShape) -> int:
    """Returns the bytes of one publish: every parameter once, a tied head only once."""
    return Bounds(config).element * shape.parameters


def estimate(config: RunConfig, assessment: Assessment) -> Estimate:
    """Returns the estimate for a run whose plan fits, on GPUs of known speed."""
    peak, bounds = _Peak.of(config, assessment), Bounds(config)
    policy = known_shape("model.path", config.model.path)
    step = step_arithmetic(config)
    tokens = step.sequences * step.longest
    epochs, needs_old = (
        (1, False) if config.is_offline else (config.online.update_epochs, config.online.needs_old_logprobs)
    )
    parameters = config.members * policy.scorer_parameters if bounds.is_scorer else policy.parameters
    passes = [_scoring_s(parameters, tokens, config.train.workers, peak) * needs_old]
    update_s = _training_s(parameters, tokens * epochs, config.train, peak)
    for role in roles_of(config):
        shapes = [known_shape(key, path) for key, path in role.models]
        match role.settings:
            case ReferenceConfig():
                passes.append(_scoring_s(shapes[0].parameters, tokens, role.workers, peak))
            case ModelReward():
                models = sum(shape.scorer_parameters for shape in shapes)
                passes.append(_scoring_s(models, tokens, role.workers, peak))
            case CriticConfig() as critic:
                parameters = shapes[0].scorer_parameters
                passes.append(_scoring_s(parameters, tokens, role.workers, peak))
                # The critic and the actor are trained concurrently.
                update_s = max(update_s, _training_s(parameters, tokens * epochs, critic, peak))
            case _:
                pass
    weights = 0 if config.is_offline else sync_bytes(config, policy)
    return Estimate(
        rollout_s=0.0 if assessment.cache is None else _rollout_s(config, assessment.cache, policy, peak),
        score_s=max(passes),
        update_s=update_s,
        sync_s=weights / SYNC_BYTES_PER_S,
        sync_bytes=weights,
        tokens=tokens,
    )


def _training_s(parameters: int, tokens: int, trained: Trained, peak: _Peak) -> float:
    factor = 8 if trained.gradient_checkpointing else 6
    return factor * parameters * tokens / (trained.workers * peak.flops * TRAINING_SHARE)


def _scoring_s(parameters: int, tokens: int, workers: int, peak: _Peak) -> float:
    return 2 * parameters * tokens / (workers * peak.flops * SCORING_SHARE)


def _rollout_s(config: RunConfig, cache: KvCache, shape: ModelShape, peak: _Peak) -> float:
    """Returns the seconds of the rollouts: the prefill of all prompts, and in each wave one decoding step per token."""
    rollout = config.rollout
    step = step_arithmetic(config)
    together = max(1, min(step.per_engine, rollout.max_sequences, cache.sequences))
    waves = ceil(step.per_engine / together)
    prompts = ceil(step.prompts / rollout.engines)
    prefill_s = (
        2
        * shape.parameters
        * prompts
        * config.data.max_prompt_tokens
        / (rollout.tensor_parallel * peak.flops * SCORING_SHARE)
    )
    weights = Bounds(config).element * shape.parameters / rollout.tensor_parallel
    mean_length = config.data.max_prompt_tokens + rollout.max_tokens / 2
    read = weights + together * mean_length * cache.token
    return prefill_s + waves * rollout.max_tokens * read / (peak.bandwidth * BANDWIDTH_SHARE)
