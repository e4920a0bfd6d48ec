r"""Golds and completions in notations that libraries read as other numbers, or not at all."""

import pytest

from ray_rl.rewards.functions.math_answers import check_gold, math_verify
from ray_rl.rewards.functions.numbers import number_answer, number_gold

EQUAL = [
    ("1e5", "100000"),
    ("1e5", "10^5"),
    ("0.0015", "1.5e-3"),
    ("6.02e23", r"6.02 \times 10^{23}"),
    ("10^-3", "0.001"),
    ("2 1/2", r"2\frac{1}{2}"),
    ("2 1/2", "2.5"),
    ("-2½", "-2.5"),
    ("33 1/3", r"\frac{100}{3}"),
    (r"33\frac{1}{3}\%", r"\frac{100}{3}\%"),
    ("50%", "0.5"),
    ("0.5", r"50\%"),
    (r"0.\overline{3}", r"\frac{1}{3}"),
    (r"1.\overline{27}", r"\frac{14}{11}"),
    (r"0.5\dot{3}", r"\frac{8}{15}"),
    (r"\frac{1}{6}", r"0.1\overline{6}"),
    (r"\emptyset", r"\varnothing"),
    ("\u20ac5", "5"),
    ("12", "\u00a312"),
    ("\uff14\uff12", "42"),
    ("\uff081\uff0c2\uff09", "(1,2)"),
    ("3:30 p.m.", r"3:30 \text{ PM}"),
    (r"\text{17}", "17"),
    (r"x \equiv 3 \pmod 7", r"x\equiv3\pmod7"),
    (r"\{x \mid x > 2\}", r"\{x\mid x>2\}"),
    (r"A \cup B", r"A\cup B"),
    (r"\angle ABC", r"\angle  ABC"),
]
OTHER = [
    ("1e5", "5e"),
    ("2 1/2", "1"),
    ("2 1/2", "11"),
    ("33 1/3", r"\frac{34}{3}"),
    ("-2½", "-1.5"),
    ("50%", "5"),
    (r"\frac{100}{3}\%", "x"),
    (r"0.\overline{3}", "0.3"),
    ("3:30 p.m.", r"3:30 \text{ a.m.}"),
    (r"A \cup B", r"A \cap B"),
    (r"x \equiv 3 \pmod 7", r"x \equiv 4 \pmod 7"),
]


def score(completion: str, gold: str) -> float | None:
    (scored,) = math_verify([completion], answer=[gold], finish_reasons=["stop"], require_stop=True)
    return scored


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_one_value_in_two_notations_is_right(gold: str, answer: str) -> None:
    assert check_gold(gold) is None
    assert score(rf"So it is $\boxed{{{answer}}}$.", gold) == 1.0


@pytest.mark.parametrize(("gold", "answer"), OTHER)
def test_another_value_in_a_like_notation_is_wrong(gold: str, answer: str) -> None:
    assert score(rf"So it is $\boxed{{{answer}}}$.", gold) == 0.0


@pytest.mark.parametrize(
    "gold", ["2024-01-05", "1/5/2024", "1.000.000", "1 000,5", "1.234,50", "1_000", "0x1F", "5'11\"", "1.2.3"]
)
def test_a_gold_that_the_library_takes_for_another_number_is_refused(gold: str) -> None:
    problem = check_gold(gold)
    assert problem is not None and "is not exactly one expression" in problem


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        ("I think the ratio is roughly 2:3 for sure", "2:3", 1.0),
        ("First 1:4, but then 2 : 3", "2:3", 1.0),
        ("It is 3:2, and not something else", "2:3", 0.0),
        ("They meet at 11:00 when the sun is up", "11:00", 1.0),
        ("nothing of that kind, just 5 of them", "11:00", 0.0),
    ],
)
def test_a_ratio_is_looked_for_in_a_sentence(completion: str, gold: str, right: float) -> None:
    assert score(completion, gold) == right


def test_digits_of_full_width_are_digits() -> None:
    assert number_gold("\uff11\uff12") == 12
    assert number_answer("\u7b54\u3048\u306f\uff11\uff12\u3067\u3059") == 12
    assert score("\\boxed{\uff11\uff12}", "12") == 1.0


@pytest.mark.parametrize("gold", ["-,-", "???", ">"])
def test_signs_alone_are_no_gold(gold: str) -> None:
    problem = check_gold(gold)
    assert problem is not None


def test_a_gold_that_is_compared_as_text_never_fails_a_completion() -> None:
    assert score("I do not know; perhaps 5 or so", r"A \cup B") == 0.0
    assert score("", r"\{x \mid x > 2\}") == 0.0
