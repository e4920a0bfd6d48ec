"""The losses against TRL's own functions, on a bigram model in float64: values, gradients and metrics.

TRL's functions run as they are on trainers made without `__init__`, which would load a model and a data set. Prompts
are one token long: TRL's ORPO has the prompt in its likelihood, all but the first token.
"""

from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import pad

from ray_rl.algorithms import kto, preference
from ray_rl.algorithms.preference import Dpo, Ipo, Kto, Likelihood, Orpo, Pairs, SimPo
from ray_rl.algorithms.ranking import bradley_terry_loss
from ray_rl.algorithms.supervised import supervised_loss

VOCABULARY = 7
PROMPTS = [1, 4, 2, 6]
CHOSEN = [[3, 5, 2], [0, 1, 1, 6, 2], [5], [2, 3]]
REJECTED = [[4, 2], [6, 0, 2], [1, 4, 3, 2], [5, 5]]
LABELS = [True, False, False, True]
CHOSEN_TOKENS = sum(map(len, CHOSEN))


def weights(seed):
    """The logits of a bigram model, [last token, next token]."""
    return torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2


REFERENCE = weights(4)


def token_logprobs(weights_VV, prompt, completion):
    """Log-probability of each token of a completion, one at a time."""
    context = [prompt, *completion[:-1]]
    return torch.stack([weights_VV[a].log_softmax(0)[b] for a, b in zip(context, completion, strict=True)])


def completion_logprobs(weights_VV, prompts, completions):
    return torch.stack([token_logprobs(weights_VV, *row).sum() for row in zip(prompts, completions, strict=True)])


def pairs(weights_VV):
    return Pairs(
        chosen_J=completion_logprobs(weights_VV, PROMPTS, CHOSEN),
        rejected_J=completion_logprobs(weights_VV, PROMPTS, REJECTED),
        reference_J=(
            completion_logprobs(REFERENCE, PROMPTS, CHOSEN),
            completion_logprobs(REFERENCE, PROMPTS, REJECTED),
        ),
        chosen_tokens_J=torch.tensor([len(row) for row in CHOSEN]),
        rejected_tokens_J=torch.tensor([len(row) for row in REJECTED]),
        tokens_per_pair=CHOSEN_TOKENS / len(CHOSEN),
    )


def padded(prompts, completions, width=6):
    """TRL's batch: token ids, attention mask and completion mask, padded on the right."""
    rows = [torch.tensor([prompt, *completion]) for prompt, completion in zip(prompts, completions, strict=True)]
    ids = torch.stack([pad(row, (0, width - len(row))) for row in rows])
    attention = torch.stack([pad(torch.ones_like(row), (0, width - len(row))) for row in rows])
    is_completion = attention.clone()
    is_completion[:, 0] = 0
    return ids, attention, is_completion


class Bigram:
    """A model as TRL calls it: with its fused head, or for logits."""

    training = True

    def __init__(self, weights_VV):
        self.weights_VV = weights_VV

    def __call__(self, input_ids, attention_mask=None, labels=None, fused_lm_head=False, use_cache=None):
        logits = self.weights_VV[input_ids]
        if not fused_lm_head:
            return SimpleNamespace(logits=logits)
        labels = labels[:, 1:]
        mask = labels != -100
        logprobs = logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        zeros = torch.zeros_like(logprobs)
        return SimpleNamespace(
            log_probs=torch.where(mask, logprobs, 0.0),
            label_mask=mask,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )


@pytest.fixture(scope="module")
def trl():
    """TRL's trainers, imported once. The package is in the test extra."""
    package = pytest.importorskip("trl", reason="trl is not installed; make setup-test installs it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # warnings are errors
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer

    return SimpleNamespace(
        DPO=package.DPOTrainer,
        KTO=package.KTOTrainer,
        SFT=package.SFTTrainer,
        Reward=package.RewardTrainer,
        CPO=CPOTrainer,
        ORPO=ORPOTrainer,
    )


def trained_module():
    """A module: with peft installed, TRL looks for adapters in it."""
    module = torch.nn.Module()
    module.is_gradient_checkpointing = False
    return module


def trainer(kind, **settings):
    """A trainer of TRL with the attributes that its loss reads."""
    made = object.__new__(kind)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        parallelism_config=None,
        num_processes=1,
        gather=lambda values: values,
        gather_for_metrics=lambda values: values,
    )
    common = {
        "accelerator": accelerator,
        "model": trained_module(),
        "aux_loss_enabled": False,
    }
    for name, value in (common | settings).items():
        setattr(made, name, value)
    made._metrics, made._total_train_tokens, made._tp_size = {"train": defaultdict(list)}, 0, 1
    return made


def dpo_trainer(trl, loss_types, *, smoothing=0.0, weights=(1.0, 1.0)):
    return trainer(
        trl.DPO,
        ref_model=Bigram(REFERENCE),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        loss_types=loss_types,
        loss_weights=weights[: len(loss_types)],
        beta=0.1,
        label_smoothing=smoothing,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        precompute_ref_logps=False,
    )


def trl_dpo(made, weights_VV, rows=slice(None)):
    ids, attention, is_completion = padded(PROMPTS[rows] * 2, CHOSEN[rows] + REJECTED[rows])
    inputs = {"input_ids": ids, "attention_mask": attention, "completion_mask": is_completion}
    return made._compute_loss(Bigram(weights_VV), inputs, False)


def trl_cpo(made, weights_VV):
    batch = {}
    for side, completions in (("chosen", CHOSEN), ("rejected", REJECTED)):
        ids, attention, is_completion = padded(PROMPTS, completions)
        batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"] = ids, attention
        batch[f"{side}_labels"] = ids.masked_fill(is_completion == 0, -100)
    return made.get_batch_loss_metrics(Bigram(weights_VV), batch)


def same(ours, theirs, count, rtol=1e-10):
    """Checks that both functions of the weights agree in value and gradient, and returns what both returned."""
    own_VV, foreign_VV = weights(0).requires_grad_(), weights(0).requires_grad_()
    own, foreign = ours(own_VV), theirs(foreign_VV)
    foreign_loss, metrics = foreign if isinstance(foreign, tuple) else (foreign, {})
    loss = own.loss_sum / count
    torch.testing.assert_close(loss, foreign_loss.double(), rtol=rtol, atol=0)
    loss.backward()
    foreign_loss.backward()
    torch.testing.assert_close(own_VV.grad, foreign_VV.grad, rtol=rtol, atol=1e-10)
    return own, metrics


def mean(sums, name):
    total, count = sums.means[name]
    return total / count


DPO = Dpo(beta=0.1, label_smoothing=0.0, smoothing="conservative", reference_free=False, likelihood=None)


def test_dpo_is_that_of_trl_with_its_metrics(trl):
    made = dpo_trainer(trl, ["sigmoid"])
    sums, _ = same(lambda w: preference.dpo_loss(DPO, pairs(w)), partial(trl_dpo, made), 4)
    logged = made._metrics["train"]
    for ours, theirs in (
        ("chosen_reward", "rewards/chosen"),
        ("rejected_reward", "rewards/rejected"),
        ("margin", "rewards/margins"),
        ("accuracy", "rewards/accuracies"),
    ):
        # A tensor of Python numbers is float32 in TRL.
        assert mean(sums, ours) == pytest.approx(logged[theirs][0], rel=1e-6), ours


def test_the_conservative_loss_is_that_of_trl_which_has_it_as_aot_of_one_pair(trl):
    settings = Dpo(beta=0.1, label_smoothing=0.2, smoothing="conservative", reference_free=False, likelihood=None)
    made = dpo_trainer(trl, ["aot"], smoothing=0.2)

    def one_by_one(weights_VV):
        return sum(trl_dpo(made, weights_VV, slice(j, j + 1)) for j in range(4)) / 4

    same(lambda w: preference.dpo_loss(settings, pairs(w)), one_by_one, 4)


def test_the_robust_loss_is_that_of_trl(trl):
    settings = Dpo(beta=0.1, label_smoothing=0.2, smoothing="robust", reference_free=False, likelihood=None)
    made = dpo_trainer(trl, ["robust"], smoothing=0.2)
    same(lambda w: preference.dpo_loss(settings, pairs(w)), partial(trl_dpo, made), 4)


def test_dpo_with_a_likelihood_is_that_of_trl(trl):
    likelihood = Likelihood(coefficient=0.3, over="token")
    settings = Dpo(beta=0.1, label_smoothing=0.0, smoothing="conservative", reference_free=False, likelihood=likelihood)
    made = dpo_trainer(trl, ["sigmoid", "sft"], weights=(1.0, 0.3))
    same(lambda w: preference.dpo_loss(settings, pairs(w)), partial(trl_dpo, made), 4)


def test_ipo_is_that_of_trl(trl):
    made = dpo_trainer(trl, ["ipo"])
    same(lambda w: preference.ipo_loss(Ipo(beta=0.1, over="mean"), pairs(w)), partial(trl_dpo, made), 4)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_simpo_is_that_of_trl(trl, alpha):
    likelihood = Likelihood(coefficient=alpha, over="token") if alpha else None
    settings = SimPo(beta=2.0, margin=1.0, likelihood=likelihood)
    made = trainer(
        trl.CPO,
        is_encoder_decoder=False,
        pad_token_id=0,
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=1.0,
        cpo_alpha=alpha,
        alpha=0.0,
        label_smoothing=0.0,
    )
    sums, logged = same(lambda w: preference.simpo_loss(settings, pairs(w)), partial(trl_cpo, made), 4)
    assert mean(sums, "margin") == pytest.approx(logged["rewards/margins"], rel=1e-12)
    assert mean(sums, "accuracy") == logged["rewards/accuracies"]


def test_orpo_is_that_of_trl_which_computes_it_in_float32(trl):
    settings = Orpo(beta=0.1, over="token")
    made = trainer(trl.ORPO, is_encoder_decoder=False, padding_value=0, beta=0.1)
    sums, logged = same(lambda w: preference.orpo_loss(settings, pairs(w)), partial(trl_cpo, made), 4, rtol=1e-6)
    assert mean(sums, "margin") == pytest.approx(logged["rewards/margins"], rel=1e-6)


def test_kto_and_its_baseline_are_those_of_trl(trl):
    settings = Kto(beta=0.1, desirable_weight=1.3, undesirable_weight=0.7)
    is_desirable_R = torch.tensor(LABELS)
    mismatched = [(PROMPTS[row], CHOSEN[other]) for row, other in kto.mismatched_rows(PROMPTS)]
    new_M, frozen_M = (completion_logprobs(w, *zip(*mismatched, strict=True)) for w in (weights(0), REFERENCE))
    baseline = kto.kto_baseline((new_M - frozen_M).numpy())

    def ours(weights_VV):
        return preference.kto_loss(
            settings,
            completion_logprobs(weights_VV, PROMPTS, CHOSEN),
            completion_logprobs(REFERENCE, PROMPTS, CHOSEN),
            is_desirable_R,
            baseline=baseline,
        )

    made = trainer(
        trl.KTO,
        ref_model=Bigram(REFERENCE),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        loss_type="kto",
        beta=0.1,
        desirable_weight=1.3,
        undesirable_weight=0.7,
        calculate_KL=True,
        precompute_ref_logps=False,
    )

    def trl_kto(weights_VV):
        ids, attention, is_completion = padded(PROMPTS, CHOSEN)
        kl_ids, kl_attention, is_kl_completion = padded(*zip(*mismatched, strict=True))
        batch = {
            "input_ids": ids,
            "attention_mask": attention,
            "completion_mask": is_completion,
            "KL_input_ids": kl_ids,
            "KL_attention_mask": kl_attention,
            "KL_completion_mask": is_kl_completion,
            "label": is_desirable_R,
        }
        return made._compute_loss(Bigram(weights_VV), batch, False)

    sums, _ = same(ours, trl_kto, 4)
    logged = made._metrics["train"]
    assert baseline == pytest.approx(1.65394, rel=1e-5)
    assert baseline == pytest.approx(logged["kl"][0], rel=1e-12)
    assert mean(sums, "chosen_reward") == pytest.approx(logged["rewards/chosen"][0], rel=1e-12)
    assert mean(sums, "rejected_reward") == pytest.approx(logged["rewards/rejected"][0], rel=1e-12)


@pytest.mark.parametrize(("kind", "loss_type"), [("cross_entropy", "nll"), ("dft", "dft")])
def test_supervised_losses_of_two_micro_batches_are_those_of_trl(trl, kind, loss_type):
    made = trainer(
        trl.SFT,
        args=SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=True),
        compute_loss_func=None,
        label_smoother=None,
        get_tp_size=lambda: 1,
    )

    def trl_sft(weights_VV):
        losses = []
        for rows in (slice(0, 1), slice(1, 4)):
            ids, attention, is_completion = padded(PROMPTS[rows], CHOSEN[rows])
            inputs = {
                "input_ids": ids,
                "attention_mask": attention,
                "labels": ids.masked_fill(is_completion == 0, -100),
            }
            losses.append(made.compute_loss(Bigram(weights_VV), inputs, num_items_in_batch=CHOSEN_TOKENS))
        return sum(losses)

    def ours(weights_VV):
        rows = zip(PROMPTS, CHOSEN, strict=True)
        return supervised_loss(torch.cat([token_logprobs(weights_VV, *row) for row in rows]), kind)

    same(ours, trl_sft, CHOSEN_TOKENS)


@pytest.mark.parametrize("margin_J", [None, [0.5, 0.0, 2.0, 1.0]])
@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_bradley_terry_is_that_of_trl_with_its_metrics(trl, margin_J, centering):
    made = trainer(trl.Reward, args=SimpleNamespace(center_rewards_coefficient=centering or None))
    margins = {} if margin_J is None else {"margin": torch.tensor(margin_J, dtype=torch.float64)}

    def scores(weights_VV):
        """Scores of chosen and rejected rows; those of the last pair are equal."""
        return weights_VV[0, :4], torch.stack([*weights_VV[1, :3], weights_VV[0, 3]])

    def model(attention_mask, margin=None, use_cache=None, *, weights_VV):
        return SimpleNamespace(logits=torch.cat(scores(weights_VV))[:, None])

    def trl_reward(weights_VV):
        inputs = {"attention_mask": torch.ones(8, 3)} | margins
        return made.compute_loss(partial(model, weights_VV=weights_VV), inputs)

    def ours(weights_VV):
        return bradley_terry_loss(*scores(weights_VV), margin_J=margins.get("margin"), centering=centering)

    sums, _ = same(ours, trl_reward, 4)
    logged = made._metrics["train"]
    assert sums.means["tied"] == (1.0, 4.0)
    assert mean(sums, "accuracy") == pytest.approx(logged["accuracy"][0])
    assert mean(sums, "margin") == pytest.approx(logged["margin"][0])
