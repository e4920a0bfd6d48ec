import pytest

from ray_rl.metrics.metric import reduce_metrics
from ray_rl.metrics.rollout_metrics import is_informative, rollout_metrics
from ray_rl.types import Turn
from tests.make import completion, group, rollout


def numbers(groups, *, version):
    return reduce_metrics(rollout_metrics(groups, version=version))


def test_rewards_lengths_and_truncation_are_over_all_samples(make_group):
    groups = [make_group([1.0, 0.0], lengths=[2, 4]), make_group([1.0, 1.0], lengths=[6, 8], finish="length")]
    values = numbers(groups, version=0)
    assert values["reward/mean"] == 0.75
    assert values["reward/std"] == pytest.approx(0.4330127)
    assert values["reward/number_mean"] == 0.75
    assert values["rollout/tokens"] == 20
    assert values["rollout/length_mean"] == 5
    assert values["rollout/truncated_fraction"] == 0.5


def test_a_sample_without_an_opinion_is_left_out_of_the_mean_and_counted(make_group):
    values = numbers([make_group([1.0, None, 0.5, None])], version=0)
    assert (values["reward/mean"], values["reward/std"]) == (0.75, 0.25)
    assert values["reward/unscored_fraction"] == 0.5


def test_without_any_opinion_there_is_no_mean(make_group):
    values = numbers([make_group([None, None])], version=0)
    assert "reward/mean" not in values
    assert "reward/number_mean" not in values
    assert values["reward/unscored_fraction"] == 1.0


def test_staleness_counts_from_the_oldest_token(make_group):
    one = make_group([1.0, 0.0], lengths=[2, 2], versions=[[5, 6], [4, 6]])
    assert numbers([one], version=6)["rollout/staleness_max"] == 2


def test_only_groups_whose_rewards_differ_are_informative(make_group):
    groups = [make_group([1.0, 0.0]), make_group([1.0, 1.0]), make_group([1.0, None]), make_group([None, None])]
    assert numbers(groups, version=0)["rollout/groups_informative_fraction"] == 0.25


def test_what_the_environment_says_counts_neither_as_length_nor_as_stale():
    episode = rollout(completion(2, versions=5), Turn((7, 8, 9), completion(1, versions=6)), reward=1.0)
    values = numbers([group(episode)], version=6)
    assert (values["rollout/length_mean"], values["rollout/staleness_max"]) == (3, 1)


def test_rewards_of_turns_make_a_group_informative():
    first, second = (rollout(Turn((), completion(2), reward=reward), reward=1.0) for reward in (0.0, 1.0))
    assert is_informative(group(first, second))
    assert not is_informative(group(first, first))
