"""Reads answers out of text."""

import re
from decimal import Decimal
from typing import Any

_MINUS = "-\u2212"  # hyphen, and the minus sign proper
_NUMBER = re.compile(
    # A sign belongs to the number unless it follows a word, a digit or a bracket: "x = -5", but "17-25".
    rf"(?:(?<![\w.)\]}}])(?P<sign>[{_MINUS}+]))?[$]?"
    # 1,234,567 or 1234567, with decimals ("3.50"; the dot of "42." ends the sentence), or .5; with an exponent.
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:[.][0-9]+)?|(?<![0-9])[.][0-9]+)"
    r"(?P<exponent>[eE][+-]?[0-9]{1,3}(?![0-9]))?"
)


def last_number(text: str) -> Decimal | None:
    """The last number in the text, exactly; None when there is none.

    Thousands may be separated by commas. A fraction is two numbers: of "1/2" the last is 2.
    """
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    value = Decimal(last["digits"].replace(",", "") + (last["exponent"] or ""))
    return value.copy_negate() if last["sign"] and last["sign"] in _MINUS else value


def final_answer(value: Any) -> str:
    """The answer that a column holds: what follows the last "####" as in GSM8K, or all of it."""
    return str(value).rpartition("####")[2].strip()
