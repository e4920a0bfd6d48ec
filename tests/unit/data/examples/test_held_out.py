import random

import pytest

from ray_rl.data.examples.held_out import is_held_out, opening
from ray_rl.types import Message

PROMPTS = [f"question {number}" for number in range(4000)]


def test_the_share_of_prompts_is_about_the_share_that_is_asked_for():
    count = sum(is_held_out(prompt, share=0.1) for prompt in PROMPTS)
    # Four standard deviations of a binomial count.
    assert abs(count - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert not any(is_held_out(prompt, share=0.0) for prompt in PROMPTS)


def test_the_side_of_a_prompt_does_not_depend_on_the_order_of_rows():
    held = {prompt for prompt in PROMPTS if is_held_out(prompt, share=0.2)}
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    assert {prompt for prompt in shuffled if is_held_out(prompt, share=0.2)} == held
    # The hash is stated, and so these stay: another version of the program holds out the same prompts.
    assert [prompt for prompt in PROMPTS[:20] if prompt in held] == [
        f"question {number}" for number in (2, 4, 14, 17, 19)
    ]


def test_a_larger_share_holds_out_the_same_prompts_and_more():
    assert all(is_held_out(prompt, share=0.3) for prompt in PROMPTS if is_held_out(prompt, share=0.1))


@pytest.mark.parametrize(
    "prompt",
    [
        (Message("user", "6*7?"),),
        " 6*7?\n",
        (Message("user", "6*7?"), Message("assistant", "42"), Message("user", "Sure?")),
    ],
    ids=["as a message", "with other white space", "with more turns"],
)
def test_forms_of_one_prompt_are_on_the_same_side(prompt):
    assert opening(prompt) == opening("6*7?") == [["user", "6*7?"]]


def test_the_system_message_is_part_of_the_opening():
    assert opening((Message("system", "Rhyme."), Message("user", "6*7?"))) == [["system", "Rhyme."], ["user", "6*7?"]]
