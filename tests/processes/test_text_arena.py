"""Games of textarena, played for real. It takes seconds to import."""

import asyncio
import random

import pytest

from ray_rl.environments.base import Reply
from ray_rl.environments.text_arena import maker_of_game
from ray_rl.errors import ConfigError

NAME = "GuessTheNumber-v0"


async def search(game, seed):
    """Finds the number by halves, and returns what the game said."""
    (rules,) = await game.reset({}, seed)
    low, high, said = 1, 20, [rules.content]
    while True:
        guess = (low + high) // 2
        step = await game.step(Reply(f"I say [{guess}]"))
        if step.done:
            return step, [*said, str(guess)]
        (message,) = step.messages
        said.append(message.content)
        low, high = (guess + 1, high) if "higher" in message.content else (low, guess - 1)


def test_a_game_is_played_to_its_end_and_its_own_reward():
    step, said = asyncio.run(search(maker_of_game(NAME, {})(), 7))
    assert (step.reward, step.metrics) == (1.0, {"invalid_move": 0.0})
    assert "between 1 and 20" in said[0]
    assert all(text.startswith("The target number is") for text in said[1:-1])
    assert not any("I say" in text for text in said)


def test_a_move_that_is_none_is_said_and_counted():
    async def play():
        game = maker_of_game(NAME, {})()
        await game.reset({}, 7)
        return [await game.step(Reply("seven")) for _ in range(3)]

    steps = asyncio.run(play())
    assert steps[-1].done
    assert steps[-1].metrics == {"invalid_move": 1.0}


def test_games_side_by_side_are_the_same_as_alone_and_leave_the_random_numbers_of_the_process():
    make = maker_of_game(NAME, {})

    async def beside():
        return await asyncio.gather(*(search(make(), seed) for seed in range(8)))

    alone = [asyncio.run(search(make(), seed)) for seed in range(8)]
    random.seed(1)
    before = random.getstate()
    assert asyncio.run(beside()) == alone
    assert random.getstate() == before
    assert len({said[-1] for _, said in alone}) > 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("GuessTheNumber", {}, "no such game; did you mean GuessTheNumber-v0"),
        (NAME, {"maximum": 3}, "does not start with one player and options .*maximum"),
        ("Chess-v0", {}, "does not start with one player"),
    ],
)
def test_what_is_no_game_for_one_is_refused_with_what_to_change(name, options, message):
    with pytest.raises(ConfigError, match=message):
        maker_of_game(name, options)
