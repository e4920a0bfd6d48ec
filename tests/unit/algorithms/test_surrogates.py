import math

import pytest
import torch

from ray_rl.algorithms import surrogates
from ray_rl.algorithms.surrogates import gspo_surrogate, probability_ratio, users_surrogate
from ray_rl.errors import ConfigError
from tests.golden import reference, tensors

ROWS_N = tensors.flat_rows()
ADVANTAGES_N = tensors.ADVANTAGES_R[ROWS_N]
OLD_N = tensors.flat(tensors.logprobs_RT("old"))
KINDS = pytest.mark.parametrize("kind", ["new", "extreme"])

NO_ROWS = torch.empty(0, dtype=torch.int64)
"""Only GSPO reads the rows."""


def clipped_surrogate(logprobs_N, old_N, advantages_N, **settings):
    return surrogates.clipped_surrogate(logprobs_N, old_N, advantages_N, NO_ROWS, **settings)


def cispo_surrogate(logprobs_N, old_N, advantages_N, **settings):
    return surrogates.cispo_surrogate(logprobs_N, old_N, advantages_N, NO_ROWS, **settings)


def sapo_surrogate(logprobs_N, old_N, advantages_N, **settings):
    return surrogates.sapo_surrogate(logprobs_N, old_N, advantages_N, NO_ROWS, **settings)[0]


def gpg_surrogate(logprobs_N, advantages_N):
    return surrogates.gpg_surrogate(logprobs_N, logprobs_N.detach(), advantages_N, NO_ROWS)[0]


def leaf(values):
    return values.clone().requires_grad_()


def new_N(kind):
    return tensors.flat(tensors.logprobs_RT(kind))


def gradient(surrogate, logprobs_N):
    logprobs_N = leaf(logprobs_N)
    loss = surrogate(logprobs_N)
    (loss[0] if isinstance(loss, tuple) else loss).sum().backward()
    return logprobs_N.grad


def tokens(kind):
    return zip(new_N(kind).tolist(), OLD_N.tolist(), ADVANTAGES_N.tolist(), strict=True)


def test_inside_the_bounds_the_loss_is_minus_advantage_times_ratio():
    new_N, old_N = torch.tensor([0.55, 0.45]).log(), torch.tensor([0.5, 0.5]).log()
    loss_N, is_clipped_N = clipped_surrogate(new_N, old_N, torch.tensor([2.0, -1.0]), clip=(0.2, 0.2))
    assert loss_N.tolist() == pytest.approx([-2.2, 0.9])
    assert is_clipped_N.tolist() == [False, False]


def test_the_bound_holds_only_where_it_makes_the_loss_larger():
    new_N = torch.tensor([2.0, 2.0, 0.25, 0.25]).log()
    advantages_N = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss_N, is_clipped_N = clipped_surrogate(new_N, torch.zeros(4), advantages_N, clip=(0.2, 0.3))
    assert loss_N.tolist() == pytest.approx([-1.3, 2.0, -0.25, 0.8])
    assert is_clipped_N.tolist() == [True, False, False, True]


def test_a_clipped_token_has_no_gradient():
    new_N = leaf(torch.tensor([2.0, 2.0, 0.25, 0.25]).log())
    loss_N, _ = clipped_surrogate(new_N, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), clip=(0.2, 0.3))
    loss_N.sum().backward()
    assert new_N.grad.tolist() == pytest.approx([0.0, 2.0, -0.25, 0.0])


def test_a_zero_advantage_is_never_clipped():
    _, is_clipped_N = clipped_surrogate(torch.ones(1), torch.zeros(1), torch.zeros(1), clip=(0.2, 0.2))
    assert is_clipped_N.tolist() == [False]


def test_25_nats_away_the_loss_is_finite_and_has_no_gradient():
    new_N = leaf(torch.tensor([25.0, -25.0, 200.0]))
    loss_N, _ = clipped_surrogate(new_N, torch.zeros(3), torch.tensor([-1.0, 1.0, -1.0]), clip=(0.2, 0.2))
    loss_N.sum().backward()
    assert loss_N.tolist() == pytest.approx([math.exp(20), -math.exp(-20), math.exp(20)], rel=1e-6)
    assert new_N.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["new", "extreme"])
def test_each_token_agrees_with_the_slow_reference(kind):
    new_N, old_N = tensors.flat(tensors.logprobs_RT(kind)), tensors.flat(tensors.logprobs_RT("old"))
    advantages_N = tensors.ADVANTAGES_R[tensors.flat_rows()]
    actual_N, is_clipped_N = clipped_surrogate(new_N, old_N, advantages_N, clip=(0.2, 0.28))
    tokens = zip(new_N.tolist(), old_N.tolist(), advantages_N.tolist(), strict=True)
    expected = [reference.clipped_token_loss(*token, 0.2, 0.28) for token in tokens]
    torch.testing.assert_close(actual_N, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    assert 0 < is_clipped_N.sum() < len(new_N)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage_and_cuts_its_gradient():
    logprobs_N = leaf(torch.tensor([5.0, 2.0, 5.0]).log())
    advantages_N = torch.tensor([-2.0, -2.0, 2.0])
    loss_N, is_clipped_N = clipped_surrogate(logprobs_N, torch.zeros(3), advantages_N, clip=(0.2, 0.2), dual_clip=3.0)
    loss_N.sum().backward()
    assert loss_N.tolist() == pytest.approx([6.0, 4.0, -2.4])
    assert is_clipped_N.tolist() == [True, False, True]
    assert logprobs_N.grad.tolist() == pytest.approx([0.0, 4.0, 0.0])


def test_the_ratio_cap_holds_before_the_clip_for_either_sign():
    logprobs_N = torch.tensor([5.0, 5.0]).log()
    loss_N, _ = clipped_surrogate(logprobs_N, torch.zeros(2), torch.tensor([-1.0, 1.0]), clip=(0.2, 9.0), ratio_cap=2.0)
    assert loss_N.tolist() == pytest.approx([2.0, -2.0])


def test_the_bound_of_the_log_ratio_can_be_moved_and_removed():
    far = torch.tensor([30.0])
    assert probability_ratio(far, torch.zeros(1)).item() == pytest.approx(math.exp(20), rel=1e-6)
    assert probability_ratio(far, torch.zeros(1), max_log_ratio=10.0).item() == pytest.approx(math.exp(10), rel=1e-6)
    assert probability_ratio(far, torch.zeros(1), max_log_ratio=math.inf).item() == pytest.approx(
        math.exp(30), rel=1e-6
    )


@KINDS
@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("ratio_cap", [None, 1.1])
def test_every_switch_of_the_clip_agrees_with_the_slow_reference(kind, dual_clip, ratio_cap):
    actual_N, _ = clipped_surrogate(
        new_N(kind), OLD_N, ADVANTAGES_N, clip=(0.2, 0.28), dual_clip=dual_clip, ratio_cap=ratio_cap
    )
    expected = [
        reference.clipped_token_loss(*token, 0.2, 0.28, dual_clip=dual_clip, ratio_cap=ratio_cap)
        for token in tokens(kind)
    ]
    torch.testing.assert_close(actual_N, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_gspo_uses_the_geometric_mean_ratio_of_the_sequence():
    logprobs_N = torch.tensor([4.0, 1.0, 0.9]).log()
    loss_N, is_clipped_N = gspo_surrogate(
        logprobs_N, torch.zeros(3), torch.tensor([1.0, 1.0, -1.0]), torch.tensor([7, 7, 3]), clip=(0.2, 0.5)
    )
    assert loss_N.tolist() == pytest.approx([-1.5, -1.5, 0.9])
    assert is_clipped_N.tolist() == [True, True, False]


@KINDS
@pytest.mark.parametrize("form", ["token", "sequence"])
def test_gspo_agrees_with_the_slow_reference(kind, form):
    actual_N, _ = gspo_surrogate(new_N(kind), OLD_N, ADVANTAGES_N, ROWS_N, clip=(0.1, 0.2), gradient=form)
    rows = (reference.by_row(tensors.logprobs_RT(name), tensors.MASK_RT) for name in (kind, "old"))
    expected = []
    for new, old, advantage in zip(*rows, tensors.ADVANTAGES_R.tolist(), strict=True):
        expected += [reference.gspo_loss(new, old, advantage, 0.1, 0.2)] * len(new)
    torch.testing.assert_close(actual_N, torch.tensor(expected), rtol=2e-6, atol=1e-6)


def test_both_forms_of_gspo_have_the_same_gradient_if_the_advantage_is_that_of_the_sequence():
    def loss(form):
        return lambda x: gspo_surrogate(x, OLD_N, ADVANTAGES_N, ROWS_N, clip=(0.2, 0.3), gradient=form)

    token_N, sequence_N = (gradient(loss(form), new_N("new")) for form in ("token", "sequence"))
    torch.testing.assert_close(token_N, sequence_N, rtol=1e-6, atol=1e-7)
    assert token_N.any()


def test_gspo_does_not_depend_on_the_order_of_tokens_or_the_names_of_rows():
    shuffled = torch.randperm(len(OLD_N), generator=torch.Generator().manual_seed(0))
    plain_N, _ = gspo_surrogate(new_N("new"), OLD_N, ADVANTAGES_N, ROWS_N, clip=(0.1, 0.2))
    shuffled_N, _ = gspo_surrogate(
        new_N("new")[shuffled], OLD_N[shuffled], ADVANTAGES_N[shuffled], 100 - ROWS_N[shuffled], clip=(0.1, 0.2)
    )
    torch.testing.assert_close(shuffled_N, plain_N[shuffled], rtol=1e-6, atol=1e-7)


def test_an_unknown_form_of_gspo_is_refused():
    with pytest.raises(AssertionError):
        gspo_surrogate(OLD_N, OLD_N, ADVANTAGES_N, ROWS_N, clip=(0.2, 0.2), gradient="both")


def test_cispo_keeps_the_gradient_of_a_bounded_token():
    logprobs_N = torch.tensor([4.0, 1.0, 0.1]).log()
    advantages_N = torch.tensor([1.0, -2.0, 1.0])

    def loss(x):
        return cispo_surrogate(x, torch.zeros(3), advantages_N, bounds=(0.5, 2.0))

    assert gradient(loss, logprobs_N).tolist() == pytest.approx([-2.0, 2.0, -0.5])
    assert loss(logprobs_N)[0].tolist() == pytest.approx([-2 * math.log(4), 0.0, -0.5 * math.log(0.1)])
    assert loss(logprobs_N)[1].tolist() == [True, False, True]


@KINDS
def test_cispo_agrees_with_the_slow_reference(kind):
    actual_N, _ = cispo_surrogate(new_N(kind), OLD_N, ADVANTAGES_N, bounds=(0.8, 1.28))
    expected = [reference.cispo_loss(*token, 0.8, 1.28) for token in tokens(kind)]
    torch.testing.assert_close(actual_N, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_sapo_at_ratio_one_has_the_gradient_of_the_policy_gradient():
    grad_N = gradient(lambda x: sapo_surrogate(x, OLD_N, ADVANTAGES_N), OLD_N)
    torch.testing.assert_close(grad_N, -ADVANTAGES_N)


def test_sapo_takes_its_temperature_from_the_sign_of_the_advantage():
    loss_N = sapo_surrogate(
        torch.tensor([2.0, 2.0]).log(),
        torch.zeros(2),
        torch.tensor([1.0, -1.0]),
        temperature_positive=1.0,
        temperature_negative=2.0,
    )
    assert loss_N.tolist() == pytest.approx([-4 / (1 + math.exp(-1)), 2 / (1 + math.exp(-2))])


@KINDS
def test_sapo_agrees_with_the_slow_reference(kind):
    expected = [reference.sapo_loss(*token, 1.0, 1.05) for token in tokens(kind)]
    torch.testing.assert_close(
        sapo_surrogate(new_N(kind), OLD_N, ADVANTAGES_N), torch.tensor(expected), rtol=1e-6, atol=1e-6
    )


def test_gpg_is_minus_advantage_times_logprob():
    assert gpg_surrogate(torch.tensor([-2.0, -0.5]), torch.tensor([3.0, -1.0])).tolist() == [6.0, -0.5]


@pytest.mark.parametrize(
    "surrogate",
    [
        lambda x, o, a: clipped_surrogate(x, o, a, clip=(0.2, 0.28), dual_clip=3.0, ratio_cap=4.0)[0],
        lambda x, o, a: gspo_surrogate(x, o, a, torch.arange(24) // 5, clip=(0.2, 0.28), gradient="sequence")[0],
        lambda x, o, a: sapo_surrogate(x, o, a),
        lambda x, o, a: gpg_surrogate(x, a),
    ],
    ids=["clip", "gspo", "sapo", "gpg"],
)
def test_gradients_are_those_of_finite_differences(surrogate):
    generator = torch.Generator().manual_seed(1)
    logprobs_N, old_N, advantages_N = torch.randn(3, 24, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: surrogate(x, old_N, advantages_N), leaf(logprobs_N))


def test_the_surrogate_of_a_user_is_what_the_function_returns():
    returned = (-ADVANTAGES_N * OLD_N, OLD_N > 0)
    found = users_surrogate(
        OLD_N, OLD_N, ADVANTAGES_N, ROWS_N, name="m:f", function=lambda new, old, advantages, rows: returned
    )
    assert found == returned


@pytest.mark.parametrize(
    "returned",
    [OLD_N, None, (OLD_N, None), (OLD_N.sum(), OLD_N > 0), (OLD_N, OLD_N), (ROWS_N, OLD_N > 0)],
    ids=["no tuple", "nothing", "no tensor", "a sum", "no bool", "integers"],
)
def test_a_user_who_returns_anything_else_is_told_what(returned):
    with pytest.raises(ConfigError, match=f"m:f: the loss returned .* for {len(OLD_N)} tokens"):
        users_surrogate(OLD_N, OLD_N, ADVANTAGES_N, ROWS_N, name="m:f", function=lambda *given: returned)


def test_what_a_users_loss_writes_into_its_constants_does_not_reach_the_policy():
    def writes(logprobs_N, old_logprobs_N, advantages_N, row_N):
        old_logprobs_N.clamp_(min=-3.0)
        advantages_N.zero_()
        row_N.zero_()
        return -logprobs_N, logprobs_N > 0

    logprobs_N, advantages_N, row_N = torch.tensor([-1.0, -5.0]), torch.ones(2), torch.tensor([0, 1])
    users_surrogate(logprobs_N, logprobs_N.detach(), advantages_N, row_N, name="m:f", function=writes)
    assert (logprobs_N.tolist(), advantages_N.tolist(), row_N.tolist()) == ([-1.0, -5.0], [1.0, 1.0], [0, 1])
