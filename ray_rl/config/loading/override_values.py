"""The value of an override: `key=value` on a command line, where nothing is a comment and text is what was typed.

YAML is for files. On a command line it would cut a prompt at " #", take "Answer: yes" for a mapping, "*" for an alias
and "null" for nothing. So text for a field that takes text arrives as it stands, and only flow style ({...} and [...])
makes mappings and lists of it, where the field can be one. Quotes around the whole value are YAML's, and are removed.
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
    """What a field can hold, which decides how a value for it is read."""

    text: bool = True
    null: bool = True
    numbers: bool = True
    """Numbers and truth values, or one of a few words."""
    structures: bool = True
    """Mappings and lists in flow style: {a: 1} and [1, 2]."""
    blocks: bool = True
    """And in block style, which looks like text: "kind: addition"."""


class _OfCommandLine(Loader):
    """Without anchors and aliases, which a command line has no use for and text may look like, and without folding."""

    def fetch_anchor(self) -> NoReturn:
        """Refuses an anchor."""
        raise yaml.scanner.ScannerError(None, None, "& starts an anchor", self.get_mark())

    def fetch_alias(self) -> NoReturn:
        """Refuses an alias."""
        raise yaml.scanner.ScannerError(None, None, "* starts an alias", self.get_mark())

    def scan_plain(self) -> yaml.ScalarToken:
        """Text without quotes, on one line."""
        return _on_one_line(super().scan_plain())

    def scan_flow_scalar(self, style: str) -> yaml.ScalarToken:
        """Text in quotes, on one line."""
        return _on_one_line(super().scan_flow_scalar(style))


def _on_one_line(token: yaml.ScalarToken) -> yaml.ScalarToken:
    if token.start_mark.line != token.end_mark.line:
        problem = "YAML makes one line of text over several lines; write \\n in double quotes for a new line"
        raise yaml.scanner.ScannerError(None, None, problem, token.start_mark)
    return token


def parse_value(text: str, where: str, reading: Reading = Reading()) -> Located:
    """A value of the command line.

    Args:
        text: behind the `=`, as the shell hands it over.
        where: names the override in messages.
        reading: how text for the field is read.

    Raises:
        ConfigError: neither text as it stands nor YAML, with the advice to quote; or not UTF-8.
    """
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ConfigError(f"{where}: not UTF-8; type it in a terminal of UTF-8, or write it to the file")
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
    """Text, but for the words that stand for nothing; where nothing is not allowed, they are refused by the schema."""
    if text in _NULLS or (reading.null and text in ("", "~")):
        return None
    return text


def composed(text: str) -> yaml.Node | None:
    """PyYAML's nodes of a value, at their places in the text; a hash in them is another character.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.compose(_without_meaning(text, "#")[0], Loader=_OfCommandLine)


def _quoted(text: str) -> str | None:
    """The text in quotes, if it is that and no more; its lines stay lines."""
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
    """The text with characters of another kind in place of some that mean something to YAML, and the way back."""
    unused = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
    stand_ins = {character: next(unused) for character in characters}
    there = str.maketrans(stand_ins)
    back = str.maketrans({stand_in: character for character, stand_in in stand_ins.items()})
    return text.translate(there), lambda changed: changed.translate(back)
