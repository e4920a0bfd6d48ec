"""A tool that searches a local corpus by words: BM25 over passages."""

from __future__ import annotations

import asyncio
import json
import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_rl.config.environment import SearchTool
from ray_rl.environments.tools.schema import Schema
from ray_rl.environments.tools.tool import EpisodeTools, Tool
from ray_rl.errors import DataError

K1, B = 1.2, 0.75
"""The usual constants of BM25: how soon further occurrences of a word stop to count, and how much length counts."""
MOST_QUERY_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a text."""

    title: str
    text: str


class SearchTools:
    """The search tool of a corpus, which is read at its first use and then shared; see `ToolSource`."""

    def __init__(self, settings: SearchTool) -> None:
        """Makes the tool; its corpus is not read yet."""
        self._settings = settings
        self._index: Index | None = None
        self._reading = asyncio.Lock()
        self._tool = Tool.given(
            {
                "name": settings.name,
                "description": settings.description,
                "parameters": {
                    "type": "object",
                    "properties": {"query": {"type": "string", "description": "Words to look for."}},
                    "required": ["query"],
                    "additionalProperties": False,
                },
            },
            self._search,
        )

    async def schemas(self) -> list[Schema]:
        """Returns the schema of the tool. Reads the corpus, so that a wrong one is noticed at the start.

        Raises:
            DataError: the corpus is wrong.
        """
        await self._read()
        return [self._tool.schema]

    async def open(self, row: Mapping[str, Any], seed: int) -> EpisodeTools:
        """Returns the tool.

        Raises:
            DataError: the corpus is wrong.
        """
        await self._read()
        return EpisodeTools([self._tool])

    async def close(self) -> None:
        """Forgets the corpus."""
        self._index = None

    async def _read(self) -> Index:
        async with self._reading:
            if self._index is None:
                self._index = await asyncio.to_thread(lambda: Index(passages(self._settings)))
            return self._index

    def _search(self, query: str) -> list[dict[str, str]] | str:
        assert self._index is not None, "read when the episode was opened"
        found = self._index.best(query[:MOST_QUERY_CHARACTERS], self._settings.results)
        return [{"title": each.title, "text": each.text} for each in found] or "Nothing found. Try other words."


class Index:
    """Passages with the words in them. Thread-safe after it is made."""

    def __init__(self, found: Iterable[Passage]) -> None:
        """Reads the passages."""
        self._passages: list[Passage] = []
        self._lengths = array("I")
        self._places: dict[str, array[int]] = defaultdict(lambda: array("I"))
        """Number of a passage, and how often the word is in it, in turn."""
        for number, passage in enumerate(found):
            words = words_of(f"{passage.title}\n{passage.text}")
            self._passages.append(passage)
            self._lengths.append(len(words))
            for word, count in Counter(words).items():
                self._places[word].extend((number, count))
        self._mean_length = sum(self._lengths) / max(1, len(self._lengths))

    def best(self, query: str, most: int) -> list[Passage]:
        """Returns the passages with the highest scores above 0, the best first; equal ones in their order.

        A passage's score is the sum over the different words of the query of
        idf * count * (K1 + 1) / (count + K1 * (1 - B + B * length / mean length)), with
        idf = ln(1 + (N - n + 0.5) / (n + 0.5)) for n of N passages with the word (Robertson and Zaragoza, 2009).
        """
        scores: dict[int, float] = defaultdict(float)
        for word in dict.fromkeys(words_of(query)):
            places = self._places.get(word, ())
            having = len(places) // 2
            idf = math.log(1 + (len(self._passages) - having + 0.5) / (having + 0.5))
            for number, count in zip(places[::2], places[1::2], strict=True):
                length = 1 - B + B * self._lengths[number] / self._mean_length
                scores[number] += idf * count * (K1 + 1) / (count + K1 * length)
        ranked = sorted(scores, key=lambda number: (-scores[number], number))
        return [self._passages[number] for number in ranked[:most]]


def words_of(text: str) -> list[str]:
    """Returns the words of a text in lower case: runs of letters and digits."""
    return _WORD.findall(text.lower())


_WORD = re.compile(r"[^\W_]+")


def passages(settings: SearchTool) -> Iterator[Passage]:
    """Yields the passages of a corpus, texts in the order of their names or lines.

    Raises:
        DataError: the path does not exist, or has no text, or a line is not an object with the text.
    """
    path = Path(settings.path).expanduser()
    if not path.exists():
        raise DataError(f"environment.sources: path={settings.path}: no such file or folder; correct it")
    is_empty = True
    for title, text in _files(path) if path.is_dir() else _lines(path, settings):
        for part in _parts(text, settings.passage_characters):
            is_empty = False
            yield Passage(title, part)
    if is_empty:
        what = "a folder without texts in files *.txt or *.md" if path.is_dir() else "a file without texts"
        raise DataError(f"environment.sources: path={settings.path}: {what}; set it to a corpus")


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".txt", ".md") and file.is_file():
            try:
                yield file.relative_to(folder).as_posix(), file.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise DataError(f"environment.sources: {file} cannot be read as UTF-8: {error}; correct it") from error


def _lines(file: Path, settings: SearchTool) -> Iterator[tuple[str, str]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"environment.sources: {file}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not a line of JSON: {error}; correct it") from error
            keys = (settings.text_column, *([settings.title_column] if settings.title_column else []))
            missing = [key for key in keys if not isinstance(row, dict) or not isinstance(row.get(key), str)]
            if missing:
                has = ", ".join(row) if isinstance(row, dict) else "no keys"
                raise DataError(
                    f"{where}: no text under the key {missing[0]!r}; it has {has or 'no keys'}; set text_column and "
                    "title_column of the search to keys with text"
                )
            yield row[settings.title_column] if settings.title_column else str(number), row[settings.text_column]


def _parts(text: str, most: int) -> Iterator[str]:
    """Yields a text in parts of at most `most` characters, divided at the ends of paragraphs, lines or words."""
    begin = 0
    while begin < len(text):
        end = min(len(text), begin + most)
        if end < len(text):
            breaks: Sequence[int] = [text.rfind(mark, begin + most // 2, end) for mark in ("\n\n", "\n", " ")]
            end = next((place for place in breaks if place >= 0), end)
        part = text[begin:end].strip()
        if part:
            yield part
        begin = end
