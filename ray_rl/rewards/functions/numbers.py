"""Reads numbers exactly, in linear time: a policy may write megabytes of text."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from ray_rl.data.columns import shorten
from ray_rl.errors import DataError
from ray_rl.rewards.functions.answers import answer_of, gold_of, last_box

Value = Decimal | Fraction

_PLAIN = re.compile(
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})++|[0-9]++)(?:[.][0-9]++)?|[.][0-9]++)(?P<exponent>[eE][+-]?[0-9]{1,3})?"
)
"""1,234,567 or 1234567, with decimals, or .5; with an exponent."""
_TOKEN = re.compile(r"(?:[0-9]|[.](?=[0-9]))(?:[0-9.,:/+-]|[eE](?=[+-]?[0-9])|\^(?=\{?[0-9a-zA-Z\\-])|_(?=\{?[0-9]))*+")
"""A digit with everything next to it that can be part of a number, or that shows that it is not one (a date)."""
_BEHIND_A_POWER = re.compile(r"(?:\^|(?<=\w)_)\{?-?$")
_SIGN = re.compile(r"(?<![\w.)\]}])(?P<sign>[-+])[$]?$")
"""A sign belongs to the number ("x = -5") unless it follows a word, a digit or a bracket ("17-25")."""

_TIDIED = (
    (re.compile(r"\\!|\\left|\\right(?!arrow)"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile(r"\\[dt]frac(?![a-z])"), r"\\frac"),
    (re.compile("\\^\\{?\\\\circ\\}?|\\\\degree|\u00b0"), ""),
    (re.compile("(?<=[0-9])(?:\\\\,|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"(?<!\\)\\[,;: ]"), " "),
    (re.compile(r"\\frac\{([0-9]+)\}\{([0-9]+)\}"), r" \1/\2"),
    (re.compile(r"\\frac([0-9])([0-9])"), r" \1/\2"),
    (re.compile(r"([0-9])[ ]?/[ ]?([0-9])"), r"\1/\2"),
    (
        re.compile("([0-9])[ ]?(?:\\\\times|\\\\cdot|\u00d7|[*])[ ]?10[ ]?\\^[ ]?\\{?(-?[0-9]{1,3})\\}?(?![0-9])"),
        r"\1e\2",
    ),
    (
        re.compile(
            r"(\\(?:text|mathrm|textrm|mbox)\{[^{}]{0,40}\}|\b(?:[cmdk]?m|in|ft|yd|mi|inch(?:es)?|feet|units?))"
            r"[ ]?\^\{?[23]\}?"
        ),
        r"\1",
    ),
    (re.compile("(?:\\\\(?:text|mathrm|textrm|mbox)\\{[ ]*)?\\b(cm|m|km|mm|ft|in)[\u00b2\u00b3]"), r"\1"),
)
_MIXED = re.compile(r"(?<![0-9.,/])(?P<whole>[0-9]{1,9})[ ]+$")
_GOLD_UNIT = re.compile(
    r"(?!.*\b(?:and|or|to|hundred|thousand|million|billion|trillion|dozen|[kKM])\b)"
    r"(?:[ ~.%$\u20ac\u00a3]|\\(?:text|mathrm|textrm|textbf|mbox)[ ]?\{[^{}0-9]*\}|\b[mgslhKCFVWJN]\b|[^\W\d_]{2,})*+"
)
"""What may follow the number in a column: a unit in words that is not part of the number."""
_GOLD_NAME = re.compile(r"[^\W\d_][ ]?=")
_FRACTION_DIGITS = 50
_CONTEXT_CHARACTERS = 64


def last_number(text: str) -> Value | None:
    r"""Returns the exact value of the last number in the text; None if there is none, or the last one is not a number.

    Commas may separate thousands. Fractions and mixed numbers are numbers. Ratios, times, dates, powers and lists
    without spaces ("2:3", "10:30", "2024-01-05", "2^10", "1,2,3") are not.
    """
    text = tidied(_around_last_digit(text))
    last = None
    for last in _TOKEN.finditer(text):  # noqa: B007
        pass
    return None if last is None else _value(text, last)


def _around_last_digit(text: str) -> str:
    """Returns the part of a text that determines its last number: the word with its last digit, and the text around."""
    last = max(text.rfind(digit) for digit in "0123456789")
    if last < 0:
        return ""
    word = max(text.rfind(space, 0, last) for space in " \n\t")
    return text[max(0, word - _CONTEXT_CHARACTERS) : last + _CONTEXT_CHARACTERS]


def only_number(text: str) -> Value | None:
    """Returns the number of a text that has exactly one, with any units and words; None for no number or several."""
    text = tidied(text.rpartition("=")[2])
    tokens = _TOKEN.finditer(text)
    token, second = next(tokens, None), next(tokens, None)
    if (
        token is not None
        and second is not None
        and next(tokens, None) is None
        and _MIXED.search(text[: second.start()])
    ):
        token, second = second, None  # "2 1/2"
    return None if token is None or second is not None else _value(text, token)


def number_answer(completion: str) -> Value | None:
    """Returns the number in the answer of a completion: in its last box, or else the last one after its thinking."""
    answer = answer_of(completion)
    return only_number(_without_spaces(answer.text)) if answer.is_boxed else last_number(answer.text)


def number_gold(value: Any) -> Decimal | None:
    """Returns the number in a column; None if the column is None, which means no opinion.

    It may have a currency, a percent sign, units, LaTeX, and separators of thousands.

    Raises:
        DataError: the value is not exactly one number. A fraction is refused, because it needs `math_verify`.
    """
    gold = gold_of(value)
    if gold is None or isinstance(gold, Decimal):
        return gold
    if not isinstance(gold, str):
        return Decimal(gold) if isinstance(gold, int) else Decimal(repr(gold))
    text = gold.strip().strip("$").removeprefix("\\(").removesuffix("\\)").strip()
    boxed = last_box(text)
    text = _without_spaces(tidied(text if boxed is None else boxed).strip())
    text = _GOLD_NAME.sub("", text, count=1).strip()
    sign = text[:1] if text[:1] in {"-", "+"} else ""
    text = text[len(sign) :].lstrip(" $\u20ac\u00a3")
    if not sign and text[:1] in {"-", "+"}:
        sign, text = text[:1], text[1:].lstrip()
    match = _PLAIN.match(text)
    if match is None or _GOLD_UNIT.fullmatch(text[match.end() :]) is None:
        raise DataError(
            f"the answer {shorten(value)} is not exactly one number; use math_verify or choice, or correct the data"
        )
    number = _decimal(match)
    return number.copy_negate() if sign == "-" else number


def tidied(text: str) -> str:
    """Returns the text with the parts of numbers that are LaTeX or typographic signs written in ASCII."""
    for pattern, replacement in _TIDIED:
        text = pattern.sub(replacement, text)
    return text


def _without_spaces(text: str) -> str:
    """Returns 1000000 for 1 000 000, if the text has nothing else."""
    match = re.fullmatch(r"\s*([-+]?[0-9]{1,3}(?:[ ~][0-9]{3})+)\s*", text)
    return text if match is None else re.sub("[ ~]", "", match[1])


def _value(text: str, token: re.Match[str]) -> Value | None:
    start, found = token.start(), token[0].rstrip(".,:/+-")
    if _BEHIND_A_POWER.search(text[max(0, start - 4) : start]):
        return None
    if found.count("-") < 2 and "/" not in found and ":" not in found:
        # The last number of "17-25" is 25. With two signs it is a date.
        offset = max((i for i, c in enumerate(found) if c in "+-" and found[i - 1] not in "eE"), default=-1) + 1
        start, found = start + offset, found[offset:]
    match = _PLAIN.fullmatch(found)
    value = _decimal(match) if match is not None else _fraction(text, start, found)
    if value is None:
        return None
    sign = _SIGN.search(text[max(0, start - 4) : start])
    return -value if sign is not None and sign["sign"] == "-" and value else value


def _decimal(match: re.Match[str]) -> Decimal:
    return Decimal(match["digits"].replace(",", "") + (match["exponent"] or ""))


def _fraction(text: str, start: int, found: str) -> Fraction | None:
    upper, slash, lower = found.partition("/")
    above, below = _PLAIN.fullmatch(upper), _PLAIN.fullmatch(lower)
    if not slash or above is None or below is None or len(found) > _FRACTION_DIGITS:
        return None
    try:
        value = Fraction(_decimal(above)) / Fraction(_decimal(below))
    except (ZeroDivisionError, InvalidOperation):
        return None
    mixed = _MIXED.search(text[max(0, start - 12) : start])
    return value if mixed is None else value + int(mixed["whole"])
