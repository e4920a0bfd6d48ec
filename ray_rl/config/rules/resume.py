"""Which changes of the configuration are allowed when a run is resumed. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ray_rl.config.base import Config
from ray_rl.config.loading.explain import as_one_message, show
from ray_rl.config.loading.redact import without_secrets
from ray_rl.config.roles import CRITIC
from ray_rl.config.run import OFFLINE, RunConfig
from ray_rl.errors import ConfigError

FIXED = {
    "model.path": "the checkpoint has the weights of the other model",
    "model.adapter": "the checkpoint has those weights, and no others",
    "model.chat_template": "another template makes other prompts",
    "data": "the saved position belongs to these prompts",
    "run.seed": "it determines the order of the prompts and the sampling",
    "algorithm.prompts_per_step": "the saved position in the data assumes it",
    "algorithm.batch_size": "the saved position in the data assumes it",
    "algorithm.train_on": "it decides which tokens of the examples are trained on",
    "algorithm.separator": "it decides which tokens of the examples are trained on",
    "algorithm.members": "the checkpoint has the weights of that many models",
}
"""Keys and sections that must not change, with the reason."""

CHANGEABLE = ("data.on_bad_row",)
"""Keys in these sections that may still change: a run that stopped at a wrong row can skip it when it is resumed."""

FREE = ("run.name", "run.dir", "launch", "data.check_s")
"""Keys and sections that do not matter to a resumed run: its folder may have been moved, and launching and checking
change no result."""


def changes(before: Mapping[str, Any], now: RunConfig) -> list[str]:
    """Returns one line for every value that differs: "train.learning_rate: 1e-05 -> 2e-05".

    Args:
        before: the content of the run's `config.yaml`, which has no secrets.
        now: the configuration with which the run is resumed.

    Raises:
        ConfigError: a value differs that must not change.
    """
    differing = differences(before, now)
    problems = [
        f"{key}={show(new)}: the run had {show(old)}, and {reason}; keep that, or start another run"
        for key, (old, new) in differing.items()
        for fixed, reason in _fixed(before, now.model_dump()).items()
        if key not in CHANGEABLE
        if key == fixed or key.startswith(f"{fixed}.")
    ]
    if problems:
        raise ConfigError(as_one_message(problems))
    return [changed(key, *values) for key, values in differing.items()]


def changed(key: str, old: Any, new: Any) -> str:
    """Returns the line of a value that differs."""
    return f"{key}: {show(old)} -> {show(new)}"


def differences(before: Mapping[str, Any], now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the old and the new value of every dotted key that differs; None where there is no value.

    Args:
        before: the content of a file that `dump_config` wrote, without secrets.
        now: the configuration to compare.
    """
    old, new = dict(_flat("", before)), dict(_flat("", without_secrets(now.model_dump())))
    keys = [key for key in {**old, **new} if not _is_free(key) and old.get(key) != new.get(key)]
    return {key: (old.get(key), new.get(key)) for key in keys if not _is_younger(key, before, now)}


def _is_younger(key: str, before: Mapping[str, Any], now: RunConfig) -> bool:
    """Returns whether the file, of an older release, does not have the key, and the key now has its default."""
    written: Any = before
    section: Any = now
    for name in key.split("."):
        if not isinstance(written, Mapping) or not isinstance(section, Config) or name not in vars(section):
            return False
        if name not in written:
            field = type(section).model_fields[name]
            return bool(vars(section)[name] == field.get_default(call_default_factory=True))
        written, section = written[name], vars(section)[name]
    return False


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _fixed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    fixed = dict(FIXED)
    if before["algorithm"]["kind"] in OFFLINE or now["algorithm"]["kind"] in OFFLINE:
        fixed["algorithm.kind"] = "the data and the checkpoint are for that algorithm"
        fixed["reference.when"] = "the reference must be the policy before its first step"
        return fixed
    if before["rollout"]["max_staleness"] > 0:
        fixed["algorithm.group_size"] = "the checkpoint may contain groups of that size"
    if (before[CRITIC] is None) != (now[CRITIC] is None):
        fixed[CRITIC] = "a critic must be trained from the first step on, or not at all"
    elif before[CRITIC] is not None:
        fixed["critic.path"] = "the checkpoint has the weights of the other model"
    return fixed


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        # Tuples come back from a file as lists.
        yield prefix, list(value) if isinstance(value, tuple) else value
