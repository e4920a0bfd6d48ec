"""Compares the policy's log-probabilities with the model's own logits when a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_rl.batching.encoding import Encoded
from ray_rl.errors import ConfigError
from ray_rl.training.share import Share
from ray_rl.types import TokenBatch

PROMPT_TOKENS, COMPLETION_TOKENS = 4, 8
FLOAT32_GAP = 1e-4
"""Difference in nats that float32 rounding explains, for logits up to 32."""
FLOAT32_RELATIVE = FLOAT32_GAP / 32
"""The same difference for larger logits, as a share of the largest one."""
BFLOAT16_RELATIVE = 2.0**-7
"""The same in bfloat16: each of the two paths rounds a logit to 8 bits, by up to 2^-9 of it, possibly in opposite
directions; twice the resulting 2^-8."""


@torch.no_grad()
def require_own_logprobs(model: Any, share: Share, *, model_config: Any, dtype: str, name: str) -> None:
    """Compares a few tokens' log-probabilities with the log-softmax of the model's own logits; a collective.

    Both are computed as in the run: same packing, device, dtype and sharding. At each position the next token, the
    likeliest and the least likely token are compared: any change to logits, whatever the model's configuration calls
    it, changes large ones most.

    Args:
        model: a `PolicyModel`, or DeepSpeed's engine around one.
        share: the share of this worker.
        model_config: transformers' configuration of the model.
        dtype: the type of the weights.
        name: what the user calls the model: "model.path=...".

    Raises:
        ConfigError: the two differ by more than rounding explains; names the token and both numbers.
    """
    batch = _probe(model_config, rows=share.split.workers)
    for encoded in share.encode(batch, np.arange(batch.rows)):
        inputs = encoded.inputs.to(share.device)
        own_NV, _ = model(inputs, with_entropy=False, own_logits=True)
        compared = _extremes(encoded, own_NV.cpu())
        logprobs_N, _ = model(compared.to(share.device), with_entropy=False)
        own_N = own_NV.cpu().log_softmax(-1).repeat(3, 1).gather(1, compared.labels_N[:, None])[:, 0]
        _require_same(logprobs_N.float().cpu(), own_N, compared.labels_N, _bound(own_NV, dtype), name=name)


def _extremes(encoded: Encoded, own_NV: Tensor) -> Any:
    """Returns the inputs with three labels per position: the next token, the likeliest and the least likely."""
    inputs = encoded.inputs
    labels = [inputs.labels_N, own_NV.argmax(1), own_NV.argmin(1)] if len(own_NV) else [inputs.labels_N] * 3
    return replace(inputs, predict_N=inputs.predict_N.repeat(3), labels_N=torch.cat(labels))


def _bound(own_NV: Tensor, dtype: str) -> float:
    largest = float(own_NV.abs().max()) if len(own_NV) else 0.0
    return max(FLOAT32_GAP, largest * (FLOAT32_RELATIVE if dtype == "float32" else BFLOAT16_RELATIVE))


def _require_same(logprobs_N: Tensor, own_N: Tensor, labels_N: Tensor, bound: float, *, name: str) -> None:
    # If the model's own are not finite, its weights are not either: the first batch of the run reports that.
    gap_N = (logprobs_N - own_N).abs().nan_to_num(nan=float("inf")).masked_fill(~own_N.isfinite(), 0.0)
    if not (gap_N > bound).any():
        return
    worst = int(gap_N.argmax())
    raise ConfigError(
        f"{name}: token {int(labels_N[worst])} has the log-probability {float(logprobs_N[worst]):.4f} as the loss "
        f"computes it, and {float(own_N[worst]):.4f} by the model's own logits, and rounding explains a difference of "
        f"{bound:.1g}; ray_rl does not support what this model does between its last hidden states and its logits; "
        "choose another model"
    )


def _probe(model_config: Any, *, rows: int) -> TokenBatch:
    """Returns one prompt with a completion for each worker: tokens from the whole vocabulary, the same in every run."""
    settings = model_config.get_text_config()
    words = np.setdiff1d(np.arange(settings.vocab_size), [*_special_tokens(model_config.to_dict())])
    random = np.random.default_rng(0)
    shape = (rows, COMPLETION_TOKENS)
    return TokenBatch(
        prompt_ids=(random.choice(words, PROMPT_TOKENS).astype(np.int32),),
        group_size=rows,
        tokens_RT=random.choice(words, shape).astype(np.int32),
        lengths_R=np.full(rows, COMPLETION_TOKENS, np.int32),
        loss_mask_RT=np.ones(shape, np.bool_),
    )


def _special_tokens(settings: Mapping[str, Any]) -> Iterator[int]:
    """Yields the tokens with a meaning of their own in the configuration, such as padding, or an image placeholder."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _special_tokens(value)
        elif str(name).endswith(("_token_id", "_token_ids", "_token_index")):
            yield from (token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int))
