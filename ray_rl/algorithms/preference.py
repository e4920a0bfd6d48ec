"""Losses of preferences: which of two completions is better, or whether one is good.

A loss reads the log-probability of a whole completion, the sum over its tokens that are trained on, so a completion
must lie in one micro-batch, and a pair as well. c and r are those sums of the chosen and the rejected completion, c0
and r0 the same under the reference, |c| and |r| the numbers of tokens, and c' = c / |c|, r' = r / |r|.

Every loss over pairs has the number of pairs of the whole optimizer step as its count, KTO's has that of its rows; the
reference implementations average over micro-batches instead, which is the same only if all of them are full.

Every loss over pairs has the same metrics. Means over pairs: loss, accuracy (the chosen reward is the larger one; equal
rewards are wrong), margin (the difference of the rewards), chosen_reward, rejected_reward, where a reward is what the
loss compares. Means over tokens: chosen_logprob, rejected_logprob.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ray_rl.algorithms.summed import Summed, summed

LikelihoodOver = Literal["token", "pair"]
"""How a likelihood is averaged. token: over all chosen tokens of the optimizer step (TRL). pair: over the averages -c'
of its pairs, so that each pair weighs the same (OpenRLHF, LLaMA-Factory)."""

MOST_LIKELY = -(2.0**-24)
"""Bound of an average log-probability where its odds are taken, which are infinite at 0. Float32 has no number between
1 and 1 - 2^-24, so that a probability beyond the bound is one that was rounded. There is no gradient beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The pairs of a micro-batch. J may be 0."""

    chosen_J: Tensor
    """float32 or float64, differentiable: c."""
    rejected_J: Tensor
    """float32 or float64, differentiable: r."""
    reference_J: tuple[Tensor, Tensor] | None = None
    """float32 or float64: c0 and r0. None: there is no reference."""
    chosen_tokens_J: Tensor
    """int64, > 0: |c|."""
    rejected_tokens_J: Tensor
    """int64, > 0: |r|."""
    tokens_per_pair: float
    """Mean of |c| over all pairs of the optimizer step, not only over these; read by a likelihood of each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """A term that keeps the chosen completion likely: coefficient * -log p."""

    coefficient: float
    over: LikelihoodOver


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpo:
    """Settings of `dpo_loss`."""

    beta: float
    """> 0. DPO's paper, TRL, OpenRLHF and LLaMA-Factory: 0.1."""
    label_smoothing: float
    """e in [0, 1/2): the share of pairs whose label is thought to be wrong. 0 is DPO."""
    smoothing: Literal["conservative", "robust"]
    reference_free: bool
    """True ignores the reference: c0 and r0 count as 0."""
    likelihood: Likelihood | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipo:
    """Settings of `ipo_loss`."""

    beta: float
    """> 0, the paper's tau. TRL and OpenRLHF: 0.1."""
    over: Literal["mean", "sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPo:
    """Settings of `simpo_loss`."""

    beta: float
    """> 0. Authors: 2.0 to 2.5, up to 10; TRL and LLaMA-Factory: 0.1."""
    margin: float
    """>= 0. Authors: 0.3 to 0.8 times beta; TRL and LLaMA-Factory: 0.5."""
    likelihood: Likelihood | None
    """None is SimPO; with the coefficient 1 it is CPO-SimPO, which TRL computes unless `cpo_alpha` is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orpo:
    """Settings of `orpo_loss`."""

    beta: float
    """>= 0, the paper's lambda: 0.1."""
    over: LikelihoodOver
    """The likelihood's. The paper's equation 6: pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kto:
    """Settings of `kto_loss`."""

    beta: float
    """> 0. The paper and TRL: 0.1."""
    desirable_weight: float
    """The paper: its product with the number of good rows should be 1 to 4/3 times that of the bad ones."""
    undesirable_weight: float


def dpo_loss(settings: Dpo, pairs: Pairs) -> Summed:
    """Returns the sum over pairs of -log sigmoid(beta * m), m = (c - c0) - (r - r0), with smoothing and likelihood.

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7. With x = beta * m and e the label smoothing,

        conservative: -(1 - e) * log sigmoid(x) - e * log sigmoid(-x)
        robust:      [-(1 - e) * log sigmoid(x) + e * log sigmoid(-x)] / (1 - 2e)

    Sources: cDPO, Mitchell 2023, "A note on DPO with noisy preferences"; Chowdhury et al. 2024, arXiv:2403.00409. TRL
    1.16 ignores its `label_smoothing` under `loss_type="sigmoid"`.

    A reward is beta * (c - c0).

    Raises:
        ValueError: there is no reference, and the settings need one.
    """
    chosen_J, rejected_J = _log_ratios(pairs, reference_free=settings.reference_free)
    logits_J, e = settings.beta * (chosen_J - rejected_J), settings.label_smoothing
    right_J, wrong_J = -(1.0 - e) * logsigmoid(logits_J), -e * logsigmoid(-logits_J)
    match settings.smoothing:
        case "conservative":
            loss_J = right_J + wrong_J
        case "robust":
            loss_J = (right_J - wrong_J) / (1.0 - 2.0 * e)
        case _:
            assert_never(settings.smoothing)
    loss_J = _with_likelihood(loss_J, pairs, settings.likelihood)
    return _with_metrics(pairs, loss_J, settings.beta * chosen_J, settings.beta * rejected_J)


def ipo_loss(settings: Ipo, pairs: Pairs) -> Summed:
    """Returns the sum over pairs of (D - 1 / (2 * beta))^2, D = (c - c0) / |c| - (r - r0) / |r| (mean) or m (sum).

    Source: Azar et al. 2023, arXiv:2310.12036, equation 17, has the sum, as OpenRLHF; TRL and LLaMA-Factory take the
    mean, which TRL says its authors meant. Betas do not transfer: the optimum is a gap of 1 / (2 * beta) nats a token
    in one and between whole completions in the other.

    A reward is beta times its side of D, where TRL logs beta * (c - c0).

    Raises:
        ValueError: there is no reference.
    """
    chosen_J, rejected_J = _log_ratios(pairs, reference_free=False)
    match settings.over:
        case "mean":
            chosen_J, rejected_J = chosen_J / pairs.chosen_tokens_J, rejected_J / pairs.rejected_tokens_J
        case "sum":
            pass
        case _:
            assert_never(settings.over)
    loss_J = (chosen_J - rejected_J - 1.0 / (2.0 * settings.beta)).square()
    return _with_metrics(pairs, loss_J, settings.beta * chosen_J, settings.beta * rejected_J)


def simpo_loss(settings: SimPo, pairs: Pairs) -> Summed:
    """Returns the sum over pairs of -log sigmoid(beta * (c' - r') - margin), with the likelihood. Has no reference.

    Source: Meng et al. 2024, arXiv:2405.14734, section 2. The margin comes after beta, as the paper and TRL have it
    (TRL computes beta * (c' - r' - margin / beta)).

    A reward is beta * c': accuracy does not ask for the margin.
    """
    chosen_J = settings.beta * pairs.chosen_J / pairs.chosen_tokens_J
    rejected_J = settings.beta * pairs.rejected_J / pairs.rejected_tokens_J
    loss_J = -logsigmoid(chosen_J - rejected_J - settings.margin)
    return _with_metrics(pairs, _with_likelihood(loss_J, pairs, settings.likelihood), chosen_J, rejected_J)


def orpo_loss(settings: Orpo, pairs: Pairs) -> Summed:
    """Returns the sum over pairs of -log p(chosen) - beta * log sigmoid(log odds(c') - log odds(r')).

    Here odds(x) = e^x / (1 - e^x). Has no reference. Source: Hong et al. 2024, arXiv:2403.07691, equations 6 and 7.
    The likelihood is that of the completion; TRL's is that of the prompt as well.

    A reward is beta * c', as in TRL.
    """
    chosen_J = pairs.chosen_J / pairs.chosen_tokens_J
    rejected_J = pairs.rejected_J / pairs.rejected_tokens_J
    loss_J = -settings.beta * logsigmoid(_log_odds(chosen_J) - _log_odds(rejected_J))
    loss_J = _with_likelihood(loss_J, pairs, Likelihood(coefficient=1.0, over=settings.over))
    return _with_metrics(pairs, loss_J, settings.beta * chosen_J, settings.beta * rejected_J)


def kto_loss(
    settings: Kto, logprobs_R: Tensor, reference_R: Tensor, is_desirable_R: Tensor, *, baseline: float
) -> Summed:
    """Returns the sum over rows of w_d * (1 - sigmoid(beta * (d - z))) or w_u * (1 - sigmoid(beta * (z - d))).

    The first is for desirable rows, the second for the others; d is the log-ratio of a row's completion to the
    reference. The count is the number of rows of the whole optimizer step, good and bad together.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, equation 7. It is computed as the sigmoid of the negative, which
    is exact where it is small.

    Metrics: loss; chosen_reward and rejected_reward, the means of beta * d over good and over bad rows; accuracy, the
    share of rows on the right side of the baseline, d = z being wrong.

    Args:
        settings: beta and the weights.
        logprobs_R: float32 or float64, differentiable: the sum over the tokens of each row's completion. R may be 0.
        reference_R: float32 or float64: the same under the reference.
        is_desirable_R: bool.
        baseline: z of the whole optimizer step, from `kto_baseline`.
    """
    log_ratio_R = logprobs_R - reference_R
    weight_R = torch.full_like(log_ratio_R, settings.undesirable_weight)
    weight_R.masked_fill_(is_desirable_R, settings.desirable_weight)
    gap_R = log_ratio_R - baseline
    ahead_R = torch.where(is_desirable_R, gap_R, -gap_R)
    loss_R = weight_R * torch.sigmoid(-settings.beta * ahead_R)
    reward_R = settings.beta * log_ratio_R
    return summed(
        loss_R.sum(),
        {
            "loss": (loss_R, len(loss_R)),
            "accuracy": (ahead_R > 0, len(loss_R)),
            "chosen_reward": (reward_R[is_desirable_R], is_desirable_R),
            "rejected_reward": (reward_R[~is_desirable_R], ~is_desirable_R),
        },
        each={"reward": reward_R},
    )


def _log_ratios(pairs: Pairs, *, reference_free: bool) -> tuple[Tensor, Tensor]:
    """Returns c - c0 and r - r0."""
    if reference_free:
        return pairs.chosen_J, pairs.rejected_J
    if pairs.reference_J is None:
        raise ValueError("the pairs have no log-probabilities of the reference; compute them before the update")
    chosen_J, rejected_J = pairs.reference_J
    return pairs.chosen_J - chosen_J, pairs.rejected_J - rejected_J


def _with_likelihood(loss_J: Tensor, pairs: Pairs, likelihood: Likelihood | None) -> Tensor:
    """Returns the loss with a likelihood whose sum over pairs, divided by the count, is the mean that it should be."""
    if likelihood is None:
        return loss_J
    match likelihood.over:
        case "token":
            nll_J = -pairs.chosen_J / pairs.tokens_per_pair
        case "pair":
            nll_J = -pairs.chosen_J / pairs.chosen_tokens_J
        case _:
            assert_never(likelihood.over)
    return loss_J + likelihood.coefficient * nll_J


def _log_odds(average_J: Tensor) -> Tensor:
    """Returns x - log(1 - e^x).

    expm1 is exact near 0, where 1 - e^x cancels; where e^x is small its rounding is below that of x. A choice between
    it and log1p(-e^x) would have nan for its gradient, from the branch that is not taken.
    """
    x_J = average_J.clamp(max=MOST_LIKELY)
    return x_J - torch.log(-torch.expm1(x_J))


def _with_metrics(pairs: Pairs, loss_J: Tensor, chosen_reward_J: Tensor, rejected_reward_J: Tensor) -> Summed:
    """Returns the sum of the losses with the metrics of every loss over pairs."""
    count = len(loss_J)
    return summed(
        loss_J.sum(),
        {
            "loss": (loss_J, count),
            "accuracy": (chosen_reward_J > rejected_reward_J, count),
            "margin": (chosen_reward_J - rejected_reward_J, count),
            "chosen_reward": (chosen_reward_J, count),
            "rejected_reward": (rejected_reward_J, count),
            "chosen_logprob": (pairs.chosen_J, pairs.chosen_tokens_J),
            "rejected_logprob": (pairs.rejected_J, pairs.rejected_tokens_J),
        },
        each={
            "chosen_reward": chosen_reward_J,
            "rejected_reward": rejected_reward_J,
            "reward_margin": chosen_reward_J - rejected_reward_J,
        },
    )
