"""Loads a `RunConfig` from YAML files and overrides, and writes one. Loads without torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import yaml
from pydantic import ValidationError

from ray_rl.config.base import Config
from ray_rl.config.loading.explain import explain, override_place, show
from ray_rl.config.loading.old_keys import refuse_old_keys
from ray_rl.config.loading.override_values import parse_value
from ray_rl.config.loading.redact import HIDDEN, hidden_keys, without_secrets
from ray_rl.config.loading.schema import reading_at
from ray_rl.config.loading.yaml_tree import MOST_LEVELS, Dumper, Located, merge, read_yaml
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError
from ray_rl.program import program


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    launch: str | Path | None = None,
    edit: Callable[[Located], None] = lambda tree: None,
) -> RunConfig:
    """Returns the configuration in a file, merged with the files that it extends, the launch file and the overrides.

    The precedence rises from the file that `extends: other.yaml` names (relative to its own file) to the file, to the
    launch file, and to the overrides. Mappings are merged key by key; other values replace the old ones, and so does a
    mapping with another `kind`, except `algorithm`.

    An override is `dotted.key=value`, with the value in YAML: `rewards.0.weight=2` changes the first entry of a list,
    and `data={kind: jsonl, path: train.jsonl}` a whole section. Text is taken as it was typed, also with `#`: see
    `ray_rl.config.loading.override_values`. A launch file has the content of the `launch` section. `edit` changes the
    merged values before they are validated.

    Rules between fields are not checked here, but by `ray_rl.config.rules.check`; only a missing `run.steps` is an
    error here, like other missing keys.

    Raises:
        ConfigError: the message has every problem, with `file:line` or the override, the value and the remedy; or an
            argument has another type.
    """
    _check_types(path, overrides, launch)
    if "=" in str(path) and not Path(path).exists():
        raise ConfigError(f"{path}: the YAML file of the run comes first, then values: CONFIG {show(str(path))}")
    tree = _read(Path(path), ())
    stages = tree.child("stages")
    if stages is not None:
        command = f"{program()} pipeline {shlex.quote(str(path))}"
        raise ConfigError(f"{stages.where}: stages: this is the file of a pipeline, for `{command}`")
    if launch is not None:
        tree = merge(tree, Located({"launch": _read(Path(launch), ())}, tree.where))
    for text in overrides:
        set_override(tree, text, RunConfig)
    refuse_old_keys(tree)
    edit(tree)
    try:
        config = RunConfig.model_validate(tree.plain())
    except ValidationError as error:
        raise ConfigError(explain(error, tree, RunConfig)) from None
    if config.run.steps is None and not config.is_offline:
        run = tree.at("run.steps") or tree.at("run") or tree
        raise ConfigError(
            f"{run.where}: run.steps: missing, and algorithm.kind={config.algorithm.kind} needs it; set the number of "
            "steps"
        )
    missing = hidden_keys(config.model_dump())
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}={HIDDEN}: a secret that was left out when the configuration was written; set it "
            "again, or let the function read it from the environment"
        )
    return config


def _check_types(path: object, overrides: object, launch: object) -> None:
    """Checks the types of what a script or a notebook passed.

    Raises:
        ConfigError: an argument has another type; the message says what to pass.
    """
    for name, value in (("path", path), ("launch", "" if launch is None else launch)):
        if not isinstance(value, str | PathLike):
            raise ConfigError(f"{name} has the type {_type(value)}; pass the path of a YAML file, as text or as a Path")
    advice = "pass a list of texts, for example ['run.steps=3']"
    if not isinstance(overrides, list | tuple):
        raise ConfigError(f"overrides has the type {_type(overrides)}; {advice}")
    for index, text in enumerate(overrides):
        if not isinstance(text, str):
            raise ConfigError(f"overrides[{index}] has the type {_type(text)}; {advice}")


def _type(value: object) -> str:
    return type(value).__name__


def dump_config(config: RunConfig, *, with_secrets: bool = False) -> str:
    """Returns the configuration as YAML, with every default, for `load_config`.

    Secrets are left out unless `with_secrets` is set: values with names like api_key, and logins in addresses.
    """
    fields = config.model_dump()
    fields = fields if with_secrets else without_secrets(fields)
    return yaml.dump(fields, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=120)


def _read(path: Path, children: tuple[Path, ...]) -> Located:
    """Returns the tree of a file, merged with the file that it extends; `children` are the files that extend it."""
    tree = read_yaml(path)
    refuse_old_keys(tree, path)
    extends = tree.value.pop("extends", None)
    if extends is None:
        return tree
    if not isinstance(extends.value, str):
        raise ConfigError(f"{extends.where}: extends={show(extends.plain())}: must be the path of one YAML file")
    base = path.parent / Path(extends.value).expanduser()
    if not base.is_file():
        raise ConfigError(
            f"{extends.where}: extends={extends.value}: no such file as {base}; the path starts at {path}"
        )
    chain = (*children, path.resolve())
    if len(chain) > MOST_LEVELS:
        raise ConfigError(f"{extends.where}: extends={extends.value}: more than {MOST_LEVELS} files extend each other")
    if base.resolve() in chain:
        files = " extends ".join(file.name for file in (*chain, base.resolve()))
        raise ConfigError(
            f"{extends.where}: extends={extends.value}: a circle of files ({files}); remove one `extends`"
        )
    return merge(_read(base, chain), tree)


def set_override(tree: Located, text: str, model: type[Config]) -> None:
    """Sets one `dotted.key=value` in the tree of a file that is validated as `model`.

    Raises:
        ConfigError: the text has another form, its value is not valid YAML, or the key is inside a single value.
    """
    dotted, equals, written = text.partition("=")
    keys = dotted.strip().split(".")
    where = override_place(".".join(keys), written) if equals else f"override '{show(dotted)}'"
    if not equals or not all(keys):
        raise ConfigError(f"{where}: must have the form key=value, for example train.workers=2")
    if len(keys) > MOST_LEVELS:
        raise ConfigError(f"override of a key of {len(keys)} parts: a configuration has at most {MOST_LEVELS} levels")
    value = parse_value(written, where, reading_at(model, keys, tree))
    node = tree
    for depth, key in enumerate(keys):
        if node.value is None:
            node.value = {}
        is_last = depth == len(keys) - 1
        above = ".".join(keys[:depth])
        match node.value:
            case dict() as children:
                children[key] = Located(value.value, where) if is_last else children.get(key, Located({}, where))
                node = children[key]
            case list() as entries:
                index = _index(key, above, entries, where)
                entries[index] = Located(value.value, where) if is_last else entries[index]
                node = entries[index]
            case scalar:
                raise ConfigError(f"{where}: {above}={show(scalar)} has no keys; set {above} itself")


def _index(key: str, above: str, entries: list[Located], where: str) -> int:
    if key.isdecimal() and int(key) < len(entries):
        return int(key)
    raise ConfigError(
        f"{where}: {above} has no entry {key!r}; its {len(entries)} entries are numbered from 0. "
        f"To add or remove entries, set the whole list: {above}=[...]"
    )
