"""YAML as a tree whose every value knows where it was written.

The scalars are those of YAML 1.2 (core schema, https://yaml.org/spec/1.2.2/#103-core-schema) and not of YAML 1.1, where
`1e-5` is text, `no` is false, `12:30` is 750 and `2026-11-22` is a date. We depart from it in allowing `10_000`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from ray_rl.errors import ConfigError

_SCALARS = (
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0o[0-7]+|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    (
        "float",
        re.compile(
            r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
            r"|^\.(?:nan|NaN|NAN)$"
        ),
        "-+.0123456789",
    ),
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
)
_PREFIX = "tag:yaml.org,2002:"


@dataclass(slots=True)
class Located:
    """A value and where it was written."""

    value: Any
    """A dict of Located by text, a list of Located, or a scalar."""
    where: str
    """`file:line` of the key (of the item, in a list), or `override 'key=value'`."""

    def plain(self) -> Any:
        """The value without places."""
        match self.value:
            case dict():
                return {key: child.plain() for key, child in self.value.items()}
            case list():
                return [child.plain() for child in self.value]
            case scalar:
                return scalar

    def child(self, key: str | int) -> Located | None:
        """The value under a key or an index, None if there is none."""
        match self.value, key:
            case dict(), str():
                return cast("Located | None", self.value.get(key))
            case list(), int() if 0 <= key < len(self.value):
                return cast("Located", self.value[key])
            case _:
                return None


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads back: text that would be read as a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out instead of `&id001`."""
        return True


Loader.yaml_implicit_resolvers = {}
Dumper.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    Loader.add_implicit_resolver(_PREFIX + _name, _pattern, list(_first))
    Dumper.add_implicit_resolver(_PREFIX + _name, _pattern, list(_first))


@dataclass(frozen=True, slots=True)
class _Origin:
    """What is being read: a file, whose lines count, or an override, which has none."""

    name: str
    has_lines: bool

    def at(self, mark: yaml.Mark | None) -> str:
        if not self.has_lines:
            return self.name
        return f"{self.name}:{mark.line + 1}" if mark else self.name


def read_yaml(path: Path) -> Located:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not UTF-8, not YAML, a key twice, or not a mapping.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a readable YAML file") from None
    tree = _parse(text, _Origin(str(path), has_lines=True))
    if not isinstance(tree.value, dict):
        seen = "empty" if tree.value is None else _kind(tree.value)
        raise ConfigError(f"{tree.where}: the file is {seen}; write a mapping of sections such as `run:` and `model:`")
    return tree


def parse_value(text: str, where: str) -> Located:
    """A value written as YAML on the command line.

    Raises:
        ConfigError: not YAML.
    """
    return _parse(text, _Origin(where, has_lines=False))


def merge(base: Located, top: Located) -> Located:
    """`top` over `base`: mappings merge key by key, everything else is replaced.

    A mapping that names another `kind` than the one below it replaces it whole, since its options are others.
    """
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    below, above = base.child("kind"), top.child("kind")
    if below and above and below.value != above.value:
        return top
    merged = dict(base.value)
    for key, child in top.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Located(merged, top.where)


def _parse(text: str, origin: _Origin) -> Located:
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{origin.at(error.problem_mark)}: not valid YAML ({what}); correct it") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        place = f"{origin.name}:{line}" if origin.has_lines else origin.name
        raise ConfigError(f"{place}: character {error.character!r} is not allowed in YAML; remove it") from None
    if node is None:
        return Located(None, f"{origin.name}:1" if origin.has_lines else origin.name)
    return _Build(origin, ()).located(node, node.start_mark)


@dataclass(frozen=True, slots=True)
class _Build:
    """From PyYAML's nodes to `Located`."""

    origin: _Origin
    parents: tuple[yaml.Node, ...]
    """Nodes being built, to notice an anchor that contains itself."""

    def located(self, node: yaml.Node, place: yaml.Mark) -> Located:
        where = self.origin.at(place)
        if any(parent is node for parent in self.parents):
            raise ConfigError(f"{where}: the anchor contains itself; write the value out")
        inner = _Build(self.origin, (*self.parents, node))
        match node:
            case yaml.MappingNode(tag=tag) if tag == _PREFIX + "map":
                return Located(inner._mapping(node), where)
            case yaml.SequenceNode(tag=tag) if tag == _PREFIX + "seq":
                return Located([inner.located(item, item.start_mark) for item in node.value], where)
            case yaml.ScalarNode():
                return Located(self._scalar(node, where), where)
            case _:
                raise ConfigError(
                    f"{where}: the tag {_short(node.tag)} is not supported; write a plain mapping or list"
                )

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Located]:
        children: dict[str, Located] = {}
        for key, value in node.value:
            where = self.origin.at(key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key is {_kind(key.value)}; keys are text")
            if key.tag != _PREFIX + "str":
                raise ConfigError(f"{where}: the key {key.value!r} is not text; put it in quotes")
            if key.value in children:
                first = children[key.value].where
                raise ConfigError(f"{where}: the key {key.value!r} is there twice, first at {first}; remove one")
            children[key.value] = self.located(value, key.start_mark)
        return children

    def _scalar(self, node: yaml.ScalarNode, where: str) -> Any:
        text: str = node.value
        match node.tag.removeprefix(_PREFIX):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return _number(text, where, integer=True)
            case "float":
                return _number(text, where, integer=False)
            case _:
                raise ConfigError(f"{where}: the tag {_short(node.tag)} is not supported; write plain text or a number")


def _number(text: str, where: str, *, integer: bool) -> int | float:
    digits = text.replace("_", "").lower()
    try:
        return int(digits, 0) if integer else float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise ConfigError(f"{where}: {text!r} is not a number; correct it") from None


def _short(tag: str) -> str:
    return tag.replace(_PREFIX, "!!")


def _kind(value: Any) -> str:
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return f"the single value {value!r}"
