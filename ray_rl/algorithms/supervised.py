"""The loss of supervised fine-tuning: cross-entropy of given tokens."""

from typing import Literal, assert_never

from torch import Tensor

from ray_rl.algorithms.summed import Summed, summed

SupervisedKind = Literal["cross_entropy", "dft"]


def supervised_loss(logprobs_N: Tensor, kind: SupervisedKind) -> Summed:
    """Returns the sum of -log p (cross_entropy) or of -stop_gradient(p) * log p (dft) over tokens.

    The count is the number of loss tokens of the whole optimizer step: a token weighs the same in a short and in a long
    example. Labels are not smoothed, as that would need the log-probabilities of all words.

    Source of dft: Wu et al. 2025, arXiv:2508.05629, as in TRL's `loss_type="dft"`. A token's gradient is
    multiplied by its probability, so that unlikely tokens push less.

    Metrics: loss, and cross_entropy, which is the same except under dft. Both are means over tokens, in nats.

    Args:
        logprobs_N: float32, differentiable: log-probabilities of the loss tokens of a micro-batch. N may be 0.
        kind: which of the two.
    """
    cross_entropy_N = -logprobs_N
    match kind:
        case "cross_entropy":
            loss_N = cross_entropy_N
        case "dft":
            loss_N = logprobs_N.detach().exp() * cross_entropy_N
        case _:
            assert_never(kind)
    tokens = len(logprobs_N)
    return summed(loss_N.sum(), {"loss": (loss_N, tokens), "cross_entropy": (cross_entropy_N, tokens)})
