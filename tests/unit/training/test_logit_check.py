import pytest
import torch
from transformers import LlamaForCausalLM

from ray_rl.batching.encoding import Split
from ray_rl.errors import ConfigError
from ray_rl.models.policy import PolicyModel
from ray_rl.training.logit_check import require_own_logprobs
from ray_rl.training.share import Share
from tests.unit.models.tiny import tiny_llama

PACKINGS = {"padded": "sdpa", "shared_prefix": "ray_rl_shared_prefix"}


class Changed(LlamaForCausalLM):
    """Does something to its logits that only its whole forward pass shows."""

    factor = 1.0
    cap = 0.0

    def forward(self, **given):
        output = self.model(**given, output_hidden_states=True)
        assert len(output.hidden_states) == 3, "a whole backbone"
        logits = self.lm_head(output.last_hidden_state) * self.factor
        return type("Output", (), {"logits": self.cap * torch.tanh(logits / self.cap) if self.cap else logits})


def checked(model, *, dtype="float32", packing="padded", workers=1, temperature=1.0):
    policy = PolicyModel(model, chunk_tokens=64, temperature=temperature)
    split = Split(workers=workers, micro_batch_tokens=64, packing=packing)
    for rank in range(workers):
        share = Share(rank=rank, split=split, device="cpu", attention=PACKINGS[packing])
        require_own_logprobs(policy, share, model_config=model.config, dtype=dtype, name="model.path=tiny")


def changed(*, factor=1.0, cap=0.0, dtype=torch.float32):
    model = Changed(tiny_llama("sdpa").config).to(dtype)
    model.load_state_dict(tiny_llama(dtype=dtype).state_dict())
    model.factor, model.cap = factor, cap
    return model


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_model_whose_logits_are_its_heads_is_accepted_by_every_rank(packing, dtype, temperature):
    model = tiny_llama(PACKINGS[packing], dtype=getattr(torch, dtype))
    checked(model, dtype=dtype, packing=packing, workers=3, temperature=temperature)


def test_the_same_model_with_code_of_its_own_that_changes_nothing_is_accepted():
    checked(changed())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", [{"factor": 0.5}, {"factor": 1.1}, {"cap": 10.0}, {"cap": 3.0}])
def test_a_scale_or_cap_that_only_the_whole_forward_pass_shows_is_refused_with_both_numbers(dtype, change):
    message = (
        r"model.path=tiny: token \d+ has the log-probability -[\d.]+ as the loss computes it, and -[\d.]+ by the "
        r"model's own logits, and rounding explains a difference of [\de.-]+; .*choose another model"
    )
    with pytest.raises(ConfigError, match=message):
        checked(changed(**change, dtype=getattr(torch, dtype)), dtype=dtype)


def test_weights_that_are_not_finite_are_left_to_the_runs_own_check():
    model = tiny_llama("sdpa")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    checked(model)
