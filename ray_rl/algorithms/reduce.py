"""Reduces token losses to one number: a weight for every token, and the count that divides the weighted sum.

A loss is sum(weight * token_loss) / count. The sum is taken over a micro-batch, the count over the whole optimizer step
and every rank, and one place divides. So neither the micro-batch nor the number of workers changes a gradient.
"""

from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

Reduction = Literal["token_mean", "sequence_mean", "constant"]


def token_weights(
    lengths_R: NDArray[np.integer], reduction: Reduction, *, denominator: float = 1.0
) -> NDArray[np.float32]:
    """Returns the token weight: 1 (token_mean), 1 / sequence's tokens (sequence_mean), 1 / denominator (constant).

    Sources: token_mean is DAPO, arXiv:2503.14476, equation 8; sequence_mean is GRPO, arXiv:2402.03300, equation 3;
    constant is Dr. GRPO, arXiv:2503.20783, section 3.2, where the denominator is the longest completion allowed.

    Args:
        lengths_R: [R] loss tokens of each sequence, 0 or more: tokens inside the loss mask, gaps not counted.
        reduction: see `algorithm.reduction`.
        denominator: > 0, used by `constant` alone. 1 sums over tokens and averages over sequences.

    Returns:
        float32 [R]; 0 for a sequence without loss tokens.
    """
    is_empty_R = lengths_R == 0
    match reduction:
        case "token_mean":
            weights_R = np.ones(lengths_R.shape)
        case "sequence_mean":
            weights_R = 1.0 / np.where(is_empty_R, 1, lengths_R)
        case "constant":
            weights_R = np.full(lengths_R.shape, 1.0 / denominator)
        case _:
            assert_never(reduction)
    return np.where(is_empty_R, 0.0, weights_R).astype(np.float32)


def reduction_count(lengths_R: NDArray[np.integer], reduction: Reduction) -> float:
    """Returns what the weighted sum is divided by: loss tokens, sequences that have any, or all sequences.

    This is the order of token_mean, sequence_mean and constant. Under `constant` an empty sequence counts, because the
    denominator must not depend on the data.

    It is additive: the counts of the parts of a batch sum to the count of the batch.

    Args:
        lengths_R: [R] loss tokens of each sequence, as for `token_weights`.
        reduction: see `algorithm.reduction`.
    """
    match reduction:
        case "token_mean":
            return float(lengths_R.sum())
        case "sequence_mean":
            return float(np.count_nonzero(lengths_R))
        case "constant":
            return float(len(lengths_R))
        case _:
            assert_never(reduction)
