import pytest

from ray_rl.config.rules.check import check
from ray_rl.config.rules.episodes import episode_rules
from ray_rl.errors import ConfigError

WORLD = "environment={kind: custom, function: 'worlds:Sums', max_tokens: 100}"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["rollout.max_tokens=101"], "rollout.max_tokens=101: a turn may be longer than its whole episode"),
        (["data={kind: jsonl, path: x.jsonl, chat: false}"], "data.chat=false uses none; set data.chat=true"),
        (["run.deterministic=true"], "set run.deterministic=false"),
        (["rewards=[{kind: valid_calls}]"], "rewards.0.kind=valid_calls: no calls of tools are read"),
    ],
)
def test_what_contradicts_an_environment_is_refused_with_the_remedy(load, overrides, problem):
    (found,) = episode_rules(load(WORLD, "rollout.max_tokens=16", *overrides))
    assert problem in found
    assert list(episode_rules(load(WORLD, "rollout.max_tokens=16"))) == []


def test_rewards_of_calls_need_an_environment_that_reads_them(load):
    (found,) = episode_rules(load("rewards=[{kind: recovery}]"))
    assert "set environment.kind=tools" in found
    assert list(episode_rules(load("rewards=[{kind: recovery}]", "environment={kind: tools, tools: ['a:b']}"))) == []


def test_an_environment_needs_no_other_reward_and_counts_all_tokens_of_an_episode(load):
    config = load(WORLD, "rollout.max_tokens=16", "rewards=[]", "data.max_prompt_tokens=64")
    assert (config.most_tokens, load("rollout.max_tokens=16").most_tokens) == (100, 16)
    with pytest.raises(ConfigError, match="rewards="):
        check(load("rewards=[]"))
    check(config)
    with pytest.raises(ConfigError, match=r"environment.max_tokens=9000: .* do not fit"):
        check(
            load(
                "environment={kind: custom, function: 'worlds:Sums', max_tokens: 9000}",
                "model.path=smollm2-135m-instruct",
            )
        )
