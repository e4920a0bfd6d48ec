import numpy as np
import pytest

from ray_rl.batching.pack_examples import pack_examples
from ray_rl.types import Answer, Example


def answer(tokens, trained=None):
    mask = np.ones(len(tokens), np.bool_) if trained is None else np.isin(np.arange(len(tokens)), trained)
    return Answer(np.array(tokens, np.int32), mask)


def pair(name, prompt, chosen, rejected, **settings):
    return Example(id=name, prompt_ids=prompt, answers=(answer(chosen), answer(rejected)), **settings)


def one(name, prompt, tokens, trained=None, **settings):
    return Example(id=name, prompt_ids=prompt, answers=(answer(tokens, trained),), **settings)


def test_a_pair_is_a_group_of_its_chosen_and_its_rejected_row():
    batch = pack_examples([pair("a", (1, 2), [5, 6], [7]), pair("b", (3,), [8], [9, 9, 9])], loss_at="tokens")
    assert batch.group_size == 2
    assert batch.ids == ("a", "b")
    assert [prompt.tolist() for prompt in batch.prompt_ids] == [[1, 2], [3]]
    assert batch.tokens_RT.tolist() == [[5, 6, 0], [7, 0, 0], [8, 0, 0], [9, 9, 9]]
    assert batch.lengths_R.tolist() == [2, 1, 1, 3]
    assert batch.loss_mask_RT.sum(1).tolist() == [2, 1, 1, 3]
    assert batch.reference_R is batch.margins_J is batch.labels_R is batch.labels_RT is batch.baseline is None


def test_rows_with_one_prompt_are_no_group():
    batch = pack_examples([one("a", (1,), [5]), one("b", (1,), [6])], loss_at="tokens")
    assert batch.group_size == 1
    assert len(batch.prompt_ids) == batch.rows == 2


def test_the_loss_tokens_of_a_language_model_are_those_of_its_mask():
    batch = pack_examples([one("a", (1,), [5, 6, 7, 8], trained=[1, 3])], loss_at="tokens")
    assert batch.tokens_RT.tolist() == [[5, 6, 7, 8]]
    assert batch.loss_mask_RT.tolist() == [[False, True, False, True]]


def test_the_score_of_an_answer_is_read_before_a_dummy_token_after_its_end():
    batch = pack_examples([pair("a", (1,), [5, 6], [7])], loss_at="end")
    assert batch.tokens_RT[:, :2].tolist() == [[5, 6], [7, 0]]
    assert batch.lengths_R.tolist() == [3, 2]
    assert batch.loss_mask_RT.tolist() == [[False, False, True], [False, True, False]]


def test_a_step_is_read_at_its_last_token_and_its_label_belongs_to_the_token_after_it():
    examples = [
        one("a", (1,), [5, 9, 6, 9], trained=[1, 3], step_labels=np.array([1.0, 0.25], np.float32)),
        one("b", (1,), [9], step_labels=np.array([0.5], np.float32)),
    ]
    batch = pack_examples(examples, loss_at="steps")
    assert batch.lengths_R.tolist() == [5, 2]
    assert batch.tokens_RT[0, :4].tolist() == [5, 9, 6, 9]
    assert batch.loss_mask_RT.tolist() == [[False, False, True, False, True], [False, True, False, False, False]]
    assert batch.labels_RT.tolist() == [[0, 0, 1.0, 0, 0.25], [0, 0.5, 0, 0, 0]]


def test_margins_and_labels_are_packed_and_a_missing_margin_counts_as_0():
    batch = pack_examples([pair("a", (1,), [5], [6], margin=1.5), pair("b", (1,), [5], [6])], loss_at="tokens")
    assert batch.margins_J.tolist() == [1.5, 0.0]
    batch = pack_examples([one("a", (1,), [5], label=True), one("b", (2,), [5], label=False)], loss_at="tokens")
    assert batch.labels_R.tolist() == [True, False]


@pytest.mark.parametrize(
    ("examples", "loss_at", "message"),
    [
        ([], "tokens", "equally many answers"),
        ([one("a", (1,), [5]), pair("b", (1,), [5], [6])], "tokens", r"equally many answers, got \[1, 2\]"),
        ([one("a", (), [5])], "tokens", "example a has an empty prompt"),
        ([one("a", (1,), [])], "end", "example a has an answer without loss tokens"),
        ([one("a", (1,), [5, 6], trained=[])], "tokens", "example a has an answer without loss tokens"),
        ([one("a", (1,), [5], label=True), one("b", (1,), [5])], "tokens", "1 of 2 examples of a batch have a label"),
        ([one("a", (1,), [5, 6], step_labels=np.ones(1, np.float32))], "steps", "1 labels of steps for 2 loss tokens"),
        ([one("a", (1,), [5, 6])], "steps", "example a has 0 labels of steps for 2 loss tokens"),
    ],
)
def test_what_cannot_be_trained_on_is_an_error_that_names_the_example(examples, loss_at, message):
    with pytest.raises(ValueError, match=message):
        pack_examples(examples, loss_at=loss_at)


def test_a_mask_of_another_length_is_an_error():
    example = Example(id="a", prompt_ids=(1,), answers=(Answer(np.zeros(2, np.int32), np.ones(3, np.bool_)),))
    with pytest.raises(ValueError, match="2 tokens has a loss mask of 3"):
        pack_examples([example], loss_at="tokens")


def test_the_digest_of_an_example_depends_on_its_tokens_and_masks_alone():
    def digest(**changes):
        settings = {"name": "a", "prompt": (1, 2), "tokens": [3, 4], "trained": [1], **changes}
        return one(*settings.values()).digest

    others = [digest(prompt=(1,)), digest(tokens=[3, 5]), digest(trained=[0, 1]), digest(prompt=(12,)), digest()]
    assert len(set(others)) == 5
    assert digest(name="b") == digest()
