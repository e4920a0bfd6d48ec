"""What a policy writes can neither end a run nor cost the others their scores. All of it: tests/system/cluster."""

import pytest

from ray_rl.metrics.metric import Total
from tests.processes.hostile import HANG, STRAIN


def test_long_and_deep_texts_are_a_0_in_every_verifier_and_the_others_keep_their_scores(rewards, prompt, says):
    parts = rewards(
        {"kind": "number"},
        {"kind": "math_verify", "workers": 1},
        {"kind": "regex", "pattern": "^right", "workers": 1},
        {"kind": "choice", "column": "letter"},
    )
    completions = [says(text) for text in ["right: 1/4 is 0.25", *STRAIN.values(), r"right: \boxed{0.25}"]]
    group, metrics = parts.score(prompt(answer="0.25", letter="B"), completions)
    first, *others, last = group.rollouts
    assert first.reward_parts == last.reward_parts == {"number": 1.0, "math_verify": 1.0, "regex": 1.0, "choice": 0.0}
    for name, rollout in zip(STRAIN, others, strict=True):
        assert list(rollout.reward_parts.values()) == [0.0] * 4, name
    assert {metric.name for metric in metrics} == {"reward/math_verify_unverified", "reward/regex_unverified"}


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_what_hangs_a_verifier_is_a_0_and_is_counted_whatever_on_error_says(rewards, prompt, says, on_error):
    part = rewards({"kind": "math_verify", "timeout_s": 0.5, "on_error": on_error, "workers": 1})
    group, metrics = part.score(prompt(answer="x^2"), [says(HANG["a tower of powers"]), says(r"\boxed{x \cdot x}")])
    assert [rollout.reward for rollout in group.rollouts] == [0.0, 1.0]
    errors = [Total("reward/math_verify_errors", 0)] if on_error == "skip" else []
    assert metrics == [Total("reward/math_verify_unverified", 1), *errors]


def test_a_pattern_that_hangs_on_a_text_is_a_0_for_it_and_the_others_keep_their_scores(rewards, prompt, says):
    part = rewards({"kind": "regex", "pattern": r"(\d+)+$", "timeout_s": 0.5, "workers": 1})
    group, metrics = part.score(prompt(), [says("42"), says("1" * 50 + "!"), says("43")])
    assert [rollout.reward for rollout in group.rollouts] == [1.0, 0.0, 1.0]
    assert metrics == [Total("reward/regex_unverified", 1)]
