r"""A table of answers with their right verdicts: what a person who knows the question would say.

Decided where people differ: percent signs are units for `number`, and 12% = 0.12 = 12 for `math_verify`; units that
are given on both sides must agree; ratios are equal by value, times as written; a base that is left out is not asked
for; several boxes that are joined, or several values in one, are a list, which is no single answer; the order of a list
does not matter.
"""

import pytest

from ray_rl.rewards.functions.math_answers import math_verify
from ray_rl.rewards.functions.plain import choice, number

NUMBERS = [
    ("72", "In April and May together she sold 72 clips.", 1),
    ("72", "She sold 72 clips in April and 24 in May.", 0),
    ("1,080", "The total comes to 1080", 1),
    ("1080", r"\boxed{1{,}080}", 1),
    (r"\$18.90", "He pays $18.90 in all.", 1),
    (r"\$32,\!348", r"The car costs $\boxed{\$32,\!348}$.", 1),
    (r"\$32,\!348", r"\boxed{348}", 0),
    ("-7", "the temperature fell to \u22127 degrees", 1),
    ("7", "the temperature fell to -7 degrees", 0),
    ("0.5", "so half, that is 1/2", 1),
    ("2", "so half, that is 1/2", 0),
    ("2", "the ratio is 3:2", 0),
    ("30", "the train leaves at 10:30", 0),
    ("10", "there are 2^10 of them", 0),
    ("3e5", r"the light needs $3 \times 10^{5}$ km", 1),
    ("5", r"\boxed{3, 5}", 0),
    ("5", r"\boxed{3} and \boxed{5}", 0),
    ("5", r"I first had \boxed{3}, but the right value is \boxed{5}", 1),
    ("5", r"<think>maybe \boxed{5}</think> It is 4.", 0),
    ("4", r"<think>maybe \boxed{5}</think> It is 4.", 1),
    ("5", "<think>It is 5", 0),
    ("12", r"\boxed{12 \text{ cm}^2}", 1),
    ("12 apples", "She has 12 apples", 1),
    ("15%", r"\boxed{15\%}", 1),
    ("2.5", r"\boxed{2\frac{1}{2}}", 1),
    ("42", "<answer>42</answer> as in step 3", 1),
    ("3", "<answer>42</answer> as in step 3", 0),
    ("42", r"\boxed{}", 0),
    ("42", "", 0),
    ("42", r"\boxed{17 + 25 = 42}", 1),
    ("9" * 5000, "9" * 5000, 1),
    ("9" * 5000, "9" * 4999 + "8", 0),
]
CHOICES = [
    ("B", "The answer is (B).", 1),
    ("B", "The answer is B", 1),
    ("B", "**Answer:** B", 1),
    ("B", r"Hence \boxed{B}.", 1),
    ("B", r"Hence $\boxed{\textbf{(B)}\ 12}$", 1),
    ("(B)", "B", 1),
    (r"\text{(B)}", "b)", 1),
    ("B. Paris", "The capital is Paris, so option B.", 1),
    ("B", "The answer is (C).", 0),
    ("B", "(A) is wrong, and so is (C). The answer is (B).", 1),
    ("C", "(A) is wrong, and so is (C). The answer is (B).", 0),
    ("A", "A dog cannot fly.", 0),
    ("A", "The answer is a dog.", 0),
    ("A", "The answer is A or B.", 0),
    ("B", r"\boxed{A} or \boxed{B}", 0),
    ("B", r"\boxed{A}. No, I misread it: \boxed{B}", 1),
    ("B", "<think>The answer is (B)</think> The answer is (D).", 0),
    ("D", "<think>The answer is (B)</think> The answer is (D).", 1),
    ("C", "<answer>C</answer>", 1),
    ("B", "I do not know.", 0),
    ("B", "AB", 0),
    ("D", "Correct answer: D. Because the others are too small", 1),
    ("E", "**E**", 1),
]
EXPRESSIONS = [
    (r"\frac{1}{2}", "The answer is 1/2", 1),
    (r"\frac12", r"\boxed{0.5}", 1),
    (r"\frac{1}{2}", r"\boxed{2}", 0),
    ("0.333", r"\boxed{\frac13}", 0),
    (r"\$\frac{3}{4}", r"\boxed{\frac{3}{4}}", 1),
    (r"\$\frac{3}{4}", r"\boxed{4}", 0),
    (r"\$18.90", r"\boxed{18.90}", 1),
    (r"\$32,\!348", r"\boxed{32348}", 1),
    ("1{,}234", r"\boxed{1234}", 1),
    ("1 000 000", r"\boxed{1000000}", 1),
    ("123", r"\boxed{1,2,3}", 0),
    ("1,2,3", r"\boxed{3,2,1}", 1),
    ("1,2", r"\boxed{1} and \boxed{2}", 1),
    ("6", r"\boxed{5} and \boxed{6}", 0),
    ("6", r"\boxed{5 \text{ or } 6}", 0),
    ("6", r"First \boxed{5}, then finally \boxed{6}", 1),
    ("5", r"First \boxed{5}, then finally \boxed{6}", 0),
    ("6", "<think>maybe $\\boxed{6}$</think>\nThe answer is $5$.", 0),
    ("6", "<think>maybe \\boxed{5}</think>\nThe answer is \\boxed{6}.", 1),
    ("6", "The answer is 6. Wait, no. The answer is 7.", 0),
    ("6", "So the answer is $6$. We computed $7$ and $8$.", 1),
    ("6", r"\boxed{}", 0),
    ("6", r"\boxed{6", 0),
    ("6", "", 0),
    ("No", r"\boxed{On}", 0),
    ("No", r"\boxed{\text{no}}", 1),
    ("east", r"\boxed{seat}", 0),
    (r"\text{Evelyn}", r"\boxed{Evelyn}", 1),
    ("Evelyn", r"\boxed{\text{Neveyl}}", 0),
    ("Evelyn", "The answer is Evelyn.", 1),
    ("Yes", "**Answer:** Yes", 1),
    ("xy", r"\boxed{yx}", 1),
    ("2xy", r"\boxed{2yx}", 1),
    ("B", "The answer is (B)", 1),
    (r"\text{(B)}", r"\boxed{B}", 1),
    (r"\text{(B)}", r"\boxed{\text{(C)}}", 0),
    ("2:3", r"\boxed{2:3}", 1),
    ("2:3", r"\boxed{3:2}", 0),
    (r"10:30 \text{ a.m.}", r"\boxed{10:30}", 1),
    (r"10:30 \text{ a.m.}", r"\boxed{10:30 \text{ p.m.}}", 0),
    ("10:30", r"\boxed{1:3}", 0),
    ("(1, 2]", r"\boxed{(1,2]}", 1),
    ("(1, 2]", r"\boxed{[1,2]}", 0),
    (r"(-\infty, 5)", "$x<5$", 1),
    (r"(-\infty, 5)", r"\boxed{(-\infty,5]}", 0),
    ("12", r"\boxed{12\,\mathrm{cm}^2}", 1),
    (r"12\text{ cm}", r"\boxed{12}", 1),
    ("12 cm", r"\boxed{12 \text{ m}}", 0),
    ("12 cm", r"\boxed{12 \text{ centimeters}}", 1),
    (r"12\%", r"\boxed{12}", 1),
    ("12%", r"\boxed{0.12}", 1),
    (r"90^\circ", r"\boxed{90}", 1),
    ("\u221a2", r"\boxed{\sqrt{2}}", 1),
    ("\u22125", r"\boxed{-5}", 1),
    ("\u00bd", r"\boxed{\frac12}", 1),
    ("x=5", r"\boxed{5}", 1),
    ("5", r"\boxed{x = 5}", 1),
    ("y = 2x + 3", r"\boxed{2x+3}", 1),
    (r"3\sqrt{2}", r"\boxed{3\sqrt2}", 1),
    (r"(x+1)^2", r"\boxed{x^2+2x+1}", 1),
    (r"(x+1)^2", r"\boxed{x^2+2x}", 0),
    (r"2\pi", r"\boxed{2\pi}", 1),
    ("11_5", r"\boxed{11_5}", 1),
    ("4343_6", r"\boxed{4343}", 1),
    ("4343_6", r"\boxed{4343_7}", 0),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", 1),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix} 2 \\ 1 \end{pmatrix}}", 0),
    ("2^{1000}", r"\boxed{2^{1000}}", 1),
    ("#### 42", "so #### 42", 1),
    (42, "42", 1),
    (0.1, r"\boxed{\frac{1}{10}}", 1),
    (["34"], r"\boxed{34}", 1),
    ("1", "$" + "1+" * 2000 + "1$", 0),
    ("9" * 5000, r"\boxed{" + "9" * 5000 + "}", 1),
    ("9" * 5000, r"\boxed{" + "9" * 4999 + "8}", 0),
]


def test_the_table_has_at_least_120_answers():
    assert len(NUMBERS) + len(CHOICES) + len(EXPRESSIONS) >= 120


@pytest.mark.parametrize(("gold", "text", "right"), NUMBERS)
def test_number_gives_the_right_verdict(gold, text, right):
    assert number([text], answer=[gold], finish_reasons=["stop"], require_stop=True) == [right]


@pytest.mark.parametrize(("gold", "text", "right"), CHOICES)
def test_choice_gives_the_right_verdict(gold, text, right):
    assert choice([text], answer=[gold], finish_reasons=["stop"], require_stop=True, letters="ABCDE") == [right]


@pytest.mark.parametrize(("gold", "text", "right"), EXPRESSIONS)
def test_math_verify_gives_the_right_verdict(gold, text, right):
    assert math_verify([text], answer=[gold], finish_reasons=["stop"], require_stop=True) == [right]


@pytest.mark.parametrize(("gold", "text", "right"), [row for row in NUMBERS if len(row[0]) < 100])
def test_math_verify_agrees_with_number_where_the_answer_is_in_a_box(gold, text, right):
    if "boxed" in text:
        assert math_verify([text], answer=[gold], finish_reasons=["stop"], require_stop=True) == [right]


@pytest.mark.parametrize("scorer", [number, math_verify])
def test_a_completion_that_was_cut_off_scores_0_and_1_if_that_is_allowed(scorer):
    cut_off = [r"\boxed{42} and to check this, 6 tim"], {"answer": ["42"], "finish_reasons": ["length"]}
    assert scorer(cut_off[0], **cut_off[1], require_stop=True) == [0.0]
    assert scorer(cut_off[0], **cut_off[1], require_stop=False) == [1.0]
