from dataclasses import replace

import numpy as np
import pytest

from ray_rl.config.data import Source
from ray_rl.data.examples.hygiene import Hygiene, hygiene_of
from ray_rl.errors import DataError
from ray_rl.types import Answer, Example

BOS = 1


def example(prompt: int, *answers: int, first: int = BOS) -> Example:
    """An example with so many tokens: the prompt is first, 100, 101 ..."""
    return Example(
        id="t:1",
        prompt_ids=(first, *range(100, 99 + prompt)),
        answers=tuple(Answer(np.arange(size, dtype=np.int32), np.ones(size, np.bool_)) for size in answers),
    )


def rules(**changes) -> Hygiene:
    settings = {"max_tokens": 10, "too_long": "cut_prompt_left", "deduplicate": False}
    return Hygiene(**settings | {"kept_first": frozenset({BOS}), "kept_end": 3} | changes)


def test_an_example_that_just_fits_is_unchanged():
    whole = example(6, 4, 3)
    assert rules(too_long="drop").admitted(whole, where="t") is whole
    assert rules(too_long="drop").admitted(example(7, 4, 3), where="t") is None


def test_a_pair_is_judged_by_its_longer_answer_and_cut_equally():
    hygiene = rules()
    cut = hygiene.admitted(example(8, 3, 5), where="t")
    # 10 tokens: bos, the last 4 of the prompt, and 5 of the longer answer. No answer is cut.
    assert cut.prompt_ids == (BOS, 103, 104, 105, 106)
    assert [len(answer.token_ids) for answer in cut.answers] == [3, 5]
    hygiene.admitted(example(6, 4), where="t")
    assert (hygiene.cut, hygiene.longest) == (1, 13)


def test_a_first_token_that_is_not_special_is_cut_like_the_others():
    assert rules().admitted(example(8, 5, first=99), where="t").prompt_ids == (102, 103, 104, 105, 106)


@pytest.mark.parametrize(("answer", "is_used"), [(6, True), (7, False), (10, False), (12, False)])
def test_the_generation_prompt_is_never_cut(answer, is_used):
    """Of ten tokens, bos and the generation prompt take four."""
    hygiene = rules()
    used = hygiene.admitted(example(8, answer), where="t")
    assert (used is not None) is is_used
    if used is None:
        assert dict(hygiene.left_out) == {"an answer that leaves no room for a prompt in data.max_tokens=10": 1}
    else:
        assert used.prompt_ids == (BOS, 104, 105, 106)


def test_an_example_that_is_too_long_is_dropped_and_counted_or_an_error_as_wanted():
    hygiene = rules(too_long="drop")
    assert hygiene.admitted(example(8, 5), where="t") is None
    assert dict(hygiene.left_out) == {"more than data.max_tokens=10": 1}
    with pytest.raises(DataError, match=r"^t.jsonl:3: 13 tokens, more than data.max_tokens=10; raise it, or set"):
        rules(too_long="error").admitted(example(8, 5), where="t.jsonl:3")


def test_repeated_examples_are_counted_and_left_out_if_wanted():
    for deduplicate in (False, True):
        hygiene = rules(deduplicate=deduplicate)
        used = [hygiene.admitted(example(4, size), where="t") for size in (2, 3, 2)]
        assert (used[2] is None) is deduplicate
        assert hygiene.repeated == 1
        assert hygiene.left_out.total() == int(deduplicate)


def test_equal_tokens_with_another_label_are_another_example():
    hygiene = rules(deduplicate=True)
    labels = [{}, {"label": True}, {"label": False}, {"margin": 1.0}, {"step_labels": np.ones(1, np.float32)}]
    for changes in labels:
        assert hygiene.admitted(replace(example(4, 2), **changes), where="t")
    assert hygiene.repeated == 0


def test_the_generation_prompt_and_the_special_tokens_are_those_of_the_tokenizer(bytes_tokenizer):
    tokenizer = bytes_tokenizer()
    hygiene = hygiene_of(tokenizer, Source(max_tokens=10), chat=True, seen=set())
    # <|im_end|>, a line end, <|im_start|>, nine letters and a line end.
    assert hygiene.kept_end == 13
    vocabulary = tokenizer.model_tokenizer.vocabulary
    assert {vocabulary["<s>"], vocabulary["<|im_start|>"]} <= hygiene.kept_first
    assert hygiene_of(tokenizer, Source(), chat=False, seen=set()).kept_end == 0
