"""Explains unknown words: misspelt commands, and options that are keys of the configuration."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from ray_rl.config.loading.foreign_words import FOREIGN, NOTES, our_word
from ray_rl.config.loading.nearest import nearest
from ray_rl.config.loading.redact import without_arguments
from ray_rl.config.loading.schema import all_keys
from ray_rl.config.loading.yaml_tree import Located
from ray_rl.config.run import RunConfig

OTHER_NAMES = {
    "ls": "runs",
    "list": "runs",
    "run": "train",
    "start": "train",
    "fit": "train",
    "continue": "resume",
    "restart": "resume",
    "cancel": "stop",
    "kill": "stop",
    "check": "validate",
    "save": "export",
    "help": "--help",
}
"""Names of our commands in other programs."""

_FEW = 3
"""The most keys with one name that are listed."""


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the parsers of its commands by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def check_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Ends with exit code 2 and the nearest command if the first word is not a command."""
    commands = commands_of(parser)
    word = next((word for word in words if not word.startswith("-")), None)
    if word is None or not commands or word in commands:
        return
    near = OTHER_NAMES.get(word.lower()) or nearest(word.lower(), commands, similarity=0.5)
    hint = f"did you mean {near}? The commands are" if near else "the commands are"
    parser.error(f"{word}: no such command; {hint} {', '.join(commands)}")


def unrecognized(
    parser: argparse.ArgumentParser, words: Sequence[str], left: Sequence[str], *, takes_overrides: bool
) -> str:
    """Returns a message with the unknown arguments, and how to write them here.

    Args:
        parser: the parser of the program.
        words: the words of the command line.
        left: the unknown words among them.
        takes_overrides: whether the command accepts `key=value`.
    """
    options = [word for word in left if word.startswith("--")]
    said = f"unrecognized arguments: {' '.join(without_arguments(left))}"
    if not options:
        return said
    known = _options(commands_of(parser).get(words[0]))
    advice = [_advice(option, words, known, takes_overrides=takes_overrides) for option in dict.fromkeys(options)]
    return "; ".join([said, *(text for text in advice if text)])


def _options(parser: argparse.ArgumentParser | None) -> list[str]:
    if parser is None:
        return []
    inner = [option for each in commands_of(parser).values() for option in _options(each)]
    return sorted({option for option in parser._option_string_actions if option.startswith("--")} | set(inner))


def _advice(option: str, words: Sequence[str], known: Sequence[str], *, takes_overrides: bool) -> str:
    name, equals, value = option.removeprefix("--").partition("=")
    near = nearest(f"--{name}", known, similarity=0.8)
    # `--steps 60` of `resume` means run.steps, and not `--step 60`, which goes back to that step.
    if near and not (takes_overrides and name.replace("-", "_") in FOREIGN):
        return f"did you mean {near}?"
    if not takes_overrides:
        return ""
    if not equals:
        value = _following(option, words)
    key = name.replace("-", "_")
    ours = _ours(key)
    if not ours:
        remark = our_word(key, Located({}, "the command line"))
        return f"--{name}: {remark or 'values are set without dashes, as key=value: run.steps=5'}"
    notes = "".join(f" ({NOTES[each]})" for each in ours if each in NOTES)
    written = " or ".join(shlex.join(without_arguments([f"{each}={value}"])) for each in ours)
    return f"instead of --{name} write {written}{notes}"


def _following(option: str, words: Sequence[str]) -> str:
    """Returns the word after an option, which is its value."""
    behind = list(words)[list(words).index(option) + 1 :][:1]
    is_value = behind and not behind[0].startswith("--") and "=" not in behind[0]
    return behind[0] if is_value else "..."


def _ours(key: str) -> tuple[str, ...]:
    """Returns our keys for a name; empty if we have none."""
    keys = list(dict.fromkeys(all_keys(RunConfig)))
    if key in keys:
        return (key,)
    foreign = FOREIGN.get(key)
    if foreign is not None:
        return foreign if isinstance(foreign, tuple) else ()
    same = tuple(each for each in keys if each.endswith(f".{key}"))
    if 1 <= len(same) <= _FEW:
        return same
    near = nearest(key, keys, similarity=0.8)
    return () if near is None else (near,)
