"""Edits YAML text without changing its comments and layout: renames, removes, sets or appends an entry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from ray_rl.config.loading.explain import show
from ray_rl.config.loading.yaml_tree import Dumper, Loader, Located, parse
from ray_rl.errors import ConfigError


class YamlText:
    """The text of one file. Keys are dotted: `algorithm.kl.coefficient`. The text is parsed again for every edit."""

    def __init__(self, text: str, name: str) -> None:
        """Reads the text of a file.

        Args:
            text: YAML in which lines end with a single newline.
            name: path of the file, for errors.

        Raises:
            ConfigError: the text is not valid YAML, or has aliases, whose text belongs to several places.
        """
        self.text, self._name = text, name
        self.tree()
        for token in yaml.scan(text, Loader=Loader):
            if isinstance(token, yaml.AliasToken):
                raise ConfigError(
                    f"{name}:{token.start_mark.line + 1}: the alias *{token.value} cannot be changed; write its value "
                    "out, or change the file by hand"
                )

    def tree(self) -> Located:
        """Returns the present values of the file."""
        return parse(self.text, self._name)

    def rename(self, key: str, name: str) -> None:
        """Renames an existing entry."""
        with self._verified(key) as below:
            below[name] = below.pop(_last(key))
            parent, index = self._entry(key)
            self._replace(parent.value[index][0].start_mark.index, parent.value[index][0].end_mark.index, name)

    def remove(self, key: str) -> None:
        """Removes an existing entry. Comments in its text and at its end stay, above the next entry."""
        with self._verified(key) as below:
            del below[_last(key)]
            self._remove(key)

    def _remove(self, key: str) -> None:
        parent, index = self._entry(key)
        entries = parent.value
        start, end = entries[index][0].start_mark.index, self._end(entries[index][1])
        following = entries[index + 1][0].start_mark.index if index + 1 < len(entries) else None
        line = self.text.rfind("\n", 0, start) + 1
        if parent.flow_style and following is not None:
            # A comment between two entries stays.
            stop = self.text.index(",", end) + 1 if "#" in self.text[end:following] else following
            self._replace(start, stop, self._comments(start, end, column=parent.start_mark.column + 1))
        elif parent.flow_style:
            before = self._end(entries[index - 1][1]) if index else start
            comments = self._comments(start, end, column=parent.start_mark.column + 1)
            self._replace(start if "#" in self.text[before:start] else before, end, comments and f" {comments}")
        elif len(entries) == 1:
            self._replace(start, end, self._comments(start, end, column=start - line) + "{}")
        elif self.text[line:start].strip():  # behind the "- " of a list
            stop = following or end
            self._replace(start, stop, self._comments(start, stop, column=start - line))
        else:
            stop, indent = self._end_of_line(end), start - line
            comments = self._comments(start, stop, column=indent)
            self._replace(line, stop + 1, comments and " " * indent + comments[: len(comments) - indent])

    def _comments(self, start: int, end: int, *, column: int) -> str:
        """Returns the comments between two places of the text, one a line; what follows starts in this column."""
        comments = []
        at = start
        for token in yaml.scan(self.text, Loader=Loader):
            first, last = token.start_mark.index, token.end_mark.index
            comments += re.findall("#.*", self.text[at : min(first, end)])
            if isinstance(token, yaml.ScalarToken) and token.style in ("|", ">") and start <= first < end:
                comments += re.findall("#.*", self.text[first : self._end_of_line(first)])
            at = max(at, last)
        return "".join(f"{comment}\n{' ' * column}" for comment in comments)

    def set(self, key: str, value: Any, *, first: bool = False) -> None:
        """Sets an entry. Adds it, and the mapping that contains it, if they do not exist.

        Args:
            key: the dotted key of the entry.
            value: the plain value, which is written in flow style.
            first: whether a new entry becomes the first of its mapping, not the last.
        """
        with self._verified(key) as below:
            below[_last(key)] = value
            self._set(key, value, first=first)

    def _set(self, key: str, value: Any, *, first: bool) -> None:
        above, _, name = key.rpartition(".")
        parent, node = self._node(above), self._node(key)
        if node is not None:
            start = node.start_mark.index
            space = "" if self.text[start - 1 : start].isspace() else " "
            self._replace(start, self._end(node), space + _flow(value))
        elif not isinstance(parent, yaml.MappingNode):
            self._set(above, {name: value}, first=False)
        else:
            self._add(parent, f"{name}: {_flow(value)}", first=first)

    def append(self, key: str, value: Any) -> None:
        """Adds an item to the end of a list, and the list if it does not exist."""
        node = self._node(key)
        if isinstance(node, yaml.SequenceNode):
            with self._verified(key) as below:
                below[_last(key)].append(value)
                self._add(node, _flow(value) if node.flow_style else f"- {_flow(value)}", first=False)
        else:
            self.set(key, [value])

    @contextmanager
    def _verified(self, key: str) -> Iterator[dict[str, Any]]:
        """Yields the values that contain an entry, to be changed as the text is; compares both at the end.

        Raises:
            ConfigError: the text would mean something else, or what contains the entry is not a mapping.
        """
        above, _, _ = key.rpartition(".")
        expected = self.tree().plain() or {}
        below = expected
        for name in above.split(".") if above else ():
            below[name] = {} if below.get(name) is None else below[name]
            below = below[name]
            if not isinstance(below, dict):
                raise ConfigError(f"{self._name}: {above}={show(below)} is not a mapping; correct it")
        yield below
        try:
            found = self.tree().plain()
        except ConfigError:
            found = None
        if found != expected:
            raise ConfigError(f"{self._name}: {key} cannot be rewritten in this layout of the file; change it by hand")

    def _add(self, parent: yaml.CollectionNode, entry: str, *, first: bool) -> None:
        """Writes an entry into a mapping or list in the style of the others."""
        items = [item[1] if isinstance(item, tuple) else item for item in parent.value]
        if not items:
            inside = self._end(parent) - 1
            self._replace(inside, inside, entry)
            return
        beginning = parent.value[0][0] if isinstance(parent, yaml.MappingNode) else parent.value[0]
        start, end = beginning.start_mark.index, self._end(items[-1])
        if parent.flow_style:
            self._replace(start, start, f"{entry}, ") if first else self._replace(end, end, f", {entry}")
        else:
            line = "\n" + " " * parent.start_mark.column
            at = start if first else self._end_of_line(end)
            self._replace(at, at, f"{entry}{line}" if first else f"{line}{entry}")

    def _entry(self, key: str) -> tuple[yaml.MappingNode, int]:
        above, _, name = key.rpartition(".")
        parent = self._node(above)
        assert isinstance(parent, yaml.MappingNode), f"{key} is in no mapping"
        return parent, [entry.value for entry, _ in parent.value].index(name)

    def _node(self, key: str) -> yaml.Node | None:
        node = yaml.compose(self.text, Loader=Loader)
        for name in key.split(".") if key else ():
            below = node.value if isinstance(node, yaml.MappingNode) else []
            node = next((value for entry, value in below if entry.value == name), None)
        return node

    def _end(self, node: yaml.Node) -> int:
        """Returns the end of a node's text. PyYAML's end includes comments and blank lines after a block."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style:
            last = node.value[-1]
            return self._end(last[1] if isinstance(last, tuple) else last)
        return (
            len(self.text[: node.end_mark.index].rstrip()) if isinstance(node, yaml.ScalarNode) else node.end_mark.index
        )

    def _end_of_line(self, index: int) -> int:
        end = self.text.find("\n", index)
        return len(self.text) if end < 0 else end

    def _replace(self, start: int, end: int, text: str) -> None:
        self.text = self.text[:start] + text + self.text[end:]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _flow(value: Any) -> str:
    """Formats a value as YAML in one line."""
    whole = yaml.dump([value], Dumper=Dumper, default_flow_style=True, sort_keys=False, width=float("inf"))
    return whole.strip()[1:-1]
