import json
from pathlib import Path

import pytest

GSM8K = Path(__file__).parents[2] / "../shared/data/gsm8k/train.jsonl"
SOLUTION = "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"


def scores(group):
    return [rollout.reward for rollout in group.rollouts]


def test_number_is_1_where_the_last_number_is_the_answer(rewards, prompt, says):
    completions = [says("17+25 is 42."), says("42, no, 41"), says("42.0"), says("forty-two")]
    group, _ = rewards({"kind": "number"}).score(prompt(answer="42"), completions)
    assert scores(group) == [1.0, 0.0, 1.0, 0.0]


def test_number_of_a_completion_that_was_cut_off_is_0_unless_allowed(rewards, prompt, says):
    cut_off = [says("it is 42", finish_reason="length")]
    assert scores(rewards({"kind": "number"}).score(prompt(answer=42), cut_off)[0]) == [0.0]
    lenient = rewards({"kind": "number", "require_stop": False})
    assert scores(lenient.score(prompt(answer=42), cut_off)[0]) == [1.0]


def test_number_reads_another_column_if_told(rewards, prompt, says):
    group, _ = rewards({"kind": "number", "column": "solution"}).score(prompt(solution=SOLUTION), [says("72")])
    assert scores(group) == [1.0]


@pytest.mark.parametrize("kind", ["number", "math_verify"])
def test_an_answer_of_none_is_no_opinion(rewards, prompt, says, kind):
    group, _ = rewards({"kind": kind}).score(prompt(answer=None), [says("42")])
    assert scores(group) == [None]


def test_length_falls_from_0_at_the_target_to_minus_1_at_twice_that(rewards, prompt, says):
    completions = [says("", tokens=tokens) for tokens in (1, 10, 15, 20, 40)]
    group, _ = rewards({"kind": "length", "target": 10}).score(prompt(), completions)
    assert scores(group) == [0.0, 0.0, -0.5, -1.0, -3.0]


def test_regex_is_1_where_the_pattern_is_found_over_lines(rewards, prompt, says):
    part = {"kind": "regex", "pattern": "<think>.*</think>"}
    group, _ = rewards(part).score(prompt(), [says("<think>a\nb</think>42"), says("42")])
    assert scores(group) == [1.0, 0.0]


def test_math_verify_knows_equal_answers_in_other_words(rewards, prompt, says):
    completions = [says(r"so \boxed{\frac{1}{2}}"), says("the answer is 0.5"), says("$1/3$"), says("no idea")]
    group, _ = rewards({"kind": "math_verify"}).score(prompt(answer=r"\frac{1}{2}"), completions)
    assert scores(group) == [1.0, 1.0, 0.0, 0.0]


def test_math_verify_reads_the_answers_of_gsm8k(rewards, prompt, says):
    group, _ = rewards({"kind": "math_verify"}).score(prompt(answer=SOLUTION), [says("48 + 24 = 72"), says("24")])
    assert scores(group) == [1.0, 0.0]


def test_reasoning_gym_scores_by_the_verifier_of_the_task(rewards, prompt, says):
    question = "State the final answer to the following arithmetic problem: 4 - 1 - 7 ="
    entry = {"question": question, "answer": "-4", "metadata": {"source_dataset": "chain_sum"}}
    task = {"name": "chain_sum", "options": {"max_terms": 3}}
    completions = [says("-4"), says("4-8 <answer>5</answer> no <answer> -4 </answer>"), says("5")]
    group, _ = rewards({"kind": "reasoning_gym", "workers": 1}).score(prompt(entry=entry, task=task), completions)
    assert scores(group) == [1.0, 1.0, 0.0]


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not at ../shared/data/gsm8k/train.jsonl")
def test_every_answer_of_gsm8k_scores_its_own_solution(rewards, prompt, says):
    """The first hundreds: each model solution ends in its answer."""
    part = rewards({"kind": "number"})
    with GSM8K.open(encoding="utf-8") as file:
        answers = [json.loads(line)["answer"] for line, _ in zip(file, range(500), strict=False)]
    for answer in answers:
        assert scores(part.score(prompt(answer=answer), [says(answer)])[0]) == [1.0]
