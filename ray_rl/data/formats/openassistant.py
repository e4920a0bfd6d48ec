"""OpenAssistant: trees of messages, one message a row, with ranks of the answers to one message."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.data.formats.content import answer_to
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.ranking import best_and_lower
from ray_rl.data.formats.record import Comparison, Content, Unusable
from ray_rl.data.messages import role_of
from ray_rl.errors import DataError
from ray_rl.types import Message


def comparisons(rows: Sequence[Fields]) -> list[Comparison]:
    """Returns a pair for each message of a tree with at least two ranked answers: the best, and a worse one.

    The prompt is the path from the root to that message. Deleted answers and those that the review refused do not
    count, nor does a message whose answers all have one rank.
    """
    by_id = {row.text("message_id"): row for row in rows}
    answers: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        parent = row.optional_text("parent_id")
        if not parent:
            continue
        if parent not in by_id:
            raise DataError(
                f"{row.place('parent_id')} is {parent!r}, which is not among the {len(rows)} consecutive rows of its "
                "tree; sort the rows by message_tree_id"
            )
        rank = row.optional_number("rank")
        is_kept = not row.values.get("deleted") and row.values.get("review_result") is not False
        if row.text("role") == "assistant" and rank is not None and is_kept:
            answers.setdefault(parent, []).append((-rank, row.text("text")))
    pairs = []
    for parent, ranked in answers.items():
        if len({rank for rank, text in ranked if text.strip()}) > 1:
            prompt = _path(by_id, parent)
            best, lower = best_and_lower(ranked, prompt=by_id[parent].text("text"))
            pairs.append(Comparison(prompt, answer_to(prompt, best), answer_to(prompt, lower)))
    if not pairs:
        raise Unusable("a tree without two ranked answers to one message")
    return pairs


def _path(by_id: dict[str, Fields], last: str) -> Content:
    """Returns the messages from the root to this one."""
    path: list[Message] = []
    here = last
    while here:
        if len(path) == len(by_id):
            raise DataError(f"{by_id[last].place('parent_id')}: the messages of this tree form a circle; correct them")
        row = by_id[here]
        path.append(Message(role_of(row.text("role")), row.text("text")))
        here = row.optional_text("parent_id")
    return tuple(reversed(path))


FORMAT = Format(
    name="openassistant",
    wanted="comparison",
    line="trees of OpenAssistant: the best answer to each message, against one drawn from the worse ones",
    columns=("message_id", "parent_id", "message_tree_id", "text", "role", "rank"),
    conversion=comparisons,
    joined_by="message_tree_id",
)
