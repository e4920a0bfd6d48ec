r"""Finds the final answer in a completion, and the answer in a column of a data set. Takes linear time."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_rl.data.columns import shorten
from ray_rl.errors import DataError

_THINKING = r"think|thinking|thoughts?|reasoning|reflection|seed:think"
_THINKING_ENDS = re.compile(
    rf"</(?:{_THINKING})>|<\|end_of_thought\|>|\[/THINK\]|\u25c1/think\u25b7|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_THINKING_STARTS = re.compile(rf"<(?:{_THINKING})>|<\|begin_of_thought\|>|\[THINK\]|\u25c1think\u25b7", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*+(?P<brace>\{)?")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_JOINED = re.compile(
    r"(?:[\s$.,;:/&*]|\\[()\[\],;!]|\\q?quad\b|\\(?:text|mbox)\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)*+", re.IGNORECASE
)
"""The text between boxes that form one answer together: "$\\boxed{5}$ or $\\boxed{6}$"."""

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""The full-width characters of Chinese and Japanese texts, with their ASCII equivalents."""

BOX_CHARACTERS = 16_384
"""A longer box is not an answer. This bounds the time for a text with many open boxes."""
_BOXES = 16
_JOINT_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Answer:
    """The part of a completion that contains its answer."""

    text: str
    is_boxed: bool
    r"""Whether the text is the whole content of a \boxed{...}, or of several joined boxes, separated by commas."""


def answer_of(completion: str) -> Answer:
    r"""Returns the part of a completion that contains its answer, which comes after the thinking.

    It is the last box in the last `<answer>` tag, or the whole tag if it has no box; without a tag, the last box or the
    whole text. Boxes with only "and", "or" or punctuation between them are one answer, a list. A box that is not closed
    is empty.
    """
    text = _narrow(after_thinking(completion))
    end = text.rfind("</answer>")
    if end >= 0:
        start = text.rfind("<answer>", 0, end)
        text = text[start + len("<answer>") : end] if start >= 0 else text[:end]
    boxed = last_box(text)
    return Answer(text, is_boxed=False) if boxed is None else Answer(boxed, is_boxed=True)


def after_thinking(text: str) -> str:
    """Returns the text after the last marker that ends thinking, up to a marker that starts it again.

    If the thinking does not end, this is the text before it, which is usually empty.
    """
    end = 0
    for match in _THINKING_ENDS.finditer(text):
        end = match.end()
    rest = text[end:]
    start = _THINKING_STARTS.search(rest)
    return rest if start is None else rest[: start.start()]


def last_box(text: str) -> str | None:
    r"""Returns the content of the last \boxed{...} or \fbox{...}; None if there is none.

    Earlier boxes belong to it if only connectives are between them. Equal ones count once.
    """
    matches = list(_outer_boxes(text))
    if not matches:
        return None
    contents: list[str] = []
    start = len(text)
    for index, (box_start, box_end, content) in enumerate(reversed(matches)):
        if index:
            between = text[box_end:start]
            if len(between) > _JOINT_CHARACTERS or _JOINED.fullmatch(between) is None:
                break
        contents.insert(0, content.strip())
        start = box_start
    return ", ".join(dict.fromkeys(contents))


def _outer_boxes(text: str) -> list[tuple[int, int, str]]:
    """Returns start, end and content of the last boxes, without those inside other boxes."""
    boxes: list[tuple[int, int, str]] = []
    for match in list(_BOX.finditer(text))[-_BOXES:]:
        if boxes and match.start() < boxes[-1][1]:
            continue
        end, content = _box(text, match)
        boxes.append((match.start(), end, content))
    return boxes


def _box(text: str, match: re.Match[str]) -> tuple[int, str]:
    """Returns the end of a box and its content, which is empty if the box is not closed."""
    start = match.end()
    if match["brace"] is None:  # "\boxed 5"
        word = text[start : start + BOX_CHARACTERS].split(maxsplit=1)
        content = word[0].rstrip("$.,") if word else ""
        return start + len(content), content
    depth = 1
    for brace in _BRACE.finditer(text, start, start + BOX_CHARACTERS):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if not depth:
                content = text[start : brace.start()]
                inner = last_box(content) if "\\boxed" in content or "\\fbox" in content else None
                return brace.end(), content if inner is None else inner
    return start, ""


def gold_of(value: Any) -> Any:
    """Returns the answer in a column: a text or a number. None stays None: the answer is unknown.

    In a text with "####" (GSM8K) it is the part after the last one. From a list with exactly one answer, or the JSON
    text of such a list (as in Skywork-OR1), it is that answer.

    Raises:
        DataError: the value is a mapping, a list without or with several answers, a boolean, nan, infinity, or a text
            without an answer.
    """
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value))
        raise DataError(
            f"the answer is a mapping with the keys {keys[:80]}; set the column of the reward to one of its entries, "
            "for example column: reward_model.ground_truth"
        )
    if isinstance(value, str):
        return _gold_text(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if len(value) != 1:
            raise DataError(f"the answer {shorten(value)} is a list of {len(value)}; give exactly one answer")
        return gold_of(value[0])
    if value is None:
        return None
    if isinstance(value, bool) or (not isinstance(value, int | float) and not _is_decimal(value)):
        raise DataError(f"the answer {shorten(value)} is a {type(value).__name__}; give a number or text")
    if not isinstance(value, int) and not math.isfinite(value):
        raise DataError(f"the answer is {value}; give a finite number or text")
    return value


def _gold_text(value: str) -> str:
    text = _narrow(value).rpartition("####")[2].strip()
    if (text.startswith('["') and text.endswith('"]')) or re.fullmatch(r"\[\s*-?[\d.]+\s*\]", text):
        try:
            listed = json.loads(text)
        except ValueError:
            return text
        return str(gold_of(listed))
    if text.casefold() in {"", "none", "null", "nan", "n/a", "na", "nil", "unknown", "undefined"}:
        raise DataError(f"the answer {shorten(value)} is no answer; give one, or null to have no opinion on the row")
    return text


def _narrow(text: str) -> str:
    """Returns the text with full-width digits, letters and signs as ASCII."""
    return text if text.isascii() else text.translate(_FULL_WIDTH)


def _is_decimal(value: Any) -> bool:
    from decimal import Decimal

    return isinstance(value, Decimal)
