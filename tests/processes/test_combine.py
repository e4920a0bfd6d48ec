import asyncio
import math
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from pydantic import TypeAdapter

from ray_rl.config.rewards import RewardConfig
from ray_rl.errors import ConfigError, RewardError
from ray_rl.metrics.metric import Last, Total
from ray_rl.rewards.combine import build_rewards
from tests import make

LENGTH = {"kind": "length", "target": 2}


def test_the_reward_is_the_weighted_sum_and_every_part_is_recorded_unweighted(rewards, prompt, says):
    both = rewards({"kind": "number", "weight": 2.0}, LENGTH | {"weight": 0.5, "name": "brevity"})
    question, completions = prompt(answer=42), [says("42", tokens=4), says("41", tokens=2)]
    group, metrics = both.score(question, completions)
    assert group.prompt is question
    assert [rollout.turns[0].completion for rollout in group.rollouts] == completions
    assert [rollout.reward for rollout in group.rollouts] == [2.0 * 1 + 0.5 * -1, 0.0]
    assert [dict(rollout.reward_parts) for rollout in group.rollouts] == [
        {"number": 1.0, "brevity": -1.0},
        {"number": 0.0, "brevity": 0.0},
    ]
    assert metrics == []


def test_a_part_without_an_opinion_is_left_out_of_the_sum(rewards, prompt, says, users):
    parts = rewards(users("return [None, 0.5]"), LENGTH)
    group, _ = parts.score(prompt(), [says("", tokens=4), says("", tokens=4)])
    assert [rollout.reward for rollout in group.rollouts] == [-1.0, -0.5]
    assert group.rollouts[0].reward_parts == {"judge": None, "length": -1.0}


def test_without_any_opinion_there_is_no_reward(rewards, prompt, says, users):
    group, _ = rewards(users("return [None] * len(completions)")).score(prompt(), [says("a")])
    assert group.rollouts[0].reward is None


def test_a_users_function_gets_columns_as_lists_and_its_options(rewards, prompt, says, users):
    section = users(
        "assert columns == {'answer': [42, 42], 'prompts': ['What is 17+25?'] * 2, 'finish_reasons': "
        "['stop', 'length'], 'lengths': [3, 5], 'factor': 4}, columns\n"
        "    return [columns['factor'] * len(text) for text in completions]"
    )
    parts = rewards(section | {"options": {"factor": 4}})
    group, _ = parts.score(prompt(answer=42), [says("a"), says("ab", tokens=5, finish_reason="length")])
    assert [rollout.reward for rollout in group.rollouts] == [4.0, 8.0]


def test_numbers_of_other_libraries_are_taken_as_floats(rewards, prompt, says, users):
    section = users("import numpy; return numpy.float32([0.5, 1.0])")
    group, _ = rewards(section).score(prompt(), [says("a"), says("b")])
    assert [(type(rollout.reward), rollout.reward) for rollout in group.rollouts] == [(float, 0.5), (float, 1.0)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.0, math.nan]", r"completion 1 of 2: 'bad': users_rewards:judge returned nan"),
        ("return [0.0, math.inf]", r"completion 1 of 2: 'bad': users_rewards:judge returned inf"),
        ("return [0.0, 'good']", r"completion 1 of 2: 'bad': users_rewards:judge returned 'good'"),
        (
            "return [0.0]*3",
            r"all 2 completions, the first: 'good': users_rewards:judge returned 3 values for 2 completions",
        ),
        ("return 0.5", "users_rewards:judge raised TypeError: returned 0.5, not a list with a number or None"),
        ("assert 'bad' not in completions; return [0.0]", r"completion 1 of 2: 'bad': .* raised AssertionError"),
        ("time.sleep(60 * ('bad' in completions)); return [0.0]", r"completion 1 .* did not return within 1 s"),
        ("os._exit(9 * ('bad' in completions)); return [0.0]", r"ended its process with exit code"),
    ],
)
def test_a_bad_call_stops_with_reward_prompt_completion_and_cause(rewards, prompt, says, users, body, message):
    parts = rewards(users(body) | {"timeout_s": 1.0})
    with pytest.raises(RewardError, match=rf"^reward 'judge', prompt addition/17, .*{message}") as raised:
        parts.score(prompt(), [says("good"), says("bad")])
    assert "on_error: skip" in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_what_a_function_raised_is_the_cause_with_its_traceback(rewards, prompt, says, users):
    with pytest.raises(RewardError) as raised:
        rewards(users("return 1 / 0")).score(prompt(), [says("a")])
    assert "ZeroDivisionError: division by zero" in raised.value.__cause__.__notes__[0]


def test_a_failure_of_a_whole_group_that_no_completion_repeats_alone_names_them_all(rewards, prompt, says, users):
    parts = rewards(users("assert len(completions) == 1; return [0.0]"))
    with pytest.raises(RewardError, match=r"all 2 completions, the first: 'a': .* AssertionError"):
        parts.score(prompt(), [says("a"), says("b")])


def test_errors_that_are_skipped_are_counted_and_are_no_opinion(rewards, prompt, says, users):
    parts = rewards(users("return [0.25, math.nan]") | {"on_error": "skip", "name": "mine"}, LENGTH)
    group, metrics = parts.score(prompt(), [says("a", tokens=4), says("b", tokens=4)])
    assert [dict(rollout.reward_parts) for rollout in group.rollouts] == [
        {"mine": 0.25, "length": -1.0},
        {"mine": None, "length": -1.0},
    ]
    assert metrics == [Total("reward/mine_errors", 1)]


def test_a_part_that_may_skip_reports_that_it_did_not(rewards, prompt, says):
    _, metrics = rewards(LENGTH | {"on_error": "skip"}).score(prompt(), [says("a")])
    assert metrics == [Total("reward/length_errors", 0)]


def test_ground_truth_that_is_no_answer_is_an_error_and_not_a_0(rewards, prompt, says):
    with pytest.raises(RewardError, match=r"reward 'number', .* the answer 'forty-two' is not exactly one number"):
        rewards({"kind": "number"}).score(prompt(answer="forty-two"), [says("42")])


def test_a_missing_column_is_named_with_those_that_exist(rewards, prompt, says):
    with pytest.raises(ConfigError, match=r"reward 'number' needs a column 'answer'; prompt addition/17 has solution;"):
        rewards({"kind": "number"}).score(prompt(solution="42"), [says("42")])


def test_an_option_with_the_name_of_a_column_is_refused(rewards, prompt, says, users):
    parts = rewards(users("return [0.0]") | {"options": {"answer": 1}})
    with pytest.raises(ConfigError, match="options answer are columns too"):
        parts.score(prompt(answer=42), [says("42")])


def test_a_pattern_that_takes_for_ever_on_a_text_is_killed_and_is_a_0_for_that_text(rewards, prompt, says):
    parts = rewards({"kind": "regex", "pattern": "(a+)+$", "timeout_s": 0.3, "on_error": "skip"})
    started_s = time.monotonic()
    group, metrics = parts.score(prompt(), [says("aaa"), says("a" * 60 + "b"), says("aa")])
    assert time.monotonic() - started_s < 5
    assert [rollout.reward for rollout in group.rollouts] == [1.0, 0.0, 1.0]
    assert metrics == [Total("reward/regex_unverified", 1), Total("reward/regex_errors", 0)]


def test_worker_processes_tell_how_busy_they_were_since_the_last_step(rewards, prompt, says):
    parts = rewards({"kind": "number"}, {"kind": "regex", "pattern": "a", "workers": 2})
    parts.score(prompt(answer="1"), [says("a")])
    busy, each, count = parts.rewards.metrics()
    assert (busy.name, each.name) == ("throughput/reward_regex_busy_fraction", "throughput/reward_regex_s_per_prompt")
    assert count == Last("throughput/reward_regex_processes", 2)
    assert 0 < busy.total / busy.count <= 0.5, "one of two had a call"
    assert each.count == 1 and 0 < each.total <= busy.count / 2
    busy, each, _ = parts.rewards.metrics()
    assert (busy.total, each.count) == (0, 0)


def test_a_long_completion_is_shortened_in_the_message(rewards, prompt, says, users):
    with pytest.raises(RewardError) as raised:
        rewards(users("return [math.nan]")).score(prompt(), [says("a" * 5000)])
    assert len(str(raised.value)) < 500


async def test_scoring_leaves_the_event_loop_free(rewards, prompt, says, users):
    parts = rewards(users("time.sleep(0.3); return [1.0] * len(completions)"))
    scoring = asyncio.create_task(parts.rewards.score(make.group(says("a"), prompt=prompt())))
    await asyncio.sleep(0.01)
    assert not scoring.done()
    group, _ = await scoring
    assert math.isclose(group.rollouts[0].reward, 1.0)


def test_the_samples_of_a_prompt_that_fails_are_saved_and_the_error_names_their_file(prompt, says, users, tmp_path):
    saved = []

    def save(groups):
        saved.extend(groups)
        return tmp_path / "samples.jsonl"

    section = TypeAdapter(list[RewardConfig]).validate_python([users("return [0.0, math.nan]")])
    with closing(build_rewards(section, save=save)) as parts, pytest.raises(RewardError) as raised:
        asyncio.run(parts.score(make.group(says("good"), says("bad"), prompt=prompt())))
    assert str(raised.value).endswith(f". The samples of the prompt are in {tmp_path}/samples.jsonl")
    (group,) = saved
    assert [(each.text, each.reward) for each in group.rollouts] == [("good", None), ("bad", None)]


def test_a_secret_among_the_options_stays_out_of_the_error(rewards, prompt, says, users):
    section = users("raise OSError('401 for key ' + columns['api_key'])") | {"options": {"api_key": "sk-very-secret"}}
    with pytest.raises(RewardError, match=r"OSError: 401 for key \*\*\*") as raised:
        rewards(section).score(prompt(), [says("a"), says("b")])
    assert "very-secret" not in str(raised.value)


def test_what_is_under_way_when_rewards_are_closed_ends_at_once_and_saves_nothing(prompt, says, users):
    section = TypeAdapter(list[RewardConfig]).validate_python([users("time.sleep(60)") | {"timeout_s": 60}])
    parts = build_rewards(section, save=pytest.fail)
    with ThreadPoolExecutor(2) as threads:
        group = make.group(says("a"), says("b"), prompt=prompt())
        calls = [threads.submit(asyncio.run, parts.score(group)) for _ in range(2)]
        time.sleep(1.0)
        start_s = time.monotonic()
        parts.close()
        for call in calls:
            with pytest.raises(RewardError):
                call.result(timeout=10)
    assert time.monotonic() - start_s < 5
