import math

import pytest
import torch

from ray_rl.algorithms import logprobs as module
from ray_rl.algorithms.logprobs import chunked_logprobs


class CountingHead(torch.nn.Linear):
    """A head that notes how many tokens each call had."""

    def __init__(self, width, vocabulary, dtype=torch.float32):
        super().__init__(width, vocabulary, bias=False, dtype=dtype)
        self.calls = []

    def forward(self, hidden_nD):
        self.calls.append(len(hidden_nD))
        return super().forward(hidden_nD)


def problem(tokens=11, width=6, vocabulary=37, dtype=torch.float32):
    torch.manual_seed(0)
    head = CountingHead(width, vocabulary, dtype)
    torch.nn.init.normal_(head.weight)
    hidden_ND = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    return hidden_ND, torch.randint(vocabulary, (tokens,)), head


def full(hidden_ND, labels_N, head, temperature=1.0):
    """All logits at once, in the dtype that the chunked form promises."""
    logits_NV = torch.nn.functional.linear(hidden_ND, head.weight)
    logp_NV = torch.log_softmax(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature, -1)
    return logp_NV.gather(1, labels_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(1)


def gradients(loss, hidden_ND, head):
    return torch.autograd.grad(loss, (hidden_ND, head.weight))


def test_two_logits_by_hand():
    hidden_ND = torch.tensor([[0.0, math.log(3.0)]])
    logprobs_N, entropy_N = chunked_logprobs(hidden_ND, torch.tensor([1]), torch.nn.Identity(), chunk_tokens=8)
    assert logprobs_N.tolist() == pytest.approx([math.log(0.75)])
    assert entropy_N.tolist() == pytest.approx([-0.75 * math.log(0.75) - 0.25 * math.log(0.25)])


def test_temperature_divides_the_logits():
    hidden_ND = torch.tensor([[0.0, 2 * math.log(3.0)]])
    logprobs_N, _ = chunked_logprobs(hidden_ND, torch.tensor([0]), torch.nn.Identity(), chunk_tokens=8, temperature=2.0)
    assert logprobs_N.tolist() == pytest.approx([math.log(0.25)])


@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_those_of_the_full_softmax(chunk_tokens, temperature, dtype):
    hidden_ND, labels_N, head = problem(dtype=dtype)
    weights_N = torch.linspace(-1, 2, len(labels_N), dtype=dtype)
    expected_N, expected_entropy_N = full(hidden_ND, labels_N, head, temperature)
    expected_grads = gradients((weights_N * expected_N).sum(), hidden_ND, head)

    actual_N, entropy_N = chunked_logprobs(
        hidden_ND, labels_N, head, chunk_tokens=chunk_tokens, temperature=temperature
    )
    grads = gradients((weights_N * actual_N).sum(), hidden_ND, head)

    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 5e-6}
    torch.testing.assert_close(actual_N, expected_N, **tolerance)
    torch.testing.assert_close(entropy_N, expected_entropy_N, **tolerance)
    torch.testing.assert_close(grads, expected_grads, **tolerance)


@pytest.mark.parametrize("chunk_tokens", [2, 8])
def test_the_gradient_is_that_of_finite_differences_entropy_included(chunk_tokens):
    hidden_ND, labels_N, head = problem(tokens=5, vocabulary=7, dtype=torch.float64)

    def outputs(hidden_ND):
        return chunked_logprobs(
            hidden_ND, labels_N, head, chunk_tokens=chunk_tokens, temperature=0.8, entropy_grad=True
        )

    # By hand: gradcheck runs the backward pass of one graph many times, and this graph can be used once.
    weights = torch.linspace(0.5, -1.5, 10, dtype=torch.float64).view(2, 5)

    def loss(hidden_ND):
        logprobs_N, entropy_N = outputs(hidden_ND)
        return (weights[0] * logprobs_N).sum() + (weights[1] * entropy_N).sum()

    (actual_ND,) = torch.autograd.grad(loss(hidden_ND), hidden_ND)
    with torch.no_grad():
        for index in range(hidden_ND.numel()):
            step = torch.zeros(hidden_ND.numel(), dtype=torch.float64).index_fill(0, torch.tensor(index), 1e-6)
            step_ND = step.view_as(hidden_ND)
            slope = (loss(hidden_ND + step_ND) - loss(hidden_ND - step_ND)) / 2e-6
            assert actual_ND.flatten()[index].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-8)


def test_bfloat16_logits_give_float32_results_from_the_same_logits():
    hidden_ND, labels_N, head = problem(width=16, vocabulary=300, dtype=torch.bfloat16)
    expected_N, expected_entropy_N = full(hidden_ND, labels_N, head)
    expected_grads = gradients(expected_N.sum(), hidden_ND, head)
    actual_N, entropy_N = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=64)
    grads = gradients(actual_N.sum(), hidden_ND, head)
    assert (actual_N.dtype, entropy_N.dtype, grads[0].dtype) == (torch.float32, torch.float32, torch.bfloat16)
    torch.testing.assert_close(actual_N, expected_N, rtol=2e-6, atol=5e-6)
    torch.testing.assert_close(entropy_N, expected_entropy_N, rtol=2e-6, atol=5e-6)
    torch.testing.assert_close(grads, expected_grads, rtol=2e-2, atol=2e-2)


def test_logits_far_from_zero_neither_overflow_nor_lose_the_small_probability():
    hidden_ND = torch.tensor([[1000.0, 990.0, -1000.0]])
    logprobs_N, entropy_N = chunked_logprobs(hidden_ND, torch.tensor([2]), torch.nn.Identity(), chunk_tokens=1)
    assert logprobs_N.item() == pytest.approx(-2000.0 - math.log1p(math.exp(-10)))
    assert entropy_N.item() == pytest.approx(4.99e-4, rel=1e-2)


def test_the_entropy_has_no_gradient_unless_asked_for():
    hidden_ND, labels_N, head = problem()
    for chunk_tokens in (4, 64):
        assert not chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=64)[1].requires_grad
        _, entropy_N = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=chunk_tokens, entropy_grad=True)
        assert entropy_N.requires_grad


def test_without_entropy_the_log_probabilities_are_the_same():
    hidden_ND, labels_N, head = problem()
    expected_N, _ = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=4)
    actual_N, entropy_N = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=4, with_entropy=False)
    assert entropy_N is None
    assert torch.equal(actual_N, expected_N)


def test_each_chunk_but_the_last_runs_again_in_the_backward_pass():
    hidden_ND, labels_N, head = problem(tokens=11)
    logprobs_N, _ = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=4)
    assert head.calls == [4, 4, 3]
    logprobs_N.sum().backward()
    assert head.calls == [4, 4, 3, 4, 4]


def test_without_gradients_nothing_runs_again():
    hidden_ND, labels_N, head = problem(tokens=11)
    with torch.no_grad():
        logprobs_N, _ = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=4)
    assert not logprobs_N.requires_grad
    assert head.calls == [4, 4, 3]


def test_without_tokens_the_head_still_runs_and_gets_a_gradient_of_zero():
    hidden_ND, labels_N, head = problem(tokens=0)
    logprobs_N, entropy_N = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=4)
    logprobs_N.sum().backward()
    assert (logprobs_N.shape, entropy_N.shape, head.calls) == ((0,), (0,), [0])
    assert not head.weight.grad.any()


def test_rows_in_several_blocks_give_the_same_bits(monkeypatch):
    hidden_ND, labels_N, head = problem()
    expected_N, expected_entropy_N = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=64)
    expected_grads = gradients(expected_N.sum(), hidden_ND, head)
    monkeypatch.setattr(module, "CPU_BLOCK_ELEMENTS", 3 * 37)
    actual_N, entropy_N = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=64)
    assert torch.equal(actual_N, expected_N)
    assert torch.equal(entropy_N, expected_entropy_N)
    assert all(map(torch.equal, gradients(actual_N.sum(), hidden_ND, head), expected_grads))


def test_a_second_backward_pass_is_refused_rather_than_wrong():
    hidden_ND, labels_N, head = problem()
    logprobs_N, _ = chunked_logprobs(hidden_ND, labels_N, head, chunk_tokens=64)
    logprobs_N.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprobs_N.sum().backward()
