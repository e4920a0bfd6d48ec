"""Builds the environments of a run. Imports Ray inside functions: see `app/build.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ray_rl.config import RunConfig
from ray_rl.config.environment import (
    CustomEnvironment,
    EnvironmentPart,
    ProgramEnvironment,
    TextArena,
    ToolsEnvironment,
)
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.history import TurnSupport
from ray_rl.data.suffix import TurnSuffix
from ray_rl.data.template import ChatTemplate
from ray_rl.environments.base import Environment
from ray_rl.environments.conversation import TemplateConversation
from ray_rl.environments.host import Host
from ray_rl.environments.program.program import maker_of_program
from ray_rl.environments.text_arena import maker_of_game
from ray_rl.environments.tools.building import ToolEnvironments
from ray_rl.environments.tools.calls import OWN, CallParser, call_parser, parser_of_template
from ray_rl.errors import ConfigError
from ray_rl.isolation.importing import import_function
from ray_rl.metrics.run import Run
from ray_rl.rollout.episodes import Episodes, SingleTurn
from ray_rl.rollout.multi_turn import Environments, Failures, Limits, MultiTurn
from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.request import Sampling
from ray_rl.rollout.tool_parsers import VllmParsers


async def start_environments(
    config: RunConfig, run: Run, model: str, *, stack: AsyncExitStack, logs: Path
) -> Environments | None:
    """Starts the workers of the environments, until `stack` ends; None for a run without.

    Raises:
        UserError: the environment cannot be used.
        ClusterError: a worker did not start.
    """
    part = config.episodes
    if part is None:
        return None
    from ray_rl.cluster.environments import EnvironmentWorkers

    run.note("starting the environments")
    workers = EnvironmentWorkers(
        partial(build_host, config, model),
        workers=part.workers,
        timeout_s=part.turn_timeout_s,
        logs=logs.absolute(),
        tell=run.tell,
    )
    stack.push_async_callback(workers.stop)
    await workers.start()
    return workers


def episodes_of(
    config: RunConfig,
    environments: Environments | None,
    *,
    pool: EnginePool,
    sampling: Sampling,
    tell: Callable[[str], None],
) -> Episodes:
    """Returns what samples the rollouts of a run: single answers, or episodes with an environment."""
    part = config.episodes
    if part is None or environments is None:
        return SingleTurn(pool, sampling)
    limits = Limits(
        prompt_tokens=config.data.max_prompt_tokens,
        tokens=part.max_tokens,
        turns=part.max_turns,
        tool_calls=part.max_tool_calls,
        seconds=part.timeout_s,
    )
    return MultiTurn(pool, sampling, environments, limits, Failures(tell))


async def build_host(config: RunConfig, model: str) -> Host:
    """Makes what holds the environments in a worker.

    Raises:
        UserError: the environment, or the chat template of the model, cannot be used.
    """
    part = config.episodes
    assert part is not None, "the run has an environment"
    tokenizer = ChatTokenizer.of_policy(config.model, config.data, model)
    suffix = TurnSuffix(tokenizer, tokenizer.ends_of(config.rollout, config.data))
    require_support(part, suffix.support(), model=config.model.path)
    make, schemas = await maker_of(part)
    parse = None if part.parser is None else parser_of(config, part.parser, tokenizer.template, model, schemas)
    described = schemas if isinstance(part, ToolsEnvironment) and part.describe else ()
    conversation = TemplateConversation(tokenizer, suffix)
    return Host(make, conversation, parse=parse, timeout_s=part.turn_timeout_s, tools=described)


def parser_of(
    config: RunConfig, name: str, template: ChatTemplate, model: str, schemas: Sequence[Mapping[str, Any]]
) -> CallParser:
    """Returns what reads calls of tools in completions.

    `auto` is the form of the chat template; if that does not read tools, it is the one in which we describe them.

    Raises:
        ConfigError: there is no such parser, or it does not work with the model's tokenizer.
    """
    chosen = name
    if name == "auto":
        chosen = parser_of_template(template.text) if template.reads_tools else "hermes"
    if chosen in OWN:
        return OWN[chosen]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=config.model.trust_remote_code)
    return call_parser(chosen, template=None, schemas=schemas, others=VllmParsers(tokenizer))


def require_support(part: EnvironmentPart, support: TurnSupport, *, model: str) -> None:
    """Checks that the chat template can write what an environment says.

    Raises:
        ConfigError: it cannot, or it rewrites earlier turns and `environment.history` refuses that.
    """
    if support.refuses_user is not None:
        raise ConfigError(
            f"environment.kind={part.kind}: the chat template of {model} cannot write a message behind an answer: "
            f"{support.refuses_user}; set model.chat_template to one that can"
        )
    if support.rewrites_history is not None and part.history == "refuse":
        raise ConfigError(
            f"environment.history=refuse: the chat template of {model} rewrites earlier turns: "
            f"{support.rewrites_history}; set environment.history=keep, and the policy reads in every turn what it "
            "said before, or set model.chat_template to one that only appends"
        )


async def maker_of(part: EnvironmentPart) -> tuple[Callable[[], Environment], Sequence[Mapping[str, Any]]]:
    """Returns what makes the environment of each episode, and the schemas of its tools.

    Raises:
        ConfigError: a function, a game or a tool is missing or wrong.
        OutsideError: a server of tools does not start.
    """
    match part:
        case CustomEnvironment():
            return partial(import_function(part.function), **part.options), ()
        case ToolsEnvironment():
            environments = ToolEnvironments(part)
            return environments.make, await environments.schemas()
        case TextArena():
            return maker_of_game(part.name, part.options), ()
        case ProgramEnvironment():
            return maker_of_program(part.command, part.variables), ()
        case _:
            raise AssertionError(f"no environment of kind {part.kind}")
