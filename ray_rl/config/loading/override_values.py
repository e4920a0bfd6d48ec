"""Parses the value of an override, `key=value` on a command line, which has no comments and keeps text as typed.

In YAML, a prompt would end at " #", "Answer: yes" would be a mapping, "*" an alias, and "null" no value. So the value
of a field for text is taken as typed. It becomes a mapping or list only if it is in flow style ({...} or [...]) and the
field allows one. Quotes around the whole value are removed, as in YAML.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import yaml

from ray_rl.config.loading.yaml_tree import Build, Loader, Located, Origin, plain_scalar, problem_of
from ray_rl.errors import ConfigError

_NULLS = ("null", "Null", "NULL")
_ADVICE = "put text with any of #:,[]{}&*!|>%@` in quotes, inside those of the shell: 'key=\"text\"', 'key=[\"text\"]'"


@dataclass(frozen=True, slots=True)
class Reading:
    """The kinds of values that a field can have; they decide how text for it is read."""

    text: bool = True
    null: bool = True
    numbers: bool = True
    """Numbers, truth values, or one of a few words."""
    structures: bool = True
    """Mappings and lists in flow style: {a: 1} and [1, 2]."""
    blocks: bool = True
    """Mappings and lists in block style, which looks like text: "kind: addition"."""


class _OfCommandLine(Loader):
    """A loader that refuses anchors and aliases, because text may look like them, and text over several lines."""

    def fetch_anchor(self) -> NoReturn:
        """Refuses an anchor."""
        raise yaml.scanner.ScannerError(None, None, "& starts an anchor", self.get_mark())

    def fetch_alias(self) -> NoReturn:
        """Refuses an alias."""
        raise yaml.scanner.ScannerError(None, None, "* starts an alias", self.get_mark())

    def scan_plain(self) -> yaml.ScalarToken:
        """Returns text without quotes, which must be on one line."""
        return _on_one_line(super().scan_plain())

    def scan_flow_scalar(self, style: str) -> yaml.ScalarToken:
        """Returns text in quotes, which must be on one line."""
        return _on_one_line(super().scan_flow_scalar(style))


def _on_one_line(token: yaml.ScalarToken) -> yaml.ScalarToken:
    if token.start_mark.line != token.end_mark.line:
        problem = "YAML would join the lines of this text; write \\n in double quotes for a new line"
        raise yaml.scanner.ScannerError(None, None, problem, token.start_mark)
    return token


def parse_value(text: str, where: str, reading: Reading = Reading()) -> Located:
    """Returns the value of an override.

    Args:
        text: the text after `=`.
        where: the name of the override in messages.
        reading: the values that the field can have.

    Raises:
        ConfigError: the text is not valid YAML, and the field does not take any text; or it is not UTF-8.
    """
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ConfigError(f"{where}: not UTF-8; use a terminal with UTF-8, or set the value in a file")
    stripped = text.strip()
    if stripped.startswith(("'", '"')):
        quoted = _quoted(stripped)
        if quoted is not None:
            return Located(quoted, where)
    if reading.structures and stripped.startswith(("{", "[")):
        return _structure(stripped, where)
    if not (reading.numbers or reading.blocks):
        return Located(_as_typed(text, reading), where)
    scalar = plain_scalar(stripped, where) if reading.numbers else _as_typed(stripped, reading)
    if scalar is None and not reading.null:
        scalar = text
    if isinstance(scalar, str) and reading.blocks and stripped:
        return _structure(stripped, where)
    return Located(text if isinstance(scalar, str) and reading.text else scalar, where)


def _as_typed(text: str, reading: Reading) -> str | None:
    """Returns the text, or None for the words that mean null; the schema then refuses it if null is not allowed."""
    if text in _NULLS or (reading.null and text in ("", "~")):
        return None
    return text


def composed(text: str) -> yaml.Node | None:
    """Returns PyYAML's nodes of a value, with their positions in the text. They have another character for "#".

    Raises:
        yaml.YAMLError: the value is not YAML.
    """
    return yaml.compose(_without_meaning(text, "#")[0], Loader=_OfCommandLine)


def _quoted(text: str) -> str | None:
    """Returns the text in quotes; None if there is more than that. Line ends are kept."""
    hidden, restore = _without_meaning(text, "#\n\r\x85\u2028\u2029")
    try:
        node = yaml.compose(hidden, Loader=_OfCommandLine)
    except yaml.YAMLError:
        return None
    return restore(node.value) if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"') else None


def _structure(text: str, where: str) -> Located:
    hidden, restore = _without_meaning(text, "#")
    try:
        node = yaml.compose(hidden, Loader=_OfCommandLine)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({restore(problem_of(error))}); {_ADVICE}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{where}: character {error.character!r} is not allowed in YAML; remove it") from None
    if node is None:
        return Located(None, where)
    return Build(Origin(where, has_lines=False), restore).located(node, node.start_mark)


def _without_meaning(text: str, characters: str) -> tuple[str, Callable[[str], str]]:
    """Returns the text with other characters for some that have a meaning in YAML, and a function that undoes it."""
    unused = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
    stand_ins = {character: next(unused) for character in characters}
    there = str.maketrans(stand_ins)
    back = str.maketrans({stand_in: character for character, stand_in in stand_ins.items()})
    return text.translate(there), lambda changed: changed.translate(back)
