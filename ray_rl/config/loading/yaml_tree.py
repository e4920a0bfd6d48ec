"""YAML as a tree whose every value knows where it was written.

The scalars are those of YAML 1.2 (core schema, https://yaml.org/spec/1.2.2/#103-core-schema) and not of YAML 1.1, where
`1e-5` is text, `no` is false, `12:30` is 750 and `2026-11-22` is a date. We depart from it in allowing `10_000`.

What a file may cost is bounded before it is built: its size, the values in it with every alias written out (an alias of
an alias of an alias is a billion of them in ten lines), their text and their nesting.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from ray_rl.errors import ConfigError
from ray_rl.sizes import MIB

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

MOST_BYTES = MIB
"""Largest size of a file. PyYAML reads some 200 KB a second; the largest recipe has 4 KB."""
MOST_VALUES = 20_000
"""Most values in a file, every alias written out."""
MOST_CHARACTERS = 4 * MOST_BYTES
"""Most characters of text in a file, every alias written out."""
MOST_LEVELS = 50
"""Most levels of mappings and lists inside each other; the schema has 5."""
_MOST_DIGITS = 300
"""Most digits of a whole number: a larger one is no float any more, and Python reads 4300 digits at most."""


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

    def at(self, dotted: str) -> Located | None:
        """The value under a dotted key, None if there is none."""
        node: Located | None = self
        for key in dotted.split("."):
            node = node.child(key) if node is not None else None
        return node


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and with bounds, which are checked before anything is built."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._levels = 0
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node, of so many and so deep as is allowed."""
        self._levels += 1
        self._values += 1
        if self._levels > MOST_LEVELS or self._values > MOST_VALUES:
            what = f"{MOST_LEVELS} levels" if self._levels > MOST_LEVELS else f"{MOST_VALUES} values"
            place = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"a configuration has at most {what}", place)
        node = super().compose_node(parent, index)
        self._levels -= 1
        return node


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
class Origin:
    """What is being read: a file, whose lines count, or an override, which has none."""

    name: str
    """Path, or `override 'key=value'`."""
    has_lines: bool

    def at(self, mark: yaml.Mark | None) -> str:
        """The place of a mark, as messages name it."""
        if not self.has_lines:
            return self.name
        return f"{self.name}:{mark.line + 1}" if mark else self.name


def read_yaml(path: Path) -> Located:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, too large, not UTF-8, not YAML, a key twice, or not a mapping.
    """
    tree = parse(read_text(path), str(path))
    if not isinstance(tree.value, dict):
        seen = "empty" if tree.value is None else _kind(tree.value)
        raise ConfigError(f"{tree.where}: the file is {seen}; write a mapping of sections such as `run:` and `model:`")
    return tree


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        ConfigError: no such file, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a readable YAML file") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"{path}: more than {MOST_BYTES // MIB} MiB, which no configuration has; give the path of the run's YAML "
            "file, and keep data in files of its own"
        )
    return text


SHARED_BY_KINDS = ("algorithm",)
"""Sections whose kinds have the same options."""


def merge(base: Located, top: Located, *, key: str = "") -> Located:
    """Lays `top` over `base`: mappings merge key by key, everything else is replaced.

    A mapping that names another `kind` than the one below it replaces it whole, since its options are others, except
    in the sections of SHARED_BY_KINDS.

    Args:
        base: what is written below.
        top: what is written above.
        key: the key of both.
    """
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    below, above = base.child("kind"), top.child("kind")
    if key not in SHARED_BY_KINDS and below and above and below.value != above.value:
        return top
    merged = dict(base.value)
    for name, child in top.value.items():
        merged[name] = merge(merged[name], child, key=name) if name in merged else child
    return Located(merged, top.where)


def parse(text: str, name: str) -> Located:
    """The value that the text of a file stands for.

    Args:
        text: YAML.
        name: path of the file, for errors.

    Raises:
        ConfigError: not YAML, or more than a configuration may have.
    """
    origin = Origin(name, has_lines=True)
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(
            f"{origin.at(error.problem_mark)}: not valid YAML ({problem_of(error)}); correct it"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        character = f"character {error.character!r}"
        raise ConfigError(f"{origin.name}:{line}: {character} is not allowed in YAML; remove it") from None
    if node is None:
        return Located(None, f"{origin.name}:1")
    return Build(origin).located(node, node.start_mark)


def problem_of(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML found, without the place."""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{what}: a tab; YAML indents by spaces" if "'\\t'" in what else what


class Build:
    """From PyYAML's nodes to `Located`, of one file or one override."""

    def __init__(self, origin: Origin, restore: Callable[[str], str] = str) -> None:
        """Builds nothing yet.

        Args:
            origin: the origin of the nodes.
            restore: every text as it was written, where characters were replaced for PyYAML.
        """
        self._origin = origin
        self._restore = restore
        self._values = 0
        self._characters = 0
        self._parents: list[yaml.Node] = []
        """Nodes being built, to notice an anchor that contains itself."""

    def located(self, node: yaml.Node, place: yaml.Mark) -> Located:
        """A node with everything below it.

        Raises:
            ConfigError: it is none that a configuration can have, or too much.
        """
        where = self._origin.at(place)
        if any(parent is node for parent in self._parents):
            raise ConfigError(f"{where}: the anchor contains itself; write the value out")
        self._count(node, where)
        self._parents.append(node)
        match node:
            case yaml.MappingNode(tag=tag) if tag == _PREFIX + "map":
                value: Any = self._mapping(node)
            case yaml.SequenceNode(tag=tag) if tag == _PREFIX + "seq":
                value = [self.located(item, item.start_mark) for item in node.value]
            case yaml.ScalarNode():
                value = self._scalar(node, where)
            case _:
                raise ConfigError(
                    f"{where}: the tag {_short(node.tag)} is not supported; write a plain mapping or list"
                )
        self._parents.pop()
        return Located(value, where)

    def _count(self, node: yaml.Node, where: str) -> None:
        self._values += 1
        self._characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if self._values > MOST_VALUES or self._characters > MOST_CHARACTERS:
            raise ConfigError(
                f"{where}: with its aliases written out the file has more than {MOST_VALUES} values or "
                f"{MOST_CHARACTERS // 10**6} million characters, which no configuration has; remove aliases of aliases"
            )

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Located]:
        children: dict[str, Located] = {}
        for key, value in node.value:
            where = self._origin.at(key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key is {_kind(key.value)}; keys are text")
            if key.tag != _PREFIX + "str":
                raise ConfigError(f"{where}: the key {key.value!r} is not text; put it in quotes")
            name = self._restore(key.value)
            if name in children:
                first = children[name].where
                raise ConfigError(f"{where}: the key {name!r} is written twice, first at {first}; remove one")
            children[name] = self.located(value, key.start_mark)
        return children

    def _scalar(self, node: yaml.ScalarNode, where: str) -> Any:
        kind = node.tag.removeprefix(_PREFIX)
        if kind not in ("str", *(name for name, _, _ in _SCALARS)):
            raise ConfigError(f"{where}: the tag {_short(node.tag)} is not supported; write plain text or a number")
        return _of_kind(kind, self._restore(node.value), where)


def plain_scalar(text: str, where: str) -> Any:
    """What unquoted text stands for: null, a truth value, a number, or itself.

    Raises:
        ConfigError: a number that is too large.
    """
    kind = next((name for name, pattern, _ in _SCALARS if pattern.match(text)), "str")
    return _of_kind(kind, text, where)


def _of_kind(kind: str, text: str, where: str) -> Any:
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return _number(text, where, integer=True)
        case "float":
            return _number(text, where, integer=False)
        case _:
            return text


def _number(text: str, where: str, *, integer: bool) -> int | float:
    digits = text.replace("_", "").lower()
    if integer and len(digits) > _MOST_DIGITS:
        raise ConfigError(f"{where}: a number of {len(digits)} digits; whole numbers have at most {_MOST_DIGITS}")
    try:
        return int(digits, 0) if integer else float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise ConfigError(f"{where}: {text[:80]!r} is not a number; correct it") from None


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
