r"""Reads the letter of a multiple-choice answer: "(B)", "**B**", "The answer is B.", \boxed{\text{(B)}}."""

import re
from typing import Any

from ray_rl.data.columns import shorten
from ray_rl.errors import DataError
from ray_rl.rewards.functions.answers import answer_of, gold_of, last_box

_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox|boldsymbol)\s*+\{|\\[()\[\]]|[*$`{}]|\\[,;!: ]")
_WHOLE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|final\s+)?(?:answer|option|choice)\s*(?:is)?\s*:?\s*)?"
    r"(?:\(\s*(?P<round>[A-Za-z])\s*\)|\[\s*(?P<square>[A-Za-z])\s*\]|(?P<bare>[A-Za-z]))"
    r"(?:\s*[.):,]\s*|\s*$|(?<=[)\]])\s*)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_ANCHOR = re.compile(
    r"\b(?:answer|option|choice)s?\b(?:\s+(?:should|must|would|will)\s+be\b|\s+is\b|\s+are\b|\s+was\b)?"
    r"(?:\s+(?:therefore|thus|clearly|option|choice|letter|the)){0,2}\s*[:=]?\s*"
    r"(?P<open>[(\[])?\s*(?P<letter>[A-Za-z])(?![A-Za-z0-9'])(?:\s*[)\]])?(?=(?P<behind>[^\n]{0,24}))",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"[(\[]\s*(?P<letter>[A-Z])\s*[)\]](?=(?P<behind>[^\n]{0,24}))")
_ANOTHER = re.compile(r"\s*(?:,|/|&|;|\bor\b|\band\b)+\s*(?:\bor\b|\band\b)?\s*[(\[]?\s*[A-Z]\s*(?:[)\].,;:]|$)")
"""A second letter after the first: then the completion does not choose one."""

_WHOLE_CHARACTERS = 200

SEARCHED_CHARACTERS = 4_000
"""How much of the end of a completion is searched for its choice."""


def choice_gold(value: Any, *, letters: str) -> str | None:
    r"""Returns the letter in a column, as a capital; None if the column is None, which means no opinion.

    The letter may be in brackets or \text{...}, and the text of the choice may follow it: "B", "(B)", "B. Paris".

    Args:
        value: the value of the column.
        letters: the letters of the choices.

    Raises:
        DataError: the value is not exactly one of the letters.
    """
    gold = gold_of(value)
    if gold is None:
        return None
    if not isinstance(gold, str):
        raise DataError(
            f"the answer {shorten(value)} is a number, and `choice` compares letters; write the letter of the choice"
        )
    boxed = last_box(gold)
    letter = _whole(gold if boxed is None else boxed)
    if letter is None or letter not in letters:
        raise DataError(
            f"the answer {shorten(value)} is not exactly one of the choices {', '.join(letters)}; correct the data, "
            "set `letters`, or use another reward"
        )
    return letter


def choice_answer(completion: str) -> str | None:
    """Returns the letter that a completion chooses; None if it chooses none or several.

    It is the letter in the last box or `<answer>` tag, or else the one after the last "answer is", "option" or
    "choice", or else the last one in brackets. A completion that is only a letter chooses that letter. A small letter
    counts only if its place contains nothing else.
    """
    answer = answer_of(completion)
    text = answer.text[-SEARCHED_CHARACTERS:]
    if answer.is_boxed:
        return _whole(text)
    text = _MARKUP.sub("", text).strip()
    whole = _whole(text) if len(text) < _WHOLE_CHARACTERS and not _ANCHOR.search(text) else None
    if whole is not None:
        return whole
    for pattern in (_ANCHOR, _BRACKETED):
        last = None
        for match in pattern.finditer(text):
            if pattern is _BRACKETED or match["open"] or match["letter"].isupper():
                last = match
        if last is not None:
            is_article = pattern is _ANCHOR and not last["open"] and re.match(r"\s+[a-z]", last["behind"])
            if is_article and last["letter"] in "AI":
                continue  # "the answer is A large dog"
            return None if _ANOTHER.match(last["behind"]) else last["letter"].upper()
    return None


def _whole(text: str) -> str | None:
    """Returns the letter of a short text that is one letter, possibly with the text of the choice after it; or None."""
    plain = _MARKUP.sub("", text).strip()
    match = _WHOLE.fullmatch(plain)
    if match is None or _ANOTHER.match(match["rest"]):
        return None
    letter = match["round"] or match["square"] or match["bare"]
    if plain[: match.start("rest")].rstrip().endswith(",") and match["rest"].strip():
        return None  # "A, B" or "A, because"
    rest = match["rest"].strip()
    if re.match(r"(?:or|and)\b", rest) or re.search(r"(?:^|[\s(])(?:[A-Z][.)]|\([A-Z]\))(?![A-Za-z])", rest):
        return None
    return str(letter).upper()
