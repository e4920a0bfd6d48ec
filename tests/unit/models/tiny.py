"""A Llama small enough for unit tests, ragged batches for it, and its log-probabilities without any packing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ray_rl.batching.encoding import encode
from ray_rl.batching.micro_batches import Tree
from ray_rl.config.train import Packing
from ray_rl.models.attention import register_shared_prefix
from ray_rl.models.policy import PolicyModel
from ray_rl.types import TrainBatch
from tests import make

VOCABULARY = 48
BFLOAT16 = (0.015, 0.15)
"""Relative errors allowed to log-probabilities and gradients in bfloat16; SDPA on a CPU has 0.005 and 0.057."""


def tiny_llama(attention: str = "eager", *, dtype: torch.dtype = torch.float32, width: int = 32) -> LlamaForCausalLM:
    """Two layers, four query heads on two key heads, tied embeddings; the same weights every time."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,  # large enough for attention to matter
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
    )
    register_shared_prefix()
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


def ragged_batch(
    prompts: Sequence[int] = (5, 2, 7),
    completions: Sequence[int] = (3, 6, 1, 4, 4, 2),
    *,
    gaps: bool = True,
    seed: int = 0,
) -> TrainBatch:
    """A batch of random tokens and advantages with these lengths; with gaps, the loss mask has holes inside."""
    random = np.random.default_rng(seed)
    lengths_R = np.array(completions, np.int32)
    shape = (len(completions), max(completions))
    is_token_RT = np.arange(shape[1]) < lengths_R[:, None]
    loss_mask_RT = is_token_RT.copy()
    if gaps:
        loss_mask_RT &= random.random(shape) < 0.7
        loss_mask_RT[0, 0] = True
    return make.batch(
        shape,
        lengths=completions,
        prompts=[random.integers(3, VOCABULARY, length) for length in prompts],
        tokens_RT=np.where(is_token_RT, random.integers(3, VOCABULARY, shape), 0).astype(np.int32),
        loss_mask_RT=loss_mask_RT,
        advantages_RT=np.where(is_token_RT, random.normal(size=(len(completions), 1)), 0).astype(np.float32),
    )


def one_by_one(model: LlamaForCausalLM, batch: TrainBatch, *, temperature: float = 1.0) -> Tensor:
    """float32 [R, T] log-probabilities, each sequence in a forward pass of its own; 0 past the end."""
    rows = []
    for row, length in enumerate(batch.lengths_R):
        prompt = batch.prompt_ids[row // batch.group_size]
        tokens = torch.from_numpy(np.concatenate([prompt, batch.tokens_RT[row, :length]])).long()
        logits = model(input_ids=tokens[None]).logits[0].float() / temperature
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, tokens[len(prompt) :, None])[:, 0]
        rows.append(torch.nn.functional.pad(logprobs, (0, batch.tokens_RT.shape[1] - int(length))))
    return torch.stack(rows)


def gradients(model: LlamaForCausalLM) -> Tensor:
    """Every gradient in one vector, float32."""
    return torch.cat([p.grad.float().flatten() for p in model.parameters()])


def relative_error(value: Tensor, reference: Tensor) -> float:
    """|value - reference| / |reference|."""
    return float((value - reference).norm() / reference.norm())


def errors_of_packing(
    attention: str, batch: TrainBatch, *, packing: Packing, dtype: torch.dtype, device: str = "cpu"
) -> tuple[float, float]:
    """Relative errors of log-probabilities and gradients against `one_by_one` in float32 on the CPU."""
    micro = tuple(
        Tree(p, tuple(range(p * batch.group_size, (p + 1) * batch.group_size))) for p in range(len(batch.prompt_ids))
    )
    model, reference = tiny_llama(attention, dtype=dtype).to(device), tiny_llama()
    encoded = encode(batch, micro, packing=packing)
    policy = PolicyModel(model, chunk_tokens=4, temperature=1.0)
    logprobs_N, _ = policy(encoded.inputs.to(device), with_entropy=True)
    (logprobs_N * encoded.pick(batch.advantages_RT).to(device)).sum().backward()
    expected_RT = one_by_one(reference, batch)
    (expected_RT * torch.from_numpy(batch.advantages_RT * batch.loss_mask_RT)).sum().backward()
    expected_N = expected_RT[encoded.row_N, encoded.time_N]
    of_logprobs = relative_error(logprobs_N.detach().cpu(), expected_N.detach())
    return of_logprobs, relative_error(gradients(model).cpu(), gradients(reference))
