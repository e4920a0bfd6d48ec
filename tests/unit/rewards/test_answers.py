import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.errors import DataError
from ray_rl.rewards.functions.answers import after_thinking, answer_of, gold_of, last_box
from ray_rl.rewards.functions.choices import choice_answer, choice_gold
from ray_rl.rewards.functions.math_text import candidate_of, quick_verdict
from ray_rl.rewards.functions.numbers import last_number, number_answer, number_gold


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
        ("1.5e3", "1500"),
        ("2e-2", "0.02"),
        ("**42**", "42"),
        ("_42_", "42"),
        ("42%", "42"),
        ("room 7e", "7"),
        (r"3 \times 10^{4}", "30000"),
        (r"32,\!348", "32348"),
        ("1{,}234", "1234"),
        ("1\u202f234", "1234"),
        (r"90^\circ", "90"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_the_last_number_is_read_as_a_person_would(text, number):
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1/2", Fraction(1, 2)), ("-3 / 4", Fraction(-3, 4)), (r"2\frac{1}{2}", Fraction(5, 2)), ("6/3", Fraction(2))],
)
def test_a_fraction_has_its_value_and_is_not_its_last_number(text, value):
    assert last_number(text) == value


@pytest.mark.parametrize("text", ["", "no idea", "...", "-", "$"])
def test_a_text_without_a_number_has_none(text):
    assert last_number(text) is None


@pytest.mark.parametrize("text", ["1,2,3", "1,2345", "2:3", "10:30", "2024-01-05", "2^10", "2^{10}", "1.2.3", "11_5"])
def test_lists_ratios_times_dates_powers_and_versions_are_no_number(text):
    assert last_number(text) is None


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12), st.booleans())
def test_every_integer_is_read_back(value, with_commas):
    assert last_number(f"so the answer is {value:,}." if with_commas else f"{value}") == value


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        *(("a b <<1+1=2>>2\n#### 1,002 ", "1,002"), ("42", "42"), (42, 42), (0.1, 0.1), (None, None)),
        *((["34"], "34"), ('["34"]', "34"), ("[7]", "7"), ([5], 5)),
    ],
)
def test_the_answer_is_what_follows_the_hashes_of_gsm8k_or_all_of_the_column_or_the_only_entry_of_a_list(value, gold):
    assert gold_of(value) == gold


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"ground_truth": "34", "style": "rule"},
            r"mapping with the keys ground_truth, style; .* column: reward_model",
        ),
        (["3", "4"], "a list of 2; give exactly one"),
        ([], "a list of 0"),
        (True, "is a bool"),
        (float("nan"), "the answer is nan"),
        (float("inf"), "the answer is inf"),
        ("", "'' is no answer"),
        ("   ", "is no answer"),
        ("None", "'None' is no answer"),
        ("N/A", "is no answer"),
        (b"34", "is a bytes"),
        ('["3", "4"]', "a list of 2"),
    ],
)
def test_what_is_not_one_answer_is_refused_with_its_value(value, message):
    with pytest.raises(DataError, match=message):
        gold_of(value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("1{,}234", "1234"),
        (r"32,\!348", "32348"),
        (r"\$18.90", "18.90"),
        (r"\$32,\!348", "32348"),
        ("$1,234", "1234"),
        (r"12\%", "12"),
        ("12 cm", "12"),
        (r"12\,\mathrm{cm}^2", "12"),
        (r"90^\circ", "90"),
        ("x = 5", "5"),
        (r"\boxed{7}", "7"),
        ("$-5$", "-5"),
        ("\u22125", "-5"),
        ("1 000 000", "1000000"),
        ("#### -3", "-3"),
        (42.0, "42"),
        (0.1, "0.1"),
        (Decimal("1.50"), "1.5"),
        pytest.param(10**5000, "1e5000", id="an integer of 5,001 digits"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_gold_is_one_number_however_it_is_written(value, number):
    assert number_gold(value) == Decimal(number)


@pytest.mark.parametrize(
    "value",
    [
        *("1/2", r"\frac{1}{2}", "(1, 2]", "[1, 2]", "2024-01-05", "2:3", "10:30", "1,2,3", "1,23", "5 or 6"),
        *("2x", "3 + 4i", "forty-two", "(B)", "3^2", "5!", r"2\pi", r"2\sqrt{3}", "1.5 million"),
        *("5 apples and 3 pears", "between 3 and 4", "about 5", "5 (approx)", "{'a': 5}", "5m/s", "1 2 3"),
    ],
)
def test_a_gold_that_is_not_exactly_one_number_is_refused(value):
    with pytest.raises(DataError, match="is not exactly one number"):
        number_gold(value)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>5</think>6", "6"),
        ("5</think>6", "6"),
        ("<think>5</think>6<think>7</think>8", "8"),
        ("<thinking>5</thinking>6", "6"),
        ("<THINK>5</THINK>6", "6"),
        ("<reasoning>5</reasoning>6", "6"),
        ("<|begin_of_thought|>5<|end_of_thought|>6", "6"),
        ("[THINK]5[/THINK]6", "6"),
        ("<think>5", ""),
        ("6<think>5", "6"),
        ("6", "6"),
    ],
)
def test_the_answer_stands_behind_the_thinking(text, rest):
    assert after_thinking(text) == rest


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{6}", "6"),
        (r"\boxed{5} no, \boxed{6}", "6"),
        (r"\boxed{5} or \boxed{6}", "5, 6"),
        (r"$\boxed{5}$ and $\boxed{6}$.", "5, 6"),
        (r"\boxed{5}, \boxed{6}", "5, 6"),
        (r"\boxed{6}" "\n\n" r"\boxed{6}", "6"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{6}}", "6"),
        (r"\fbox{6}", "6"),
        (r"\boxed 6", "6"),
        (r"\boxed{}", ""),
        (r"\boxed{6", ""),
        (r"\boxed{5} then \boxed{6", ""),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("6", None),
    ],
)
def test_the_last_box_counts_with_those_that_it_is_joined_to(text, box):
    assert last_box(text) == box


def test_a_tag_of_the_answer_narrows_the_text_and_a_box_in_it_more():
    assert answer_of("5 <answer>7</answer> 8").text == "7"
    assert answer_of(r"\boxed{5} <answer>so \boxed{7}</answer>").text == "7"


@pytest.mark.parametrize(
    ("value", "letter"),
    [
        *(("B", "B"), ("(B)", "B"), ("b", "B"), ("B.", "B"), ("B. Paris", "B"), (r"\text{(B)}", "B")),
        *(("[C]", "C"), (r"\boxed{D}", "D"), ("Answer: D", "D"), ('["A"]', "A"), (None, None)),
    ],
)
def test_a_gold_is_one_choice_however_it_is_written(value, letter):
    assert choice_gold(value, letters="ABCD") == letter


@pytest.mark.parametrize("value", ["A or B", "AB", "Paris", 2, "E", "A, B", "(A) and (C)", "A dog", "1", "not A"])
def test_a_gold_that_is_not_exactly_one_choice_is_refused(value):
    with pytest.raises(DataError, match=r"compares letters|not exactly one of the choices A, B, C, D"):
        choice_gold(value, letters="ABCD")


LONG_TEXTS = [
    "1,111" * 50_000,
    "1," * 125_000,
    "9" * 250_000,
    "1/" * 125_000,
    "1 " * 125_000,
    "\\boxed{" * 37_000,
    "\\boxed{" + "{" * 250_000,
    "\\boxed{}" * 30_000,
    "<think>" * 37_000,
    "</think>" * 30_000,
    "<answer>" * 15_000 + "</answer>" * 15_000,
    "(" * 250_000,
    "$" * 250_000,
    "\\frac" * 50_000,
    "answer is " * 25_000,
    "####" * 62_000,
    " " * 250_000,
    "\\boxed{" + "(" * 4000 + "}",
    "\\boxed{" + "a " * 2000 + "}",
    "\\boxed{" + "1 000 " * 600 + "}",
    "answer: " + "((((" * 400,
]


@pytest.mark.parametrize("read", [number_answer, choice_answer, candidate_of, lambda text: quick_verdict(text, "42")])
def test_a_quarter_of_a_megabyte_made_to_be_slow_is_read_at_once(read):
    for text in LONG_TEXTS:
        start_s = time.process_time()
        read(text)
        assert time.process_time() - start_s < 0.7, text[:20]
