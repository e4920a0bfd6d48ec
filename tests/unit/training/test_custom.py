"""Advantages and losses by import path: how they are called, and what is refused before a run starts."""

import pytest
import torch

from ray_rl.config.algorithm import Algorithm
from ray_rl.errors import ConfigError
from ray_rl.training.configured import credit_fn, policy_loss_of
from ray_rl.training.custom import check_advantages, check_surrogate
from tests import make

SETTINGS = {"clip": (0.1, 0.3), "max_log_ratio": 20.0}


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a user's module, of a name of its own in this process, and returns the import path of its `f`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        name = f"users_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(f"import torch\n{text}\n")
        return f"{name}:f"

    return write


def function(parameters, body):
    return f"def f({parameters}):\n    {body}"


class TestAdvantages:
    MIDRANGE = function(
        "scores_PG, is_scored_PG, *, scale=1.0",
        "return scale * (scores_PG - (scores_PG.amax(1, True) + scores_PG.amin(1, True)) / 2)",
    )

    def test_a_batch_gets_the_advantages_of_the_users_function_with_its_options(self, module):
        advantage = {"kind": "custom", "function": module(self.MIDRANGE), "options": {"scale": 2.0}}
        batch = make.batch((2, 2), prompts=[(1, 2)], rewards_R=[4.0, 1.0])
        credited = credit_fn(Algorithm.model_validate({"advantage": advantage}), max_tokens=8)(batch, 0.0)
        assert credited.advantages_RT.tolist() == [[3.0, 3.0], [-3.0, -3.0]]

    def test_they_may_be_whitened(self, module):
        advantage = {"kind": "custom", "function": module(self.MIDRANGE), "whiten": {"ddof": 0}}
        batch = make.batch((2, 1), prompts=[(1, 2)], rewards_R=[4.0, 1.0])
        credited = credit_fn(Algorithm.model_validate({"advantage": advantage}), max_tokens=8)(batch, 0.0)
        assert credited.advantages_RT.flatten().tolist() == pytest.approx([1.0, -1.0])

    @pytest.mark.parametrize("group_size", [1, 2, 8])
    def test_a_right_function_passes(self, module, group_size):
        check_advantages(module(self.MIDRANGE), options={"scale": 3.0}, group_size=group_size)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("return scores_PG.mean(1)", r"the estimator returned a tensor of torch.float32 with the shape \(5,\) for"),
            ("return scores_PG.tolist()", "the estimator returned a list for scores of the shape"),
            (
                "return (scores_PG - scores_PG.mean(1, True)) / scores_PG.std(1, keepdim=True)",
                "scores .0.5, 0.5, 0.5, 0.5",
            ),
            (
                "return scores_PG / (is_scored_PG.sum(1, keepdim=True) - 1)",
                r"returned -inf for completion 0 of prompt 3, .* \[-0\.536573, None, None, None",
            ),
            ("return scores_PG / (is_scored_PG.sum(1, keepdim=True) != 3)", "for completion 0 of prompt 2, .* None, "),
        ],
        ids=["reduced", "list", "equal scores", "one score", "a missing score"],
    )
    def test_a_wrong_function_is_refused_with_what_it_returned(self, module, body, message):
        path = module(function("scores_PG, is_scored_PG", body))
        with pytest.raises(ConfigError, match=f"^{path}: .*{message}"):
            check_advantages(path, options={}, group_size=4)

    def test_it_is_called_with_a_group_without_scores(self, module):
        path = module(function("scores_PG, is_scored_PG", "assert is_scored_PG.any(1).all(); return scores_PG"))
        with pytest.raises(AssertionError):
            check_advantages(path, options={}, group_size=4)


class TestLoss:
    ARGUMENTS = "logprobs_N, old_logprobs_N, advantages_N, row_N"
    NEVER = "torch.zeros_like(row_N, dtype=torch.bool)"

    def surrogate(self, path, **options):
        loss = {"kind": "custom", "function": path, "options": options}
        return policy_loss_of(Algorithm.model_validate({"loss": loss, **SETTINGS})).surrogate

    def test_it_gets_the_settings_of_the_algorithm_that_it_names_and_its_options(self, module):
        body = f"return logprobs_N * clip[1] + extra + max_log_ratio, {self.NEVER}"
        path = module(function(f"{self.ARGUMENTS}, *, clip, max_log_ratio=1.0, extra", body))
        values_N, row_N = torch.tensor([-1.0, -2.0]), torch.tensor([0, 1])
        loss_N, is_clipped_N = self.surrogate(path, extra=7.0)(values_N, values_N, values_N, row_N)
        assert loss_N.tolist() == pytest.approx([26.7, 26.4])
        assert is_clipped_N.tolist() == [False, False]

    def test_it_need_not_take_them(self, module):
        path = module(function(self.ARGUMENTS, f"return -advantages_N * logprobs_N, {self.NEVER}"))
        values_N = torch.tensor([-1.0, -2.0])
        assert self.surrogate(path)(values_N, values_N, values_N, torch.tensor([0, 1]))[0].tolist() == [-1.0, -4.0]
        check_surrogate(path, options={}, **SETTINGS)

    def test_a_loss_over_sequences_passes(self, module):
        body = f"return -advantages_N * over_sequence(logprobs_N - old_logprobs_N, row_N, 'mean').exp(), {self.NEVER}"
        text = "from ray_rl.algorithms.importance import over_sequence\n" + function(self.ARGUMENTS, body)
        check_surrogate(module(text), options={}, **SETTINGS)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (
                "return (-advantages_N * logprobs_N).mean(), NEVER",
                r"returned \(a tensor of torch.float32 with the shape",
            ),
            ("return -advantages_N * logprobs_N, advantages_N", r"torch.float32 with the shape \(8,\)\) for 8 tokens"),
            ("return -advantages_N * logprobs_N, None", r"the shape \(8,\), a NoneType\) for 8 tokens"),
            ("return (advantages_N > 0).long(), NEVER", "returned .a tensor of torch.int64 with the shape"),
            (
                "return -advantages_N * logprobs_N",
                "the loss returned a tensor of torch.float32 with the shape .8,. for",
            ),
            ("return -advantages_N * logprobs_N.detach(), NEVER", "no gradient with respect to logprobs_N"),
            ("return -advantages_N * (logprobs_N - logprobs_N.detach() - old_logprobs_N) * 0, NEVER", "no gradient"),
            (
                "return 0 * logprobs_N / (logprobs_N - old_logprobs_N), NEVER",
                r"the loss is \[nan, .* so at ratio 1; return",
            ),
            (
                "return advantages_N * (logprobs_N - old_logprobs_N).abs().sqrt(), NEVER",
                r"the gradient is \[nan, .* at ratio 1; return",
            ),
            ("return advantages_N * (1 + old_logprobs_N - logprobs_N).log().log1p().log(), NEVER", "at ratio 1"),
            ("return advantages_N * (logprobs_N - old_logprobs_N + 0.3).log(), NEVER", "have changed by up to 0.4"),
            (
                "return -(advantages_N - advantages_N.mean()) * logprobs_N, NEVER",
                "the loss of a token depends on other sequences, .* leave sums",
            ),
            ("return -advantages_N * logprobs_N * (1 + (row_N == 0).any()), NEVER", "depends on other sequences"),
            ("return -advantages_N * logprobs_N * (1 + row_N), NEVER", "or on how sequences are numbered: "),
            (
                "return -advantages_N * (logprobs_N - logprobs_N.mean() + logprobs_N.mean().detach()), NEVER",
                "the gradient of a token depends on other sequences",
            ),
            (
                "return -advantages_N * (logprobs_N - old_logprobs_N).exp().clamp(1, 1), NEVER",
                "a gradient with respect to logprobs_N only at ratio 1; of each batch",
            ),
            (
                "return -advantages_N * (2 - (logprobs_N - old_logprobs_N).exp()).sqrt(), NEVER",
                r"the loss is \[nan, .*\] after log-probabilities have changed by up to 5; return",
            ),
            ("return -advantages_N * (logprobs_N - old_logprobs_N).exp().pow(5), NEVER", "changed by up to 20; return"),
            (
                "return -advantages_N * (logprobs_N - old_logprobs_N).exp().pow(1 + 4 * (advantages_N > 0)), NEVER",
                "changed by up to 20; return",
            ),
        ],
    )
    def test_a_wrong_function_is_refused_with_what_it_returned(self, module, body, message):
        path = module(function(self.ARGUMENTS, body.replace("NEVER", self.NEVER)))
        with pytest.raises(ConfigError, match=f"^{path}: .*{message}"):
            check_surrogate(path, options={}, **SETTINGS)

    @pytest.mark.parametrize(
        "body",
        [
            "return -advantages_N * (1 - logprobs_N.exp() * old_logprobs_N.exp()).log()",
            "return -advantages_N * (logprobs_N - old_logprobs_N).exp().clamp(0.999, 1.001)",
        ],
        ids=["of probabilities below 1", "clipped closely on both sides"],
    )
    def test_a_loss_may_need_probabilities_below_1_or_clip_closely(self, module, body):
        check_surrogate(module(function(self.ARGUMENTS, f"{body}, {self.NEVER}")), options={}, **SETTINGS)

    def test_it_is_called_without_tokens(self, module):
        path = module(function(self.ARGUMENTS, f"assert len(row_N); return -advantages_N * logprobs_N, {self.NEVER}"))
        with pytest.raises(AssertionError):
            check_surrogate(path, options={}, **SETTINGS)

    def test_a_setting_of_the_algorithm_is_no_option(self):
        with pytest.raises(ValueError, match=r"clip is a setting of every algorithm; set algorithm\.clip"):
            Algorithm.model_validate({"loss": {"kind": "custom", "function": "a:b", "options": {"clip": [0.1, 0.1]}}})
