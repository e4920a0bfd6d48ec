import numpy as np
import pytest

from ray_rl.batching.pack import pack
from ray_rl.types import Prompt, Turn
from tests import make
from tests.make import completion, rollout


def group(prompt_tokens, *samples):
    """A group of (tokens, reward) pairs; the log-probability of token t is -t / 8."""
    rollouts = [rollout(sampled(tokens), reward=reward) for tokens, reward in samples]
    return make.group(*rollouts, prompt=Prompt("p", tuple(prompt_tokens), ""))


def sampled(tokens, **settings):
    return completion(tokens, logprobs=[-token / 8 for token in tokens], **settings)


@pytest.fixture
def ragged():
    return pack([group([1, 2], ([5, 6, 7], 1.0), ([8], None)), group([3], ([9, 9], 0.0), ([4, 0, 4, 0], -2.5))])


def test_rows_are_ordered_by_prompt_and_padded_with_zeros(ragged):
    assert ragged.tokens_RT.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0], [9, 9, 0, 0], [4, 0, 4, 0]]
    assert ragged.lengths_R.tolist() == [3, 1, 2, 4]
    assert ragged.rollout_logprobs_RT[0].tolist() == [-0.625, -0.75, -0.875, 0]
    assert [prompt.tolist() for prompt in ragged.prompt_ids] == [[1, 2], [3]]
    assert ragged.group_size == 2
    assert ragged.rows == 4


def test_the_mask_covers_every_sampled_token_by_position_whatever_its_value(ragged):
    assert ragged.loss_mask_RT.sum(1).tolist() == [3, 1, 2, 4]
    assert ragged.loss_mask_RT[3].all()


def test_a_completion_without_an_opinion_has_the_reward_nan(ragged):
    np.testing.assert_array_equal(ragged.rewards_R, np.array([1.0, np.nan, 0.0, -2.5], np.float32))


def test_arrays_have_the_types_of_the_legend(ragged):
    assert ragged.tokens_RT.dtype == ragged.lengths_R.dtype == ragged.prompt_ids[0].dtype == np.int32
    assert ragged.rollout_logprobs_RT.dtype == ragged.rewards_R.dtype == np.float32
    assert ragged.loss_mask_RT.dtype == np.bool_
    assert ragged.advantages_RT is ragged.old_logprobs_RT is ragged.reference_logprobs_RT is None


def test_groups_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"groups of one size, got sizes \[1, 2\]"):
        pack([group([1], ([5], 1.0)), group([1], ([5], 1.0), ([6], 0.0))])


def test_no_groups_are_refused():
    with pytest.raises(ValueError, match=r"got sizes \[\]"):
        pack([])


def episode(**settings):
    """Two sampled tokens, an answer of the environment of three, one sampled token."""
    reply = Turn((50, 51, 52), sampled([8], versions=4), reward=settings.pop("second", None))
    return rollout(Turn((), sampled([5, 6], versions=3), reward=settings.pop("first", None)), reply, **settings)


def packed(*rollouts, **settings):
    return pack([make.group(*rollouts, prompt=Prompt("p", (1, 2), ""))], **settings)


def test_turns_follow_each_other_and_what_the_environment_says_is_not_trained_on():
    batch = packed(episode(reward=1.0), rollout(sampled([9]), reward=0.0))
    assert batch.tokens_RT.tolist() == [[5, 6, 50, 51, 52, 8], [9, 0, 0, 0, 0, 0]]
    assert batch.loss_mask_RT.astype(int).tolist() == [[1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]
    assert batch.rollout_logprobs_RT[0].tolist() == [-0.625, -0.75, 0.0, 0.0, 0.0, -1.0]
    assert (batch.lengths_R.tolist(), batch.sampled_R.tolist()) == ([6, 1], [3, 1])
    assert batch.token_rewards_RT is None
    assert episode().versions.tolist() == [3, 3, -1, -1, -1, 4]


def test_the_reward_of_a_turn_stands_on_its_last_token_and_adds_to_rewards_of_tokens():
    dense = [0.0, 0.5, 0.0, 0.0, 0.0, 0.25]
    batch = packed(episode(first=2.0, second=-1.0, token_rewards=dense, reward=3.0), rollout(sampled([9]), reward=0.0))
    assert batch.token_rewards_RT.tolist() == [[0.0, 2.5, 0.0, 0.0, 0.0, -0.75], [0.0] * 6]
    assert batch.rewards_R.tolist() == [3.0, 0.0]


def test_a_rollout_whose_turns_alone_have_rewards_is_scored():
    batch = packed(episode(first=2.0), episode())
    np.testing.assert_array_equal(batch.rewards_R, np.array([0.0, np.nan], np.float32))


def test_token_rewards_of_another_number_than_the_tokens_are_refused():
    with pytest.raises(ValueError, match=r"token rewards of shape \(3,\) for a rollout of 6 tokens"):
        packed(episode(token_rewards=[1.0, 0.0, 0.0]))


def test_an_episode_that_the_limit_cut_off_has_no_loss_tokens_if_so_wanted():
    batch = packed(episode(stop="length"), episode(stop="turns"), mask_truncated=True)
    assert batch.loss_mask_RT.sum(1).tolist() == [0, 3]
    assert batch.sampled_R.tolist() == [3, 3]
