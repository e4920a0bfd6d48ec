import json
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from ray_rl.config.rewards import RewardConfig
from ray_rl.data.rows import Row
from ray_rl.errors import ConfigError, DataError
from ray_rl.rewards.functions.golds import golds_checked
from ray_rl.rewards.functions.math_answers import math_verify
from ray_rl.rewards.functions.plain import number, quick_math_verify

SHARED = Path(__file__).parents[2] / "../shared/data"
MATH500 = SHARED / "evals/math500.jsonl"
GSM8K = SHARED / "gsm8k/test.jsonl"


def check(section, *golds, column="answer"):
    with golds_checked(TypeAdapter(list[RewardConfig]).validate_python([section])) as checks:
        for index, gold in enumerate(golds, start=1):
            for each in checks:
                each(Row(f"train.jsonl:{index}", "?", {column: gold}))


@pytest.mark.parametrize("kind", ["number", "math_verify", "choice"])
@pytest.mark.parametrize(
    ("gold", "what"),
    [
        ({"ground_truth": "34"}, "mapping with the keys ground_truth"),
        (["3", "4"], "a list of 2"),
        (True, "is a bool"),
        (float("nan"), "is nan"),
        ("", "is no answer"),
        ("N/A", "is no answer"),
    ],
)
def test_what_is_no_single_answer_is_refused_with_row_column_and_reward(kind, gold, what):
    message = rf"^train\.jsonl:2: column 'answer', which rewards\[0\] \({kind}\) compares with: .*{what}"
    with pytest.raises(DataError, match=message):
        check({"kind": kind}, "B" if kind == "choice" else "5", gold)


@pytest.mark.parametrize(
    ("kind", "gold"),
    [
        *(("number", "1/2"), ("number", "(1, 2]"), ("number", "2024-01-05"), ("number", "forty-two")),
        *(("choice", "A or B"), ("choice", 3), ("math_verify", "5 apples and 3 pears")),
        *(("math_verify", "the answer is 7"),),
    ],
)
def test_a_gold_that_is_not_exactly_one_answer_is_refused_with_its_value(kind, gold):
    with pytest.raises(DataError) as raised:
        check({"kind": kind}, gold)
    assert repr(gold) in str(raised.value)
    assert "is not exactly one" in str(raised.value) or "compares letters" in str(raised.value)


@pytest.mark.parametrize("gold", [r"\frac{1}{", r"((((", r"\frac{}{}"])
def test_a_gold_that_the_parser_does_not_understand_is_refused_though_others_come_behind_it(gold):
    with pytest.raises(DataError, match=r"^train\.jsonl:2: .*math-verify finds no expression in the answer"):
        check({"kind": "math_verify"}, "x+1", gold, "x+2", "x+3")


@pytest.mark.parametrize("gold", ["+".join(["(1+x)^{2^{3}}"] * 3000), "9^{9^{9^{9}}}"])
def test_a_gold_that_takes_for_ever_is_refused_at_its_limit(monkeypatch, gold):
    monkeypatch.setattr("ray_rl.rewards.functions.golds.GOLD_S", 0.5)
    started_s = time.monotonic()
    with pytest.raises(DataError, match=r"^train\.jsonl:1: .*cannot be parsed as an expression within 0\.5 s"):
        check({"kind": "math_verify"}, gold)
    assert time.monotonic() - started_s < 30


def test_right_golds_pass_whatever_they_are():
    check({"kind": "number"}, "72", 72, 0.5, r"\$32,\!348", "... #### 1,080", None, ["5"])
    check(
        {"kind": "math_verify"},
        "72",
        r"\frac{1}{2}",
        "(1, 2]",
        r"x \in [1,2]",
        r"\text{Evelyn}",
        "(B)",
        None,
        "2:3",
        "9" * 5000,
    )
    check({"kind": "choice", "letters": "ABCD"}, "A", "(B)", r"\text{(C)}", "D. Paris", None)


def test_a_dotted_path_leads_into_a_nested_column():
    nested = {"ground_truth": "34", "style": "rule"}
    check({"kind": "number", "column": "reward_model.ground_truth"}, nested, column="reward_model")
    with pytest.raises(DataError, match=r"column 'reward_model.ground_truth', .* '1/2' is not exactly one number"):
        check({"kind": "number", "column": "reward_model.ground_truth"}, {"ground_truth": "1/2"}, column="reward_model")


def users_module(folder, monkeypatch, text):
    monkeypatch.syspath_prepend(folder)
    (folder / "users_signatures.py").write_text(text)
    return {"kind": "custom", "function": "users_signatures:judge"}


@pytest.mark.parametrize(
    "parameters",
    [
        *("completions, **columns", "completions, answer", "prompts, completions, answer, **kwargs"),
        *("texts, answer, lengths", "prompts, completions, completion_ids, trainer_state"),
        *("data_source, solution_str, ground_truth",),
        *("data_source, solution_str, ground_truth, extra_info=None, **kwargs", "completions, other=1"),
    ],
)
def test_a_function_whose_parameters_are_known_passes(tmp_path, monkeypatch, parameters):
    check(users_module(tmp_path, monkeypatch, f"def judge({parameters}):\n    pass\n"), "5")


def test_a_function_that_needs_what_there_is_not_is_refused_with_the_columns(tmp_path, monkeypatch):
    section = users_module(tmp_path, monkeypatch, "def judge(completions, solution, **kwargs):\n    pass\n")
    message = (
        r"^rewards\[0\]\.function=users_signatures:judge: the parameter solution .* finish_reasons, lengths, prompts"
    )
    with pytest.raises(ConfigError, match=message):
        check(section, "5")


def golds_of(path, column="answer"):
    with path.open(encoding="utf-8") as file:
        return [(row[column], row.get("solution", row[column])) for row in map(json.loads, file)]


@pytest.mark.skipif(not MATH500.is_file(), reason=f"MATH-500 is not at {MATH500}")
def test_all_golds_of_math_500_pass_and_gold_and_official_solution_score_1():
    rows = golds_of(MATH500)
    assert len(rows) == 500
    check({"kind": "math_verify"}, *(gold for gold, _ in rows))
    for gold, solution in rows:
        texts = [rf"\boxed{{{gold}}}", solution]
        given = {"answer": [gold] * 2, "finish_reasons": ["stop"] * 2, "require_stop": True}
        scores = quick_math_verify(texts, **given)
        if "undecided" in scores:
            scores = math_verify(texts, **given)
        assert scores == [1.0, 1.0], gold


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"GSM8K is not at {GSM8K}")
@pytest.mark.parametrize("score", [number, quick_math_verify])
def test_all_golds_of_gsm8k_pass_and_gold_and_official_solution_score_1(score):
    rows = golds_of(GSM8K)
    assert len(rows) == 1319
    check({"kind": "number"}, *(gold for gold, _ in rows))
    for gold, _ in rows:
        short = gold.rpartition("####")[2].strip()
        texts = [short, gold, rf"\boxed{{{short}}}", f"The answer is {short}."]
        given = {"answer": [gold] * 4, "finish_reasons": ["stop"] * 4, "require_stop": True}
        assert score(texts, **given) == [1.0] * 4, gold


def test_expected_calls_are_checked_before_the_start():
    check(
        {"kind": "right_call", "column": "answer"}, [], None, [{"name": "add", "arguments": {}}], '[{"f": {"a": [1]}}]'
    )
    message = r"^train\.jsonl:2: column 'answer', which rewards\[0\] \(right_call\) compares with: .*expected calls are"
    with pytest.raises(DataError, match=message):
        check({"kind": "right_call", "column": "answer"}, [], [{"f": 1}])
