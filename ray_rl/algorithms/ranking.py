"""Losses of reward models: the better of two answers, and right or wrong steps."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from ray_rl.algorithms.summed import Summed, summed


def bradley_terry_loss(
    chosen_J: Tensor, rejected_J: Tensor, *, margin_J: Tensor | None = None, centering: float
) -> Summed:
    """Returns the sum over pairs of -log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2.

    The count is the number of pairs of the whole optimizer step.

    Sources: InstructGPT, arXiv:2203.02155, equation 1; the margin is Llama 2's, arXiv:2307.09288, equation 2; the
    centring is Eisenstein et al., arXiv:2312.09244, which holds the scores around 0 without a second data set. TRL and
    OpenRLHF have the same formula.

    Metrics, means over pairs: loss, accuracy (the chosen score is the larger one), tied (the scores are equal, which
    counts as wrong), margin (chosen - rejected, whatever margin was asked for), chosen_score, rejected_score.

    Args:
        chosen_J: float32, differentiable: scores of the better answers. J may be 0. A head in bfloat16 resolves scores
            near 5 to 0.03, and ties become common: keep it in float32.
        rejected_J: float32, differentiable: scores of the worse answers.
        margin_J: float32, by how much the scores should differ at least; None: 0.
        centering: >= 0. Eisenstein et al. and TRL's manual: 0.01; 0 leaves the scores free.
    """
    gap_J = chosen_J - rejected_J
    loss_J = -logsigmoid(gap_J if margin_J is None else gap_J - margin_J)
    if centering > 0:
        loss_J = loss_J + centering * (chosen_J + rejected_J).square()
    pairs = len(chosen_J)
    terms = {
        "loss": loss_J,
        "accuracy": chosen_J > rejected_J,
        "tied": chosen_J == rejected_J,
        "margin": gap_J,
        "chosen_score": chosen_J,
        "rejected_score": rejected_J,
    }
    return summed(loss_J.sum(), {name: (values_J, pairs) for name, values_J in terms.items()})


def step_loss(log_odds_N: Tensor, labels_N: Tensor) -> Summed:
    """Returns the sum over steps of the two-way cross-entropy -y * log p(good) - (1 - y) * log p(bad).

    With p(good) = sigmoid(log odds). A head of two labels has log odds = logit(good) - logit(bad), and this is its
    cross-entropy; so have two tokens of a language model that stand for good and bad, if no other word is considered.

    The count is the number of labelled steps of the whole optimizer step: a solution of many steps weighs more.

    Sources: Lightman et al. 2023, arXiv:2305.20050, section 2.6; soft labels are Math-Shepherd's, arXiv:2312.08935.

    Metrics: loss, accuracy, and good_accuracy and bad_accuracy, which are those over the steps with a label above and
    below 1/2: most steps are good, so accuracy alone says little. Log odds of 0 are wrong for any label; a label of 1/2
    has no right answer and is left out of all three.

    Args:
        log_odds_N: float32, differentiable: at the last token of each labelled step. N may be 0.
        labels_N: float32 in [0, 1]: 1 for a good step.
    """
    loss_N = -labels_N * logsigmoid(log_odds_N) - (1.0 - labels_N) * logsigmoid(-log_odds_N)
    is_good_N, is_bad_N = labels_N > 0.5, labels_N < 0.5
    found_good_N, found_bad_N = is_good_N & (log_odds_N > 0), is_bad_N & (log_odds_N < 0)
    return summed(
        loss_N.sum(),
        {
            "loss": (loss_N, len(loss_N)),
            "accuracy": (found_good_N | found_bad_N, is_good_N | is_bad_N),
            "good_accuracy": (found_good_N, is_good_N),
            "bad_accuracy": (found_bad_N, is_bad_N),
        },
    )
