from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_rl.rewards.answers import final_answer, last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", "42"),
        ("The answer is 42.", "42"),
        ("17+25 = 42", "42"),
        ("It costs $1,234,567.50!", "1234567.50"),
        ("x = -5", "-5"),
        ("x = \u22125", "-5"),
        ("17-25", "25"),
        ("(3)-2", "2"),
        ("(-2)", "-2"),
        ("-$7", "-7"),
        ("+7", "7"),
        ("3.50", "3.5"),
        (".5", "0.5"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("1/2", "2"),
        ("1.5e3", "1500"),
        ("2e-2", "0.02"),
        ("version 1.2.3", "3"),
        ("**42**", "42"),
        ("42%", "42"),
        ("room 7e", "7"),
        ("9" * 400, "9" * 400),
    ],
)
def test_the_last_number_is_read_as_a_person_would(text, number):
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no idea", "...", "-", "$"])
def test_a_text_without_a_number_has_none(text):
    assert last_number(text) is None


@given(st.integers(-(10**12), 10**12), st.booleans())
def test_every_integer_is_read_back(value, with_commas):
    assert last_number(f"so the answer is {value:,}." if with_commas else f"{value}") == value


@pytest.mark.parametrize(
    ("value", "answer"), [("a b <<1+1=2>>2\n#### 1,002 ", "1,002"), ("42", "42"), (42, "42"), (0.1, "0.1")]
)
def test_the_answer_is_what_follows_the_hashes_of_gsm8k_or_all_of_the_column(value, answer):
    assert final_answer(value) == answer
