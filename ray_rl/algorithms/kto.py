"""The baseline of KTO, which the driver computes from log-probabilities of the whole step."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def mismatched_rows(prompts: Sequence[Hashable]) -> NDArray[np.int64]:
    """Returns which row's completion each row's prompt is paired with in `kto_baseline`: [M, 2] rows, M > 0.

    Rows are ordered by prompt and rotated by the size of the largest group. So every completion is used once, and never
    with its own prompt, unless more than half of the rows have the same prompt; then rows without a partner are left
    out. If all prompts differ these are TRL's pairs, with the completion of the row before; TRL rotates by one in any
    case, which pairs a prompt with its own completion where rows share a prompt.

    Args:
        prompts: the prompt of every row of an optimizer step, in any form that tells them apart.

    Raises:
        ValueError: all prompts are the same.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    if len(groups) < 2:
        raise ValueError(
            f"an optimizer step with {len(prompts)} rows has {len(groups)} different prompts, but KTO's baseline pairs "
            "prompts with completions of others; use larger batches, or shuffle the rows"
        )
    ordered = [row for rows in groups.values() for row in rows]
    shift = max(len(rows) for rows in groups.values())
    found = [(row, ordered[i - shift]) for i, row in enumerate(ordered)]
    return np.array([(row, other) for row, other in found if prompts[row] != prompts[other]], np.int64)


def kto_baseline(log_ratios_M: NDArray[np.floating]) -> float:
    """Returns z = max(0, mean of d over mismatched rows), an estimate of KL(policy || reference); a constant.

    Source: KTO, arXiv:2402.01306, equation 7. It is one number for the whole optimizer step; TRL and LLaMA-Factory
    have one for each micro-batch, so that there the loss depends on the layout.

    Args:
        log_ratios_M: log-ratio to the reference of each completion of `mismatched_rows` after its other prompt. M > 0.
    """
    # In this order max returns nan for nan.
    return max(float(np.mean(log_ratios_M, dtype=np.float64)), 0.0)
