"""Every kind of completion that hangs or strains a verifier, one after the other, as a run scores them."""

import asyncio
from contextlib import closing

import pytest
from pydantic import TypeAdapter

from ray_rl.config.rewards import RewardConfig
from ray_rl.rewards.combine import build_rewards
from ray_rl.types import Prompt
from tests import make
from tests.processes.hostile import HANG, SLOW, STRAIN


@pytest.mark.faults
def test_no_verifier_is_ended_by_what_a_policy_writes_and_the_others_keep_their_scores():
    kinds = [{"kind": "number"}, {"kind": "math_verify", "timeout_s": 2.0}, {"kind": "regex", "pattern": "^right"}]
    hostile = HANG | SLOW | STRAIN
    texts = ["right: 1/4 is 0.25", *hostile.values(), r"right: \boxed{\frac{2}{8}}"]
    prompt = Prompt("train.jsonl:1", (1,), "?", {"answer": "0.25"})
    completions = [make.completion(1, text) for text in texts]
    with closing(build_rewards(TypeAdapter(list[RewardConfig]).validate_python(kinds))) as rewards:
        group, metrics = asyncio.run(rewards.score(make.group(*completions, prompt=prompt)))
    first, *others, last = group.rollouts
    assert first.reward_parts == last.reward_parts == {"number": 1.0, "math_verify": 1.0, "regex": 1.0}
    for name, rollout in zip(hostile, others, strict=True):
        assert rollout.reward_parts == {"number": 0.0, "math_verify": 0.0, "regex": 0.0}, name
    unverified = {metric.name: metric.value for metric in metrics}
    assert unverified["reward/math_verify_unverified"] >= len(HANG)
    assert unverified["reward/regex_unverified"] == 0
