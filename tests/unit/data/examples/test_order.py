import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.data.examples.load import Examples
from ray_rl.data.examples.order import ExampleOrder
from ray_rl.data.order import epoch_order
from ray_rl.errors import ConfigError
from ray_rl.types import Answer, Example


def examples(size: int, **digests: str) -> Examples:
    answer = Answer(np.zeros(1, np.int32), np.ones(1, np.bool_))
    train = [Example(id=str(index), prompt_ids=(1,), answers=(answer,)) for index in range(size)]
    return Examples("jsonl", train, [], [], {"train.jsonl": "blake2b:1"} | digests)


def taken(order: ExampleOrder, count: int) -> list[int]:
    return [int(example.id) for example in order.take(count)]


def test_an_epoch_has_every_example_once_in_the_order_of_prompts():
    order = ExampleOrder(examples(7), shuffle=True, seed=3)
    assert taken(order, 7) == epoch_order(7, shuffle=True, seed=3, epoch=0)
    assert order.epoch == 0
    assert taken(order, 3) == epoch_order(7, shuffle=True, seed=3, epoch=1)[:3]
    assert order.epoch == 1


def test_a_batch_may_be_larger_than_an_epoch():
    order = ExampleOrder(examples(3), shuffle=False, seed=0)
    assert taken(order, 8) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert (order.epoch, taken(order, 1)) == (2, [2])


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 9),
    shuffle=st.booleans(),
    before=st.lists(st.integers(0, 12), max_size=3),
    after=st.lists(st.integers(0, 12), min_size=1, max_size=3),
)
def test_a_restored_order_continues_exactly_where_it_was(size, shuffle, before, after):
    uninterrupted = ExampleOrder(examples(size), shuffle=shuffle, seed=1)
    for count in before:
        uninterrupted.take(count)
    restored = ExampleOrder(examples(size), shuffle=shuffle, seed=1)
    restored.restore(json.loads(json.dumps(uninterrupted.state())))
    for count in after:
        assert taken(restored, count) == taken(uninterrupted, count)
        assert restored.state() == uninterrupted.state()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (examples(8), "size was 7, is 8"),
        (examples(7, **{"train.jsonl": "blake2b:2"}), "the content of train.jsonl has changed"),
        (examples(7, **{"the list of examples": "x"}), "the list of examples is new"),
    ],
)
def test_the_position_in_other_examples_is_refused(other, message):
    state = ExampleOrder(examples(7), shuffle=True, seed=0).state()
    with pytest.raises(ConfigError, match=message):
        ExampleOrder(other, shuffle=True, seed=0).restore(state)
