"""The algorithms that learn from given examples, without rollouts: one class per `kind`, with its vetted defaults.

The formulas and sources of the losses are in `ray_rl.algorithms`; docs/offline.md compares them with other libraries.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ray_rl.config.base import Config
from ray_rl.types import LossAt

Wanted = Literal["demonstration", "comparison", "judged", "steps"]
"""Kind of an example: a conversation to imitate; a better and a worse answer; an answer that is good or bad; a solution
whose steps are good or bad."""

TrainOn = Literal["assistant", "last_turn", "all"]
"""Tokens of a demonstration with a loss; see `Sft.train_on`."""

BatchSize = Annotated[int, Field(ge=1)]
MeanOver = Literal["token", "pair"]


class Likelihood(Config):
    """A term that keeps the chosen answers likely: coefficient * -log p(chosen)."""

    coefficient: float = Field(1.0, gt=0)
    """Weight of the term. TRL's `cpo_alpha` and RPO (arXiv:2404.19733): 1."""
    over: MeanOver = "token"
    """token: the mean over all chosen tokens of the optimizer step (TRL). pair: the mean over pairs of the mean over
    their tokens (OpenRLHF, LLaMA-Factory)."""


class OfflineAlgorithm(Config):
    """Settings of all algorithms that learn from examples. Each `kind` is a subclass with its own vetted defaults."""

    kind: str = ""
    """Names the algorithm; docs/offline.md has a table of the kinds."""
    batch_size: BatchSize = 64
    """Number of examples in an optimizer step, over all workers: pairs, if the algorithm compares two answers. DPO's
    authors: 64."""

    wanted: ClassVar[Wanted] = "comparison"
    """What the examples are."""
    learning_rate: ClassVar[float] = 1e-6
    """Default of `train.learning_rate`."""
    loss_at: ClassVar[LossAt] = "tokens"
    """Where the model is trained on an example."""
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "margin")
    """Metrics of held-out examples that `checkpoint.keep_best` can name, after `eval/`. The best loss, entropy or
    error is the lowest; the best value of the others is the highest."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the policy with a frozen reference."""
        return False

    @property
    def is_scorer(self) -> bool:
        """Whether the model gets a head that predicts one number, in place of the head that predicts tokens."""
        return self.loss_at != "tokens"

    @property
    def rows_per_example(self) -> int:
        """Number of sequences of an example: 2 for a pair."""
        return 2 if self.wanted == "comparison" else 1


class Sft(OfflineAlgorithm):
    """Supervised fine-tuning: the mean over loss tokens of -log p.

    Batches of 128 are OpenRLHF's, and the learning rate of 2e-5 is TRL's (OpenRLHF: 5e-6).
    """

    kind: Literal["sft"] = "sft"
    batch_size: BatchSize = 128
    loss: Literal["cross_entropy", "dft"] = "cross_entropy"
    """dft multiplies the loss of each token by its probability, without a gradient through it (arXiv:2508.05629)."""
    train_on: TrainOn = "assistant"
    """Tokens with a loss. assistant: all turns of the assistant, with their end-of-turn tokens. last_turn: the last one
    alone. all: every token except the first."""

    wanted: ClassVar[Wanted] = "demonstration"
    learning_rate: ClassVar[float] = 2e-5
    metrics: ClassVar[tuple[str, ...]] = ("loss", "cross_entropy")


class RewardModel(OfflineAlgorithm):
    """A reward model from comparisons: -log sigmoid(chosen - rejected - margin), on the scores of two answers.

    Sources: InstructGPT, arXiv:2203.02155, equation 1; margins of the data, Llama 2, arXiv:2307.09288, equation 2.
    Batches of 128 and the learning rate of 9e-6 are OpenRLHF's (TRL: 1e-4).
    """

    kind: Literal["reward_model"] = "reward_model"
    batch_size: BatchSize = 128
    centering: float = Field(0.01, ge=0)
    """Weight of (chosen + rejected)^2, which keeps scores around 0. Eisenstein et al., arXiv:2312.09244, and TRL's
    manual: 0.01; 0 leaves scores free."""
    members: int = Field(1, ge=1)
    """Number of reward models that the run trains, each with a head and a bootstrap sample of the data of its own.
    Eisenstein et al.: 3 to 5. Their exports are the `paths` of a reward of kind `model`."""

    learning_rate: ClassVar[float] = 9e-6
    loss_at: ClassVar[LossAt] = "end"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "margin", "calibration_error")


class ProcessRewardModel(OfflineAlgorithm):
    """A reward model of single steps: cross-entropy of good or bad, at the end of each labelled step.

    Sources: arXiv:2305.20050, section 2.6; labels between 0 and 1 are Math-Shepherd's, arXiv:2312.08935. The learning
    rate of 1e-5 and the separator are TRL 0.24's.
    """

    kind: Literal["process_reward_model"] = "process_reward_model"
    separator: str = Field("\n", min_length=1)
    """Text after each step, where its score is read."""

    wanted: ClassVar[Wanted] = "steps"
    learning_rate: ClassVar[float] = 1e-5
    loss_at: ClassVar[LossAt] = "steps"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "good_accuracy", "bad_accuracy")


class Dpo(OfflineAlgorithm):
    """DPO: -log sigmoid(beta * m), where m is how much more the policy prefers the chosen answer than the reference.

    Source: arXiv:2305.18290, equation 7. beta 0.1, batches of 64 and the learning rate of 1e-6 are the authors';
    OpenRLHF's examples have 5e-7.
    """

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)
    """Strength of the penalty on the distance to the reference. The authors: 0.1, and 0.5 for summaries."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs whose label is assumed to be wrong. TRL's examples: 0.1; 0 is DPO."""
    smoothing: Literal["conservative", "robust"] = "conservative"
    """How `label_smoothing` is used. conservative: cDPO (Mitchell 2023, "A note on DPO with noisy preferences").
    robust: unbiased under that noise (arXiv:2403.00409)."""
    reference_free: bool = False
    """Use log-probabilities of the policy alone, as if the reference were uniform."""
    likelihood: Likelihood | None = None
    """Adds the likelihood of the chosen answers (RPO, arXiv:2404.19733). None: DPO alone."""

    @property
    def needs_reference(self) -> bool:
        """True unless `reference_free` is."""
        return not self.reference_free


class Ipo(OfflineAlgorithm):
    """IPO: (D - 1 / (2 * beta))^2, where D is the margin of DPO, which so has a target instead of growing.

    Source: arXiv:2310.12036, equation 17. beta 0.1 (the paper's tau) and the learning rate are TRL's.
    """

    kind: Literal["ipo"] = "ipo"
    beta: float = Field(0.1, gt=0)
    """The target of the margin is 1 / (2 * beta)."""
    over: Literal["mean", "sum"] = "mean"
    """mean: log-ratios are averaged over the tokens of an answer (TRL, LLaMA-Factory). sum: they are added, as in the
    paper (OpenRLHF). A beta for one is not one for the other."""

    needs_reference: ClassVar[bool] = True


class Kto(OfflineAlgorithm):
    """KTO: learns from single answers that are good or bad, compared with a baseline of the whole optimizer step.

    Source: arXiv:2402.01306, equation 7. beta and the weights are the paper's. The learning rate is TRL's; the paper
    uses 5e-6.
    """

    kind: Literal["kto"] = "kto"
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Number of examples in an optimizer step, over all workers; at least 2, because the baseline pairs prompts with
    answers to others. TRL's manual: 16 to 128."""
    beta: float = Field(0.1, gt=0)
    """Strength of the penalty on the distance to the reference."""
    desirable_weight: float = Field(1.0, gt=0)
    """Weight of good answers. The paper: choose the weights so that desirable_weight * good answers is 1 to 4/3 times
    undesirable_weight * bad answers."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Weight of bad answers."""

    wanted: ClassVar[Wanted] = "judged"
    needs_reference: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")


class Orpo(OfflineAlgorithm):
    """ORPO: -log p(chosen) - beta * log sigmoid(log odds ratio), without a reference; it replaces SFT and DPO.

    Source: arXiv:2403.07691, equations 6 and 7. beta 0.1 (the paper's lambda) and the learning rate of 8e-6 are the
    paper's.
    """

    kind: Literal["orpo"] = "orpo"
    beta: float = Field(0.1, ge=0)
    """Weight of the odds ratio."""
    over: MeanOver = "pair"
    """How the likelihood of the chosen answers is averaged. pair: over the means of pairs (the paper, LLaMA-Factory).
    token: over all chosen tokens of the optimizer step (TRL, which includes the tokens of the prompt)."""

    learning_rate: ClassVar[float] = 8e-6


class SimPo(OfflineAlgorithm):
    """SimPO: -log sigmoid(beta * (c' - r') - margin) on mean log-probabilities, without a reference.

    Source: arXiv:2405.14734, section 2. beta 2 and a margin of half of it are where the authors start; batches of 128
    and the learning rate of 1e-6 are theirs.
    """

    kind: Literal["simpo"] = "simpo"
    batch_size: BatchSize = 128
    beta: float = Field(2.0, gt=0)
    """Scale of the mean log-probabilities. The authors: 2 to 10; TRL, LLaMA-Factory: 0.1."""
    margin: float = Field(1.0, ge=0)
    """Subtracted after the multiplication by beta (gamma). The authors: 0.3 to 0.8 times beta."""
    likelihood: Likelihood | None = None
    """Adds the likelihood of the chosen answers (CPO-SimPO). TRL adds it with coefficient 1 unless `cpo_alpha` is 0."""


OfflineKinds = Sft | RewardModel | ProcessRewardModel | Dpo | Ipo | Kto | Orpo | SimPo
