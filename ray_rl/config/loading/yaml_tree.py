"""Reads YAML into a tree in which every value has its place in the file.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), not YAML 1.1, in which `1e-5`
is text, `no` is false, `12:30` is 750 and `2026-11-22` is a date. In addition, `10_000` is a number.

The size of a file, and the number, text and nesting of its values, are limited before the tree is built. Values of
aliases count each time: ten lines with aliases of aliases can have a billion values.
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
"""Largest size of a file. PyYAML reads about 200 KB per second; the largest recipe has 4 KB."""
MOST_VALUES = 20_000
"""Most values in a file, with every alias written out."""
MOST_CHARACTERS = 4 * MOST_BYTES
"""Most characters of text in a file, with every alias written out."""
MOST_LEVELS = 50
"""Deepest nesting of mappings and lists; the schema has 5 levels."""
_MOST_DIGITS = 300
"""Most digits of a whole number: larger ones are too large for a float, and Python reads at most 4300 digits."""


@dataclass(slots=True)
class Located:
    """A value, and its place in a file or an override."""

    value: Any
    """A dict with texts as keys and Located as values, a list of Located, or a scalar."""
    where: str
    """`file:line` of the key, or of the item of a list; or `override 'key=value'`."""

    def plain(self) -> Any:
        """Returns the value without places."""
        match self.value:
            case dict():
                return {key: child.plain() for key, child in self.value.items()}
            case list():
                return [child.plain() for child in self.value]
            case scalar:
                return scalar

    def child(self, key: str | int) -> Located | None:
        """Returns the value at a key or index; None if there is none."""
        match self.value, key:
            case dict(), str():
                return cast("Located | None", self.value.get(key))
            case list(), int() if 0 <= key < len(self.value):
                return cast("Located", self.value[key])
            case _:
                return None

    def at(self, dotted: str) -> Located | None:
        """Returns the value at a dotted key; None if there is none."""
        node: Located | None = self
        for key in dotted.split("."):
            node = node.child(key) if node is not None else None
        return node


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, and with limits that are checked before the tree is built."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._levels = 0
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Returns the next node, if the number and the depth of nodes are within the limits."""
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
    """Writes YAML for `Loader`: text that would be read as a number is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True, so that equal values are written out, without `&id001`."""
        return True


Loader.yaml_implicit_resolvers = {}
Dumper.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    Loader.add_implicit_resolver(_PREFIX + _name, _pattern, list(_first))
    Dumper.add_implicit_resolver(_PREFIX + _name, _pattern, list(_first))


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of YAML: a file, or an override, which has no line numbers."""

    name: str
    """Path of the file, or `override 'key=value'`."""
    has_lines: bool

    def at(self, mark: yaml.Mark | None) -> str:
        """Returns the name of a place for messages."""
        if not self.has_lines:
            return self.name
        return f"{self.name}:{mark.line + 1}" if mark else self.name


def read_yaml(path: Path) -> Located:
    """Returns the mapping in a YAML file.

    Raises:
        ConfigError: the file does not exist, is too large, or is not a mapping in valid YAML and UTF-8.
    """
    tree = parse(read_text(path), str(path))
    if not isinstance(tree.value, dict):
        seen = "empty" if tree.value is None else _kind(tree.value)
        raise ConfigError(f"{tree.where}: the file is {seen}; write a mapping of sections such as `run:` and `model:`")
    return tree


def read_text(path: Path) -> str:
    """Returns the text of a YAML file.

    Raises:
        ConfigError: the file does not exist, is too large, or is not UTF-8.
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
            f"{path}: more than {MOST_BYTES // MIB} MiB, and no configuration is so large; give the path of the run's "
            "YAML file"
        )
    return text


SHARED_BY_KINDS = ("algorithm",)
"""Sections whose kinds all have the same options."""


def merge(base: Located, top: Located, *, key: str = "") -> Located:
    """Merges two values: mappings are merged key by key, and of other values the one in `top` is taken.

    A mapping with another `kind` is also taken as a whole, because its options are different, except in the sections of
    SHARED_BY_KINDS.

    Args:
        base: the value with lower precedence.
        top: the value with higher precedence.
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
    """Returns the value of the text of a file.

    Args:
        text: YAML.
        name: path of the file, for errors.

    Raises:
        ConfigError: the text is not valid YAML, or exceeds a limit.
    """
    origin = Origin(name, has_lines=True)
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(
            f"{origin.at(error.problem_mark)}: not valid YAML ({problem_of(error)}); check the colons, quotes, "
            "brackets and indentation of this line"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        character = f"character {error.character!r}"
        raise ConfigError(f"{origin.name}:{line}: {character} is not allowed in YAML; remove it") from None
    if node is None:
        return Located(None, f"{origin.name}:1")
    return Build(origin).located(node, node.start_mark)


def problem_of(error: yaml.MarkedYAMLError) -> str:
    """Returns the problem that PyYAML found, without its place."""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    if " alias" in what:
        return f"{what}: text that begins with * must be in quotes"
    return f"{what}: a tab; YAML indents by spaces" if "'\\t'" in what else what


class Build:
    """Converts PyYAML's nodes of one file or override to `Located`."""

    def __init__(self, origin: Origin, restore: Callable[[str], str] = str) -> None:
        """Makes a converter.

        Args:
            origin: the origin of the nodes.
            restore: restores text in which characters were replaced for PyYAML.
        """
        self._origin = origin
        self._restore = restore
        self._values = 0
        self._characters = 0
        self._parents: list[yaml.Node] = []
        """The nodes around the present one, to find anchors that contain themselves."""

    def located(self, node: yaml.Node, place: yaml.Mark) -> Located:
        """Returns a node with everything that it contains.

        Raises:
            ConfigError: a node is not allowed in a configuration, or a limit is exceeded.
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
                f"{where}: with its aliases written out, the file has more than {MOST_VALUES} values or "
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
    """Returns the value of unquoted text: None, a truth value, a number, or the text itself.

    Raises:
        ConfigError: a number is too large.
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
