"""Reads files with one JSON object per line."""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any, NoReturn

from ray_rl.config.data import Jsonl
from ray_rl.data.columns import DEEPEST, shorten
from ray_rl.data.files import SUFFIXES, WHOLE_BYTES, DataFile, data_files, digests
from ray_rl.data.records import SourceRecord
from ray_rl.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""First bytes of UTF-16 and UTF-32."""
MOST_DIGITS = 4300
"""The most digits of an integer: Python refuses longer ones."""

_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],:]|[^\s{}\[\],:"]+')


class JsonlRecords:
    """The objects of files with one JSON object per line. Blank lines are skipped; a line is parsed when it is read."""

    def __init__(self, config: Jsonl) -> None:
        """Reads the files once, for their lines and their digests.

        Raises:
            DataError: a file is missing or cannot be read, or there are no lines, or the first line is not an object.
        """
        files = data_files(config)
        self.digests: Mapping[str, str] = digests(files)
        """The digest of each file, by its name."""
        self._files = [_Lines(file) for file in files]
        self._starts = array("Q", [0])
        for lines in self._files:
            self._starts.append(self._starts[-1] + len(lines))
        if not len(self):
            raise DataError(f"{config.path}: no lines; write one JSON object per line, or correct data.path")
        first = self[0]
        if not isinstance(first.content, Mapping):
            raise DataError(
                f"{first.where}: {shorten(first.content)} is not a row; write one JSON object per line"
                f"{_hint(first.content)}"
            )
        self.where = first.where
        """The place of the first line."""
        self.columns: Sequence[str] = list(first.content)
        """The keys of the first line."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> SourceRecord:
        # There are few files and many rows, so a search through the starts of the files is fast enough.
        which = next(i for i in range(len(self._files)) if index < self._starts[i + 1])
        lines = self._files[which]
        number, line = lines[index - self._starts[which]]
        where = f"{lines.file.shown}:{number}"
        return SourceRecord(_parsed(line, where=where), f"{lines.file.name}:{number}", where)


class _Lines:
    """The lines of a file. A file of at most WHOLE_BYTES is kept in memory; a larger one is read line by line."""

    def __init__(self, file: DataFile) -> None:
        self.file = file
        self._text: bytes | None = None
        self._stream: IO[bytes] | None = None
        self._numbers, self._starts, self._ends = array("Q"), array("Q"), array("Q")
        try:
            self._take(_unpacked(file) if file.path.name.endswith(".gz") else file.path.open("rb"))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file.shown}: cannot be read: {error}; correct data.path, or the file") from error

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        """Returns the number of the line, from 1, and its bytes without the end of line."""
        start, end = self._starts[index], self._ends[index]
        if self._text is not None:
            return self._numbers[index], self._text[start:end]
        assert self._stream is not None, "one of them holds the lines"
        try:
            return self._numbers[index], os.pread(self._stream.fileno(), end - start, start)
        except OSError as error:
            raise DataError(f"{self.file.shown}:{self._numbers[index]}: cannot be read: {error}") from error

    def _take(self, stream: IO[bytes]) -> None:
        closing = weakref.finalize(self, stream.close)
        try:
            self._find(stream)
            if self._ends and self._ends[-1] > WHOLE_BYTES:
                self._stream = stream
                return
            stream.seek(0)
            self._text = stream.read()
        finally:
            if self._stream is None:
                closing()

    def _find(self, stream: IO[bytes]) -> None:
        start = 0
        for number, line in enumerate(stream, start=1):
            if number == 1 and line.startswith(WIDE_MARKS):
                raise DataError(
                    f"{self.file.shown}: UTF-16, not UTF-8; convert the file: iconv -f UTF-16 -t UTF-8 IN > OUT"
                )
            if line.strip():
                marked = len(BYTE_ORDER_MARK) if line.startswith(BYTE_ORDER_MARK) else 0
                self._numbers.append(number)
                self._starts.append(start + marked)
                self._ends.append(start + len(line.rstrip(b"\r\n")))
            start += len(line)


def _unpacked(file: DataFile) -> IO[bytes]:
    """Returns the text of a compressed file, in a temporary file without a name."""
    text = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with ExitStack() as stack:
        stack.callback(text.close)
        packed = stack.enter_context(gzip.open(file.path))
        while block := packed.read(2**20):
            text.write(block)
        text.seek(0)
        stack.pop_all()
        packed.close()
    return text


def _parsed(line: bytes, *, where: str) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8: {error.reason} at byte {error.start + 1}; convert the file{_other_kind(where)}"
        ) from error
    # This also counts unquoted backslashes and brackets inside strings, which only makes the exact check run earlier.
    if text.count("[") + text.count("{") > DEEPEST:
        _refuse_fault(text, where=where)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON: {error.msg} at column {error.pos + 1} of {shorten(text.strip())}; "
            f"write one JSON object per line{_hint(text)}{_other_kind(where)}"
        ) from error
    except (ValueError, RecursionError) as error:
        _refuse_fault(text, where=where)
        raise DataError(f"{where}: not JSON: {error}; write one JSON object per line") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("an object has a key twice")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _other_kind(where: str) -> str:
    """Returns the kind that a file has by its name, if it is another one; `where` is its path and the line."""
    name = where.rpartition(":")[0].lower()
    kinds = [kind for kind, suffixes in SUFFIXES.items() if kind != "jsonl" and name.endswith(suffixes)]
    return f"; or set data.kind={kinds[0]}, which the name of the file says" if kinds else ""


def _hint(seen: object) -> str:
    """Returns a hint for a file that is one JSON list."""
    is_list = isinstance(seen, list) or (isinstance(seen, str) and seen.lstrip().startswith("["))
    return " (a file that is one list is converted by: jq -c '.[]' IN > OUT)" if is_list else ""


def _refuse_fault(text: str, *, where: str) -> None:
    """Raises DataError for faults that the parser reports without a position or accepts silently."""
    open_: list[set[str]] = []
    previous = ""
    for token in _TOKEN.finditer(text):
        fault = _fault(token[0], previous, open_)
        if fault is not None:
            problem, remedy = fault
            raise DataError(f"{where}: {problem} at column {token.start() + 1} of {shorten(text.strip())}; {remedy}")
        previous = token[0]


def _fault(token: str, previous: str, open_: list[set[str]]) -> tuple[str, str] | None:
    """Returns the problem with a token, and its remedy. Updates `open_`, the keys of the open objects."""
    if token in "{[":
        open_.append(set())
        if len(open_) > DEEPEST:
            return f"nested deeper than {DEEPEST} levels", "write it flatter, or as text"
    elif token in "}]":
        del open_[-1:]
    elif token == ":" and open_:
        if previous in open_[-1]:
            return f"the key {previous} a second time in its object", "keep one of them"
        open_[-1].add(previous)
    elif token.lstrip("-") in {"NaN", "Infinity"}:
        return f"{token}, which is not JSON", "write null, or leave the key out"
    elif token.lstrip("-").isdigit() and len(token) > MOST_DIGITS:
        return f"an integer of {len(token.lstrip('-'))} digits", "write it as text, in quotes"
    return None
