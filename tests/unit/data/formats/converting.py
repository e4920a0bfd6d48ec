"""Converts rows that a test writes, as a run does."""

from typing import Any

from ray_rl.data.formats.choose import FORMATS
from ray_rl.data.formats.record import Dropped, Record
from ray_rl.data.records import SourceRecord
from ray_rl.types import Message


def source_records(*contents: Any) -> list[SourceRecord]:
    return [SourceRecord(content, f"t.jsonl:{line}", f"t.jsonl:{line}") for line, content in enumerate(contents, 1)]


def convert(name: str, *contents: Any) -> list[Record | Dropped]:
    format = FORMATS[name]
    return [found for unit in format.units(source_records(*contents)) for found in format.convert(unit)]


def reasons(name: str, *contents: Any) -> list[str]:
    """Returns why each of these rows gives no record."""
    dropped = convert(name, *contents)
    assert all(isinstance(each, Dropped) for each in dropped), dropped
    return [each.reason for each in dropped if isinstance(each, Dropped)]


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)
