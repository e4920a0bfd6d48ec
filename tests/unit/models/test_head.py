"""Families that do something between backbone and logits: the policy's log-probabilities are the model's own."""

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from ray_rl.models.head import OwnLogits
from ray_rl.models.policy import ModelInputs, PolicyModel
from tests.unit.models.tiny import relative_error, tiny_llama

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
HEADS = {"head_dim": 8}
MAMBA = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
GRIFFIN = {"lru_width": 32, "attention_window_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 1}
PER_LAYER = {"vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
MINI = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}


def gemma4() -> PreTrainedModel:
    """The soft cap is a setting of `text_config`."""
    text = transformers.Gemma4TextConfig(
        **SMALL | HEADS | PER_LAYER, final_logit_softcapping=5.0, global_head_dim=8, initializer_range=0.3
    )
    return transformers.Gemma4ForConditionalGeneration(
        transformers.Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    )


def of(name: str, **settings: object) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(**SMALL | settings)
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return make


CHANGING = {
    "gemma4: text_config.final_logit_softcapping": gemma4,
    "gemma2: final_logit_softcapping": of("Gemma2", **HEADS, final_logit_softcapping=5.0),
    "falcon-h1: lm_head_multiplier": of("FalconH1", **HEADS, **MAMBA, lm_head_multiplier=0.0195),
    "recurrent-gemma: logits_soft_cap": of("RecurrentGemma", **HEADS, **GRIFFIN, logits_soft_cap=5.0),
    "cohere: logit_scale": of("Cohere", logit_scale=0.0625),
    "granite: logits_scaling": of("Granite", logits_scaling=8.0),
    "hyperclovax: logits_scaling, which multiplies": of("HyperCLOVAX", logits_scaling=0.5),
    "minicpm3: hidden states divided": of("MiniCPM3", **MINI, dim_model_base=8),
}


def scaled(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The model with weights that give logits a cap has an effect on."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def inputs(tokens: int = 10) -> ModelInputs:
    tokens_BL = torch.randint(5, 45, (1, tokens), generator=torch.Generator().manual_seed(1))
    return ModelInputs(
        tokens_BL=tokens_BL,
        positions_BL=torch.arange(tokens)[None],
        attention_mask_BL=torch.ones_like(tokens_BL),
        layout=None,
        predict_N=torch.arange(tokens - 1),
        labels_N=tokens_BL[0, 1:],
    )


def own(model: PreTrainedModel, given: ModelInputs, temperature: float) -> Tensor:
    logits = model(input_ids=given.tokens_BL, use_cache=False).logits[0, :-1].float() / temperature
    return logits.log_softmax(-1).gather(1, given.labels_N[:, None])[:, 0]


@pytest.mark.parametrize("family", CHANGING)
def test_the_policys_logprobs_and_gradients_are_those_of_the_models_own_logits(family: str) -> None:
    model, given = scaled(CHANGING[family]), inputs()
    assert not OwnLogits(model).is_plain_head()
    policy = PolicyModel(model, chunk_tokens=4, temperature=0.7)
    weights_N = torch.linspace(-1, 1, len(given.labels_N))
    gradients = []
    for logprobs_N in (own(model, given, 0.7), policy(given, with_entropy=False)[0]):
        model.zero_grad()
        (logprobs_N * weights_N).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    expected_N, seen_N = own(model, given, 0.7), policy(given, with_entropy=False)[0]
    assert (seen_N - expected_N).abs().max() < 1e-4
    assert relative_error(gradients[1], gradients[0]) < 1e-5


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral", "Phi3", "Gemma", "Olmo2"])
def test_where_logits_are_the_heads_output_the_head_alone_is_computed(family: str) -> None:
    extra = {"pad_token_id": 0} if family == "Phi3" else {}
    assert OwnLogits(of(family, **extra)()).is_plain_head()


def test_a_scale_of_one_and_a_cap_that_is_not_set_change_nothing() -> None:
    assert OwnLogits(of("Granite", logits_scaling=1.0)()).is_plain_head()
    assert OwnLogits(of("Gemma2", **HEADS, final_logit_softcapping=None)()).is_plain_head()


def test_the_parameters_of_the_policy_are_listed_once_under_the_models_names() -> None:
    model = of("Granite", logits_scaling=8.0)()
    names = [name for name, _ in PolicyModel(model, chunk_tokens=4, temperature=1.0).named_parameters()]
    assert names == [f"causal_lm.{name}" for name, _ in model.named_parameters()]


class WithoutSecret(LlamaForCausalLM):
    """Reads more of the backbone than hidden states, so that its code cannot be asked alone."""

    def forward(self, **given):
        output = self.model(**given, output_hidden_states=True)
        return type("Output", (), {"logits": self.lm_head(output.hidden_states[-1]) * 3.0})


def test_a_forward_pass_that_needs_its_backbone_is_left_to_the_comparison_of_whole_passes() -> None:
    assert OwnLogits(WithoutSecret(tiny_llama().config)).is_plain_head()
