"""Packs examples, which need no rollouts, into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from ray_rl.batching.pack import pad
from ray_rl.types import Answer, Example, LossAt, OfflineBatch

DUMMY = 0
"""The token that is added after an answer: the loss reads the state before it, and never the token."""


def pack_examples(examples: Sequence[Example], *, loss_at: LossAt) -> OfflineBatch:
    """Returns the batch of an optimizer step, without the log-probabilities of a reference.

    A row has the tokens of one answer. Models that score states read the state before each loss token, so that the loss
    token of a state is the one after it; a dummy token is added for the state at the end.

    Args:
        examples: at least one, with equally many answers each. A missing margin counts as 0 if others have one.
        loss_at: where the model is trained. Under `end` the loss masks of the answers have no meaning.

    Raises:
        ValueError: no examples, or different numbers of answers; an empty prompt or answer; an answer without loss
            tokens; labels that only some examples have; step labels that are not one for each token of the loss mask.
    """
    sizes = {len(example.answers) for example in examples}
    if len(sizes) != 1:
        raise ValueError(f"a batch needs examples with equally many answers, got {sorted(sizes)}")
    for example in examples:
        _require_loss(example, loss_at)
    answers = [_scored(answer, loss_at) for example in examples for answer in example.answers]
    loss_mask_RT = pad([answer.loss_mask for answer in answers], np.bool_)
    margins = [example.margin for example in examples]
    labels = [example.label for example in examples if example.label is not None]
    if 0 < len(labels) < len(examples):
        raise ValueError(f"{len(labels)} of {len(examples)} examples of a batch have a label")
    return OfflineBatch(
        prompt_ids=tuple(np.asarray(example.prompt_ids, np.int32) for example in examples),
        group_size=sizes.pop(),
        tokens_RT=pad([answer.token_ids for answer in answers], np.int32),
        lengths_R=np.array([len(answer.token_ids) for answer in answers], np.int32),
        loss_mask_RT=loss_mask_RT,
        ids=tuple(example.id for example in examples),
        margins_J=None
        if all(margin is None for margin in margins)
        else np.array([margin or 0.0 for margin in margins], np.float32),
        labels_R=np.array(labels, np.bool_) if labels else None,
        labels_RT=_step_labels(examples, loss_mask_RT) if loss_at == "steps" else None,
    )


def _require_loss(example: Example, loss_at: LossAt) -> None:
    if not example.prompt_ids:
        raise ValueError(f"example {example.id} has an empty prompt, so nothing predicts its first answer token")
    for answer in example.answers:
        if len(answer.loss_mask) != len(answer.token_ids):
            raise ValueError(
                f"example {example.id}: an answer of {len(answer.token_ids)} tokens has a loss mask of "
                f"{len(answer.loss_mask)}"
            )
        if not len(answer.token_ids) or (loss_at != "end" and not answer.loss_mask.any()):
            raise ValueError(f"example {example.id} has an answer without loss tokens; leave the example out")


def _scored(answer: Answer, loss_at: LossAt) -> Answer:
    """Returns the answer as its model reads it, with the mask of its loss tokens."""
    match loss_at:
        case "tokens":
            return answer
        case "end":
            after = np.zeros(len(answer.token_ids), np.bool_)
            after[-1] = True
        case "steps":
            after = answer.loss_mask
        case _:
            assert_never(loss_at)
    # Moved by one token: the loss token of a state is the one after it.
    return Answer(np.append(answer.token_ids, np.int32(DUMMY)), np.insert(after, 0, False))


def _step_labels(examples: Sequence[Example], loss_mask_RT: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns float32 [R, T], the labels at the loss tokens."""
    nothing = np.zeros(0, np.float32)
    given = [nothing if example.step_labels is None else example.step_labels for example in examples]
    for example, labels, count in zip(examples, given, loss_mask_RT.sum(1), strict=True):
        if len(labels) != count:
            raise ValueError(f"example {example.id} has {len(labels)} labels of steps for {count} loss tokens")
    labels_RT = np.zeros(loss_mask_RT.shape, np.float32)
    # Both are ordered by row, then by token.
    labels_RT[loss_mask_RT] = np.concatenate(given)
    return labels_RT
