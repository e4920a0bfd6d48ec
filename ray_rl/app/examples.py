"""Loads the examples of a run, and resolves what depends on their number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ray_rl.config import RunConfig
from ray_rl.config.loading.explain import as_one_message
from ray_rl.config.offline import Kto, ProcessRewardModel, RewardModel, Sft
from ray_rl.config.rules.algorithm import training_rules
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.load import Examples, load_examples
from ray_rl.errors import ConfigError
from ray_rl.loops.reference import require_several_prompts


def load(config: RunConfig, *, folder: Path | str, say: Callable[[str], None]) -> Examples:
    """Returns the examples of a run, and tells what the data is taken for.

    Args:
        config: the configuration of a run that learns from examples.
        folder: the folder or hub name of the model.
        say: called with each line for the user.

    Raises:
        DataError: a file, a row or the chat template is wrong, or no example can be used.
        ConfigError: the source, the format or a column is wrong.
    """
    tokenizer = ChatTokenizer.of_policy(config.model, config.data, folder)
    algorithm = config.offline
    loaded = partial(load_examples, config.data, wanted=algorithm.wanted, tokenizer=tokenizer, note=say)
    match algorithm:
        case Sft():
            examples = loaded(train_on=algorithm.train_on)
        case RewardModel():
            examples = loaded(rendered=True)
        case ProcessRewardModel():
            examples = loaded(separator=algorithm.separator)
        case _:
            examples = loaded()
    for line in examples.lines:
        say(f"data: {line}")
    if isinstance(algorithm, Kto):
        require_several_prompts(examples.train)
    if len(examples.train) < algorithm.batch_size:
        say(
            f"data: a step of algorithm.batch_size={algorithm.batch_size} has some of the {len(examples.train)} "
            "examples more than once"
        )
    return examples


def resolved_steps(config: RunConfig, examples: int) -> RunConfig:
    """Returns the configuration with `run.epochs` as `run.steps`: whole batches of so many examples, at least one.

    Raises:
        ConfigError: a setting does not fit the number of steps.
    """
    run = config.run
    if run.epochs is None:
        return config
    steps = max(1, run.epochs * examples // config.offline.batch_size)
    resolved = config.model_copy(update={"run": run.model_copy(update={"steps": steps, "epochs": None})})
    problems = list(training_rules(resolved))
    if problems:
        raise ConfigError(as_one_message(problems))
    return resolved
