"""An environment that asks for a sum, says whether the answer is too low or too high, and lets the model try again."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray_rl.environments.base import Reply, Step
from ray_rl.types import Message

HINTS = {True: "That is too low.", False: "That is too high.", None: "That is not a number."}


class SecondChance:
    """One episode. The reward is 1 for a right first answer, and `later` for a right answer after a hint."""

    def __init__(self, later: float = 0.5) -> None:
        self.worth = 1.0
        self.later = later

    async def reset(self, row: Mapping[str, Any], seed: int) -> Sequence[Message]:
        """Begins with the question of the row."""
        self.answer = int(row["answer"])
        return ()

    async def step(self, reply: Reply) -> Step:
        """Rewards a right answer, and gives a hint for a wrong one."""
        found = re.findall(r"\d+", reply.text)
        guess = int(found[-1]) if found and len(found[-1]) < 9 else None
        if guess == self.answer:
            return Step(reward=self.worth, done=True, metrics={"right": 1.0})
        hint = HINTS[None if guess is None else guess < self.answer]
        self.worth = self.later
        return Step((Message("user", f"{hint} Try again. Answer with a number."),), reward=0.0, metrics={"right": 0.0})

    async def close(self) -> None:
        """Ends nothing: the environment is only memory."""
