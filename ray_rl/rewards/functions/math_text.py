"""Compares mathematical answers as text: gives each one spelling, and decides what needs no algebra, without sympy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ray_rl.data.columns import shorten
from ray_rl.errors import DataError
from ray_rl.rewards.functions.answers import answer_of, gold_of, last_box
from ray_rl.rewards.functions.choices import choice_answer, choice_gold

CHOICES = "ABCDEFGHIJ"
"""A gold that is one of these capitals is treated as a choice. As a variable it would compare the same way."""

_SPELLINGS = (
    (re.compile(r"\\!|\\left(?![a-z])|\\right(?![a-z])|\\(?:display|text)style(?![a-z])"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dtc]frac(?![a-z])"), r"\\frac"),
    (re.compile(r"\\(?:mathrm|textrm|textbf|mathbf|mbox|textit|mathit|operatorname)(?=\s*\{)"), r"\\text"),
    (re.compile("\\^\\s*\\{?\\s*\\\\circ\\s*\\}?|\\\\degree(?![a-z])|\u00b0"), ""),
    (re.compile("\\s*[\u20ac\u00a3\u00a5\u20b9]\\s*"), ""),
    (re.compile(r"\\[$]|[$]|(?<!\\)\\[()\[\]](?![a-z])|[*]{2}"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|~|[\u00a0\u2009\u202f]"), " "),
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile("\u221a\\s*\\(([^()]*)\\)"), r"\\sqrt{\1}"),
    (re.compile("\u221a\\s*([0-9]+|[a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile("\u03c0"), r"\\pi "),
    (re.compile("\u221e"), r"\\infty "),
    (re.compile("\u2264"), r"\\le "),
    (re.compile("\u2265"), r"\\ge "),
    (re.compile("[\u00d7]"), r"\\times "),
    (re.compile("[\u00b7]"), r"\\cdot "),
    (re.compile("\u00bd"), r"\\frac{1}{2}"),
    (re.compile("\u00bc"), r"\\frac{1}{4}"),
    (re.compile("\u00be"), r"\\frac{3}{4}"),
    (re.compile("\u2153"), r"\\frac{1}{3}"),
    (re.compile("\u2154"), r"\\frac{2}{3}"),
    (re.compile("\u00b2"), "^2"),
    (re.compile("\u00b3"), "^3"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\text\s*\{\s*\(?([A-Za-z])\)?\s*\}"), r"\1"),
    (re.compile(r"\\text\s*\{([^{}]*[0-9][^{}]*)\}"), r"\1"),
    (re.compile(r"\\varnothing(?![a-z])"), r"\\emptyset"),
    (re.compile(r"\^\s*-\s*([0-9]+)"), r"^{-\1}"),
)
_GROUPED = re.compile(
    r"(?<![0-9.,])([0-9]{1,3}(?:,[0-9]{3})++|[0-9]{1,3}(?:[ ][0-9]{3})++)(?![0-9]|[.,][0-9]|[ ,]+[0-9])"
)
_SCIENTIFIC = re.compile(
    r"(?<![\w\\.^{])(?P<number>[0-9]+(?:[.][0-9]+)?)"
    r"(?:[eE](?P<e>[+-]?[0-9]{1,2})|\s*\\(?:times|cdot)\s*10\s*\^\s*\{?\s*(?P<power>[+-]?[0-9]{1,2})\s*\}?)(?![\w.^{!])"
)
_MIXED = re.compile(
    r"(?<![\w\\.,/^{}])(?P<whole>[0-9]{1,9})\s*"
    r"(?:\\frac\s*\{\s*(?P<a>[0-9]{1,9})\s*\}\s*\{\s*(?P<b>[0-9]{1,9})\s*\}|(?<=\s)(?P<c>[0-9]{1,9})/(?P<d>[0-9]{1,9})(?![0-9/]))"
)
_REPEATING = re.compile(
    r"(?<![\w\\.^])(?P<whole>[0-9]{0,20})[.](?P<fixed>[0-9]{0,20})\\(?:overline|bar|dot)\s*\{(?P<period>[0-9]{1,20})\}(?![0-9_\\])"
)
_NO_EXPRESSION = re.compile(
    r"""[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{1,2}/[0-9]{1,2}/[0-9]{2,4}|0x[0-9a-fA-F]+|[0-9]+'\s*[0-9]+(?:"|'')?"""
    r"|[0-9]+(?:[.][0-9]+){2,}|[0-9]{1,3}(?:[ .][0-9]{3})+,[0-9]+|[0-9]{1,3}(?:_[0-9]{3})+"
)
"""Dates, versions, feet with inches, and numbers in other notations: the library would read other numbers."""
_NAMED_POINTS = re.compile(r"\\(?:angle|triangle|overline|overrightarrow|square|widehat)\s*\{?\s*[A-Z]{2,6}")
_AS_TEXT = re.compile(
    r"\\(?:mid|cup|cap|pmod|bmod|equiv|geq?|leq?|[cl]?dots|angle|triangle|wedge|vee|neg|parallel|perp|subset|subseteq|to|"
    r"in|approx|sim|overline|dot)(?![a-zA-Z])|\\begin\{cases\}"
)
"""Mathematical notation that the library does not always read."""
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:[.][0-9]*)?|[.][0-9]+)")
_FRACTION = re.compile(
    r"(?P<sign>[-+]?)\s*(?:\\frac\s*\{\s*(?P<a>-?[0-9]+)\s*\}\s*\{\s*(?P<b>[0-9]+)\s*\}|(?P<c>[0-9]+)\s*/\s*(?P<d>[0-9]+))"
)
_WITH_UNIT = re.compile(
    r"(?P<number>[-+]?(?:[0-9]+(?:[.][0-9]+)?|[.][0-9]+|\\frac\{[0-9]+\}\{[0-9]+\}|[0-9]+/[0-9]+|[0-9]{1,2}:[0-9]{2}))\s*"
    r"(?P<unit>(?:\\text\s*\{[^{}]*\}(?:\^\{?[23]\}?)?|\\?%|(?:[a-zA-Z][a-zA-Z.]+|[mgslhLKCFVWJN])(?:\^\{?[23]\}?)?|\s)+)"
)
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s,'.-]+[^\W\d_]+)*[.!]?")
_PRODUCT = re.compile(r"[xyzabc]{2,3}")
"""Letters that are a product of variables, not a word."""
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_NAMED = re.compile(r"\s*[a-zA-Z]\s*=(?!=)\s*")
_COLONS = re.compile(r"[0-9]+(?:\s*:\s*[0-9]+)+")
_LAST_COLONS = re.compile(r"(?<![0-9:.])[0-9]+(?:\s*:\s*[0-9]+)+(?![0-9.]*[0-9])")
_CLOCK = re.compile(r"[0-9]{1,2}:[0-9]{2}")
_BASE = re.compile(r"(?P<digits>[0-9A-F]+)_\{?(?P<base>[0-9]{1,2})\}?")
_SENTENCE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}(?![a-zA-Z]*\()")
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}(?![a-zA-Z]*\()")
_FUNCTIONS = frozenset(
    {
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "exp"),
        *("sqrt", "min", "max", "gcd", "lcm", "mod", "det", "deg", "dim", "begin", "end", "pmatrix", "bmatrix"),
        *("vmatrix", "matrix", "cases", "array", "infty", "inf", "and", "for", "all", "real", "integer", "integers"),
    }
)
"""Words that are part of expressions."""
_UNITS = {
    unit: names[0]
    for names in (
        ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
        ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
        ("m", "meter", "meters", "metre", "metres"),
        ("km", "kilometer", "kilometers", "kilometre", "kilometres"),
        ("in", "inch", "inches"),
        ("ft", "foot", "feet"),
        ("mi", "mile", "miles"),
        ("s", "sec", "second", "seconds"),
        ("min", "minute", "minutes"),
        ("h", "hr", "hour", "hours"),
        ("day", "days"),
        ("week", "weeks"),
        ("month", "months"),
        ("year", "years"),
        ("g", "gram", "grams"),
        ("kg", "kilogram", "kilograms"),
        ("cent", "cents"),
        ("dollar", "dollars"),
        ("am", "a.m.", "a.m"),
        ("pm", "p.m.", "p.m"),
    )
    for unit in names
}
"""Answers with two different units of this table differ. Other units are ignored."""

TAIL_CHARACTERS = 2000
"""How much of the end of a completion is searched for an answer that is neither in a box nor in a tag."""
SHORT_CHARACTERS = 300
_LONG_NUMBER = 20_000
_LONG_FRACTION = 4000


@dataclass(frozen=True, slots=True)
class Candidate:
    """The answer of a completion."""

    text: str
    is_exact: bool
    """Whether the whole text is the answer; if not, the answer is somewhere in it."""


def spelled(text: str) -> str:
    """Returns one spelling for text that can be written in many ways: delimiters, spaces, fractions, Unicode signs."""
    text = text.strip()
    boxed = last_box(text)
    text = text if boxed is None else boxed
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _GROUPED.sub(lambda match: re.sub("[ ,]", "", match[1]), text)
    text = _SCIENTIFIC.sub(_written_out, text)
    text = _MIXED.sub(_improper, _REPEATING.sub(_period, text))
    return " ".join(text.split()).strip().rstrip(".").strip()


def _written_out(match: re.Match[str]) -> str:
    """Returns 0.0015 for 1.5e-3."""
    return format(Decimal(f"{match['number']}e{match['e'] or match['power']}"), "f")


def _improper(match: re.Match[str]) -> str:
    """Returns 5/2 for 2 1/2. Before an improper fraction, a whole number is a factor and stays."""
    whole, above, below = int(match["whole"]), int(match["a"] or match["c"]), int(match["b"] or match["d"])
    return rf"\frac{{{whole * below + above}}}{{{below}}}" if above < below else match[0]


def _period(match: re.Match[str]) -> str:
    """Returns 1/6 for 0.1666..., written with a line over its period."""
    fixed, period = match["fixed"], match["period"]
    nines = 10 ** len(period) - 1
    value = Fraction(int((match["whole"] or "0") + fixed) * nines + int(period), 10 ** len(fixed) * nines)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def math_gold(value: Any) -> str | None:
    """Returns the expression, the words or the choice in a column, in one spelling; None if the column is None.

    Raises:
        DataError: the value is not exactly one of these: it is empty, several, or an expression mixed with words.
    """
    gold = gold_of(value)
    if gold is None:
        return None
    text = spelled(_digits_of(gold))
    if not text:
        raise DataError(f"the answer {shorten(value)} is empty; correct the data")
    if _NO_EXPRESSION.fullmatch(text):
        raise DataError(
            f"the answer {shorten(value)} is not exactly one expression: it is a date, or a number in an unknown "
            "notation; write it as a plain number, or correct the data"
        )
    if needs_algebra(text):
        outside = _NAMED_POINTS.sub(" ", _TEXT.sub(" ", text))
        words = [word for word in _SENTENCE.findall(outside) if word.casefold() not in _FUNCTIONS]
        if words:
            raise DataError(
                f"the answer {shorten(value)} is not exactly one expression: it contains the words "
                f"{', '.join(words[:3])[:60]}; correct the data"
            )
    return text


def needs_algebra(gold: str) -> bool:
    """Returns whether a gold, in one spelling, is not a number (with or without unit), words, a ratio or a choice."""
    return not (_number_of(gold) is not None or _words(gold) is not None or _choice(gold) or _ratio(gold))


def is_compared_as_text(gold: str) -> bool:
    """Returns whether a gold that the library cannot read is still one expression, such as a set with a condition."""
    return _AS_TEXT.search(gold) is not None or _ratio(gold) is not None


def same_text(gold: str, answer: str) -> bool:
    """Returns whether two expressions are written in the same way, ignoring space."""
    return "".join(gold.split()) == "".join(answer.split())


def candidate_of(completion: str) -> Candidate:
    """Returns the answer of a completion.

    It is the last box, or the last line after "####", or the text after the last "answer is", or else somewhere in the
    end of the completion.
    """
    answer = answer_of(completion)
    if answer.is_boxed:
        return Candidate(answer.text, is_exact=True)
    text = answer.text.strip()
    if len(text) > TAIL_CHARACTERS:  # starts at a whole word: the end of a number would be another number
        text = text[-TAIL_CHARACTERS:]
        text = "".join(text.split(maxsplit=1)[1:])
    hashes = text.rpartition("####")
    if hashes[1] and "\n" not in hashes[2].strip():
        return Candidate(hashes[2], is_exact=True)
    anchored = None
    for anchored in _ANSWER.finditer(text):  # noqa: B007
        pass
    if anchored is not None:
        return _anchored(text[anchored.end() :])
    return Candidate(text, is_exact=len(text) <= SHORT_CHARACTERS and _is_bare(text))


_ANSWER = re.compile(
    r"\banswer\b(?:[^\n.:=$\\]{0,60}?\b(?:is|are|be)\b|\s*(?=[:=]))\s*[:=]?\s*[*_]{0,2}\s*", re.IGNORECASE
)
_MATHS = re.compile(
    r"[^\n$\\]{0,40}?(?:\$\$?(?P<dollar>[^$]+)\$|\\\((?P<round>.+?)\\\)|\\\[(?P<square>.+?)\\\])", re.DOTALL
)


def _anchored(rest: str) -> Candidate:
    maths = _MATHS.match(rest)
    if maths is not None:
        return Candidate(maths["dollar"] or maths["round"] or maths["square"], is_exact=True)
    line = rest.partition("\n")[0].strip()
    sentence = re.split(r"[.!](?=\s|$)", line, maxsplit=1)[0].strip(" *_`")
    return Candidate(sentence or line, is_exact=_is_bare(sentence))


def _is_bare(text: str) -> bool:
    """Returns whether a text is only a number, words, a choice or a formula, and not a sentence with one of these."""
    plain = spelled(text)
    if not needs_algebra(plain):
        return True
    words = [word for word in _WORD.findall(_TEXT.sub(" ", plain)) if word.casefold() not in _FUNCTIONS]
    return "\n" not in text and all(_PRODUCT.fullmatch(word) for word in words)


def quick_verdict(completion: str, gold: str) -> float | None:
    """Returns 1 or 0 if the texts alone decide; None if the decision needs algebra.

    Args:
        completion: decoded text.
        gold: a result of `math_gold`.
    """
    candidate = candidate_of(completion)
    if not candidate.text.strip():
        return 0.0
    letter = _choice(gold)
    if letter is not None:
        return float((choice_answer(completion) or spelled(candidate.text)) == letter)
    answer = spelled(candidate.text) if len(candidate.text) <= _LONG_NUMBER + TAIL_CHARACTERS else candidate.text
    if not answer:
        return 0.0
    if answer == gold:
        return 1.0
    words = _words(gold)
    if words is not None:
        return float(_words(answer) == words)
    if candidate.is_exact:
        return _same(gold, answer)
    ratio = _ratio(gold)
    if ratio is None:
        return None
    last = _LAST_COLONS.findall(answer)
    return float(bool(last) and same_text(last[-1], ratio))


def _same(gold: str, answer: str) -> float | None:
    if _words(answer) is not None:
        return 0.0
    ours, theirs = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if ours is not None and theirs is not None:
        return float(ours.groups() == theirs.groups())
    if _CLOCK.fullmatch(_bare_number(gold)) or _CLOCK.fullmatch(_bare_number(answer)):
        same = _bare_number(gold) == _bare_number(answer)
        return float(same and not _units_differ(gold, answer))
    if _units_differ(gold, answer):
        return 0.0
    right, given = _number_of(gold), _number_of(answer)
    if right is None or given is None:
        return None
    if "%" in gold or "%" in answer:
        meant = ((a, b) for a in _percent(right, gold) for b in _percent(given, answer))
        return float(any(abs(a - b) < Fraction(1, 1_000_000) for a, b in meant))
    if right == given:
        return 1.0
    # For the library, numbers that agree in six decimals are equal.
    return 0.0 if abs(right - given) > Fraction(1, 100_000) else None


def _percent(value: Fraction, text: str) -> tuple[Fraction, ...]:
    """Returns the possible values of a number: 12 and 0.12 for 12%."""
    return (value, value / 100) if "%" in text else (value,)


def _digits_of(gold: Any) -> str:
    if isinstance(gold, str):
        return gold
    if isinstance(gold, int):
        return format(Decimal(gold), "f")  # str() refuses more than 4,300 digits
    return format(Decimal(repr(gold)) if isinstance(gold, float) else gold, "f")


def _number_of(text: str) -> Fraction | None:
    text = _NAMED.sub("", text, count=1) if _NAMED.match(text) else text
    text = _bare_number(text)
    if len(text) > _LONG_NUMBER:
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(Decimal(text))
    match = _FRACTION.fullmatch(text)
    if match is None or len(text) > _LONG_FRACTION:  # int() refuses more than 4,300 digits
        return None
    above, below = int(match["a"] or match["c"]), int(match["b"] or match["d"])
    return None if below == 0 else Fraction(-above if match["sign"] == "-" else above, below)


def _bare_number(text: str) -> str:
    match = _WITH_UNIT.fullmatch(text)
    return text if match is None or _has_connective(match["unit"]) else match["number"]


def _ratio(text: str) -> str | None:
    """Returns the numbers and colons of a text that is only a ratio or a time, possibly with a unit; None otherwise."""
    bare = _bare_number(text)
    return bare if _COLONS.fullmatch(bare) else None


def _has_connective(unit: str) -> bool:
    return re.search(r"\b(?:and|or|to|times|plus|minus|hundred|thousand|million|billion|dozen)\b", unit) is not None


def _units_differ(gold: str, answer: str) -> bool:
    ours, theirs = _unit(gold), _unit(answer)
    return None not in (ours, theirs) and ours != theirs


def _unit(text: str) -> str | None:
    match = _WITH_UNIT.fullmatch(text)
    if match is None:
        return None
    plain = _TEXT.sub(r"\1", match["unit"]).strip().casefold()
    name, power, exponent = plain.partition("^")
    known = _UNITS.get(name.strip()) or _UNITS.get(name.strip().rstrip("."))
    return None if known is None else known + power + exponent.strip("{}")


def _choice(text: str) -> str | None:
    if len(text) > 8:
        return None
    try:
        letter = choice_gold(text, letters=CHOICES)
    except DataError:
        return None
    return letter if letter is not None and letter in text else None


def _words(text: str) -> str | None:
    """Returns the words of a text in small letters, without punctuation; None if it is not only words."""
    if len(text) > SHORT_CHARACTERS:
        return None
    plain = _TEXT.sub(r" \1 ", text).strip()
    if _WORDS.fullmatch(plain) is None or _PRODUCT.fullmatch(text):
        return None
    return " ".join(re.findall(r"[^\W\d_]+", plain)).casefold()
