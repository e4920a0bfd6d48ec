import math

import numpy as np
import pytest
import torch

from ray_rl.algorithms.policy_loss import LossInputs
from ray_rl.algorithms.policy_loss import policy_loss as loss_with
from ray_rl.algorithms.reduce import reduction_count, token_weights
from ray_rl.config.algorithm import Algorithm, Kl
from ray_rl.config.losses import Cispo, Clipped, Gspo, PolicyGradient, Sapo
from ray_rl.training.configured import policy_loss_of
from tests.golden import reference, tensors

REDUCTIONS = ["token_mean", "sequence_mean"]
LENGTHS_R = tensors.MASK_RT.sum(1).numpy()


def policy_loss(algorithm, inputs, *, kl_coefficient=0.0):
    return loss_with(policy_loss_of(algorithm), inputs, kl_coefficient=kl_coefficient)


def golden_inputs(reduction="token_mean", **changes):
    rows_N = tensors.flat_rows()
    given = {
        "logprobs_N": tensors.flat(tensors.logprobs_RT("new")),
        "old_logprobs_N": tensors.flat(tensors.logprobs_RT("old")),
        "reference_logprobs_N": tensors.flat(tensors.logprobs_RT("reference")),
        "entropy_N": torch.linspace(0.1, 3.0, len(rows_N)),
        "advantages_N": tensors.ADVANTAGES_R[rows_N],
        "weights_N": torch.from_numpy(token_weights(LENGTHS_R, reduction))[rows_N],
        "row_N": rows_N,
    }
    return LossInputs(**(given | changes))


def part(inputs, index_N):
    fields = {name: getattr(inputs, name) for name in inputs.__slots__}
    return LossInputs(**{name: None if value is None else value[index_N] for name, value in fields.items()})


def leaf(values):
    return values.clone().requires_grad_()


# CISPO's loss is not a function whose gradient it is: its weight is held constant. test_surrogates.py has it by hand.
@pytest.mark.parametrize(
    "surrogate", [Clipped(), Clipped(dual_clip=3.0), Gspo(gradient="sequence"), Sapo(), PolicyGradient()]
)
def test_the_gradient_is_that_of_finite_differences(surrogate):
    generator = torch.Generator().manual_seed(0)
    new_N, old_N, ref_N, advantages_N = torch.randn(4, 40, dtype=torch.float64, generator=generator) * 0.5
    entropy_N = torch.rand(40, dtype=torch.float64, generator=generator, requires_grad=True)
    config = Algorithm(clip=(0.2, 0.28), loss=surrogate, entropy_coefficient=0.1)

    def loss(logprobs_N, entropy_N):
        inputs = LossInputs(
            logprobs_N=logprobs_N,
            old_logprobs_N=old_N,
            reference_logprobs_N=ref_N,
            entropy_N=entropy_N,
            advantages_N=advantages_N,
            weights_N=torch.linspace(0.1, 1, 40, dtype=torch.float64),
            row_N=torch.arange(40) // 8,
        )
        return policy_loss(config, inputs, kl_coefficient=0.3).loss_sum

    assert torch.autograd.gradcheck(loss, (leaf(new_N), entropy_N))


@pytest.mark.parametrize("kind", ["new", "extreme"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_batch_agrees_with_the_slow_reference(reduction, estimator, kind):
    config = Algorithm(clip=(0.2, 0.28), kl=Kl(estimator=estimator), entropy_coefficient=0.01)
    inputs = golden_inputs(reduction, logprobs_N=tensors.flat(tensors.logprobs_RT(kind)))
    rows = (reference.by_row(tensors.logprobs_RT(name), tensors.MASK_RT) for name in (kind, "old", "reference"))
    entropies = iter(inputs.entropy_N.tolist())
    surrogates, kls, bonuses = [], [], []
    for new, old, ref, advantage in zip(*rows, tensors.ADVANTAGES_R.tolist(), strict=True):
        surrogates.append(
            [reference.clipped_token_loss(n, o, advantage, 0.2, 0.28) for n, o in zip(new, old, strict=True)]
        )
        kls.append([reference.kl(n, r, estimator) for n, r in zip(new, ref, strict=True)])
        bonuses.append([next(entropies) for _ in new])
    loss, kl, entropy = (reference.reduce(values, reduction) for values in (surrogates, kls, bonuses))

    sums = policy_loss(config, inputs, kl_coefficient=0.05)
    count = reduction_count(LENGTHS_R, reduction)
    assert sums.loss_sum.item() / count == pytest.approx(loss + 0.05 * kl - 0.01 * entropy, rel=1e-6, abs=1e-6)
    assert sums.weight == pytest.approx(count)
    assert sums.totals["policy/loss"] / count == pytest.approx(loss, rel=1e-6, abs=1e-6)
    assert sums.totals["policy/kl_reference"] / count == pytest.approx(kl, rel=1e-6, abs=1e-6)
    assert sums.totals["policy/entropy"] / count == pytest.approx(entropy, rel=1e-6, abs=1e-6)


def test_metrics_of_a_hand_worked_update():
    new_N = torch.tensor([0.8, 0.5, 0.25]).log()
    inputs = LossInputs(
        logprobs_N=new_N,
        old_logprobs_N=torch.full((3,), 0.5).log(),
        advantages_N=torch.tensor([1.0, 1.0, 1.0]),
        weights_N=torch.ones(3),
        row_N=torch.zeros(3, dtype=torch.int64),
    )
    sums = policy_loss(Algorithm(), inputs)
    assert sums.weight == 3.0
    assert sums.totals == pytest.approx(
        {
            "policy/loss": -1.2 - 1.0 - 0.5,
            "policy/clip_fraction": 1.0,
            "policy/kl_old_k3": (1.6 - math.log(1.6) - 1) + 0.0 + (0.5 - math.log(0.5) - 1),
        }
    )
    assert sums.maxima == pytest.approx({"policy/ratio_max": 1.6})


def test_without_old_logprobs_the_gradient_is_that_of_the_policy_gradient():
    new_N = leaf(tensors.flat(tensors.logprobs_RT("old")))
    inputs = golden_inputs(logprobs_N=new_N, old_logprobs_N=None, reference_logprobs_N=None, entropy_N=None)
    sums = policy_loss(Algorithm(), inputs)
    sums.loss_sum.backward()
    assert torch.equal(new_N.grad, -inputs.advantages_N)
    assert sums.totals["policy/kl_old_k3"] == 0.0
    assert sums.totals["policy/clip_fraction"] == 0.0
    assert sums.maxima["policy/ratio_max"] == 1.0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_split_into_micro_batches_and_the_order_of_tokens_change_nothing(reduction):
    config = Algorithm(entropy_coefficient=0.01)
    whole_N = leaf(tensors.flat(tensors.logprobs_RT("new")))
    whole = policy_loss(config, golden_inputs(reduction, logprobs_N=whole_N), kl_coefficient=0.05)
    whole.loss_sum.backward()

    split_N = leaf(whole_N.detach())
    inputs = golden_inputs(reduction, logprobs_N=split_N)
    shuffled_N = torch.from_numpy(np.random.default_rng(0).permutation(len(split_N)))
    parts = [
        policy_loss(config, part(inputs, index_N), kl_coefficient=0.05) for index_N in shuffled_N.split([7, 0, 17, 1])
    ]
    sum(each.loss_sum for each in parts).backward()

    torch.testing.assert_close(split_N.grad, whole_N.grad, rtol=1e-6, atol=0)
    assert sum(each.weight for each in parts) == pytest.approx(whole.weight, rel=1e-6)
    assert max(each.maxima.get("policy/ratio_max", 0.0) for each in parts) == whole.maxima["policy/ratio_max"]
    for name, total in whole.totals.items():
        assert sum(each.totals[name] for each in parts) == pytest.approx(total, rel=1e-6)


def test_a_micro_batch_without_tokens_is_zero_and_still_has_a_gradient():
    new_N = torch.zeros(0, requires_grad=True)
    sums = policy_loss(Algorithm(), part(golden_inputs(logprobs_N=leaf(torch.zeros(25))), slice(0, 0)))
    assert (sums.loss_sum.item(), sums.weight, sums.maxima) == (0.0, 0.0, {})
    sums = policy_loss(
        Algorithm(),
        LossInputs(
            logprobs_N=new_N,
            advantages_N=new_N.detach(),
            weights_N=new_N.detach(),
            row_N=torch.zeros(0, dtype=torch.int64),
        ),
    )
    sums.loss_sum.backward()
    assert new_N.grad.shape == (0,)


def test_an_entropy_bonus_raises_entropy():
    entropy_N = leaf(torch.ones(25))
    policy_loss(Algorithm(entropy_coefficient=0.5), golden_inputs(entropy_N=entropy_N)).loss_sum.backward()
    assert entropy_N.grad.tolist() == [-0.5] * 25


def test_a_nan_reaches_the_sum_where_the_caller_looks_for_it():
    logprobs_N = tensors.flat(tensors.logprobs_RT("new"))
    logprobs_N[3] = float("nan")
    sums = policy_loss(Algorithm(), golden_inputs(logprobs_N=logprobs_N))
    assert math.isnan(sums.loss_sum.item())
    assert math.isnan(sums.totals["policy/loss"])


def test_a_kl_penalty_without_reference_is_an_error():
    with pytest.raises(ValueError, match=r"the KL coefficient is 0.1 but"):
        policy_loss(Algorithm(), golden_inputs(reference_logprobs_N=None), kl_coefficient=0.1)


def test_an_entropy_bonus_without_entropy_is_an_error():
    with pytest.raises(ValueError, match=r"algorithm.entropy_coefficient=0.1 but"):
        policy_loss(Algorithm(entropy_coefficient=0.1), golden_inputs(entropy_N=None))


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(AssertionError):
        policy_loss(Algorithm().model_copy(update={"loss": "grpo"}), golden_inputs())


@pytest.mark.parametrize("loss", [Clipped(dual_clip=3.0, ratio_cap=2.5), Gspo(), Cispo(), Sapo(), PolicyGradient()])
def test_each_surrogate_is_reached_with_its_settings(loss):
    inputs = golden_inputs(logprobs_N=tensors.flat(tensors.logprobs_RT("extreme")))
    new, old = ([float(x) for x in row_N] for row_N in (inputs.logprobs_N, inputs.old_logprobs_N))
    advantages, rows = inputs.advantages_N.tolist(), inputs.row_N.tolist()
    by_token = list(zip(new, old, advantages, strict=True))
    match loss:
        case Clipped():
            expected = [
                reference.clipped_token_loss(*token, 0.3, 0.4, dual_clip=3.0, ratio_cap=2.5) for token in by_token
            ]
        case Gspo():
            expected = []
            for row, advantage in zip(rows, advantages, strict=True):
                tokens = [i for i, other in enumerate(rows) if other == row]
                expected.append(
                    reference.gspo_loss([new[i] for i in tokens], [old[i] for i in tokens], advantage, 0.3, 0.4)
                )
        case Cispo():
            expected = [reference.cispo_loss(*token, 0.7, 1.4) for token in by_token]
        case Sapo():
            expected = [reference.sapo_loss(*token, 1.0, 1.05) for token in by_token]
        case PolicyGradient():
            expected = [-advantage * value for value, _, advantage in by_token]
    sums = policy_loss(Algorithm(loss=loss, clip=(0.3, 0.4)), inputs)
    assert sums.totals["policy/loss"] == pytest.approx(math.fsum(expected), rel=1e-5)


def test_without_a_bound_the_log_ratio_is_free():
    inputs = golden_inputs(
        logprobs_N=torch.full((25,), 24.0), old_logprobs_N=torch.zeros(25), advantages_N=-torch.ones(25)
    )
    free = policy_loss(Algorithm(max_log_ratio=None), inputs).totals["policy/loss"]
    assert free == pytest.approx(25 * math.exp(24.0), rel=1e-5)
    bounded = policy_loss(Algorithm(), inputs).totals["policy/loss"]
    assert bounded == pytest.approx(25 * math.exp(20.0), rel=1e-5)
