"""The rules of environments with several turns. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator

from ray_rl.config.data import Table
from ray_rl.config.rewards import ToolPart
from ray_rl.config.run import RunConfig


def episode_rules(config: RunConfig) -> Iterator[str]:
    """Yields one message for every setting that contradicts `environment`."""
    episodes = config.episodes
    if config.is_offline:
        return
    if episodes is None or episodes.parser is None:
        for index, reward in enumerate(config.rewards):
            if isinstance(reward, ToolPart):
                yield (
                    f"rewards.{index}.kind={reward.kind}: no calls of tools are read; set environment.kind=tools, or "
                    "environment.parser of another environment"
                )
    if episodes is None:
        return
    if config.rollout.max_tokens > episodes.max_tokens:
        yield (
            f"rollout.max_tokens={config.rollout.max_tokens}: a turn may be longer than its whole episode, "
            f"environment.max_tokens={episodes.max_tokens}; raise environment.max_tokens, or lower rollout.max_tokens"
        )
    if isinstance(config.data, Table) and not config.data.chat:
        yield (
            f"environment.kind={episodes.kind}: the turns of an episode are written by the chat template, and "
            "data.chat=false uses none; set data.chat=true"
        )
    if config.run.deterministic:
        yield (
            f"run.deterministic=true: with environment.kind={episodes.kind}, the time that each turn takes decides "
            "which sequences share a forward pass, which changes the last bits of their log-probabilities; set "
            "run.deterministic=false"
        )
