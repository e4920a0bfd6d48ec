import numpy as np
import pytest

from ray_rl.batching.pack import pack
from ray_rl.types import Completion, Prompt, Rollout, RolloutGroup


def group(prompt_tokens, *samples):
    """A group of (tokens, reward) pairs; the log-probability of token t is -t / 8."""
    rollouts = []
    for tokens, reward in samples:
        completion = Completion(
            token_ids=np.array(tokens, np.int32),
            logprobs=np.array([-token / 8 for token in tokens], np.float32),
            versions=np.zeros(len(tokens), np.int32),
            finish_reason="stop",
            text="",
        )
        rollouts.append(Rollout(completion, reward, {}))
    return RolloutGroup(Prompt("p", tuple(prompt_tokens), ""), rollouts)


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
