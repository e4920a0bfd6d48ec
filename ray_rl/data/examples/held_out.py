"""Decides which examples are held out for evaluation, by a hash of how their conversation opens."""

from __future__ import annotations

import hashlib
import json

from ray_rl.data.formats.record import Content
from ray_rl.data.messages import as_messages


def is_held_out(prompt: Content, *, share: float) -> bool:
    """Returns whether the examples of a prompt are held out.

    They are if SHA-256 of the opening, its first eight bytes read as a number in [0, 1), is below the share. So it does
    not depend on the order of rows, their file or `run.seed`, and all stages of a pipeline hold out the same prompts. A
    larger share holds out more prompts, and none fewer.

    Args:
        prompt: the prompt of the example.
        share: `data.held_out`, from 0 to 1.
    """
    hashed = hashlib.sha256(json.dumps(opening(prompt)).encode())
    return int.from_bytes(hashed.digest()[:8], "big") / 2**64 < share


def opening(prompt: Content) -> list[list[str]]:
    """Returns the messages up to the first of the user, with runs of white space as one space.

    Data sets often have a dialogue several times, each time with more turns. All of these have the same opening, and so
    are on the same side.
    """
    messages = as_messages(prompt, "user")
    end = next((place for place, message in enumerate(messages, start=1) if message.role == "user"), len(messages))
    return [[message.role, " ".join(message.content.split())] for message in messages[:end]]
