"""The forward pass of the losses: log-probabilities at the positions that they need, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ray_rl.algorithms.logprobs import chunked_logprobs
from ray_rl.models.attention import TreeLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WRAPPED = "causal_lm."
"""What `PolicyModel` puts before the parameter names of the model that it wraps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """A micro-batch as the model reads it: B rows of L tokens, N positions that predict loss tokens."""

    tokens_BL: Tensor
    """int64."""
    positions_BL: Tensor
    """int64, of each token in its own sequence."""
    attention_mask_BL: Tensor | None
    """int64, 1 on tokens; None where rows have no padding."""
    layout: TreeLayout | None
    """Trees of shared prefixes; None without. Where sequences are packed, positions begin at 0 with each."""
    predict_N: Tensor
    """int64, index into the flattened [B * L] hidden states: the position before each loss token."""
    labels_N: Tensor
    """int64, the loss tokens."""
    min_chunks: int = 1
    """So often the head runs at least; equal on every rank, because ZeRO-3 gathers its weights every time."""

    def to(self, device: str) -> ModelInputs:
        """The same on another device. Trees stay on CPU: their layout is for CPU alone."""
        if device == "cpu":
            return self
        assert self.layout is None, "shared-prefix packing runs on CPU"
        return ModelInputs(
            tokens_BL=self.tokens_BL.to(device),
            positions_BL=self.positions_BL.to(device),
            attention_mask_BL=None if self.attention_mask_BL is None else self.attention_mask_BL.to(device),
            layout=None,
            predict_N=self.predict_N.to(device),
            labels_N=self.labels_N.to(device),
            min_chunks=self.min_chunks,
        )


class PolicyModel(nn.Module):
    """A causal language model whose forward returns log-probabilities of given tokens.

    A module of its own, so that DeepSpeed's hooks surround everything that touches parameters.
    """

    def __init__(self, causal_lm: PreTrainedModel, *, chunk_tokens: int, temperature: float) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._chunk_tokens = chunk_tokens
        self._temperature = temperature

    def forward(
        self, inputs: ModelInputs, *, with_entropy: bool, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities float32 [N] of the labels, and entropies float32 [N] if asked for."""
        extra = {} if inputs.layout is None else {"layout": inputs.layout}
        hidden_BLD = self.causal_lm.base_model(
            input_ids=inputs.tokens_BL,
            position_ids=inputs.positions_BL,
            attention_mask=inputs.attention_mask_BL,
            use_cache=False,
            **extra,
        ).last_hidden_state
        hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, inputs.predict_N)
        return chunked_logprobs(
            hidden_ND,
            inputs.labels_N,
            self.causal_lm.get_output_embeddings(),
            chunk_tokens=self._chunk_tokens,
            min_chunks=inputs.min_chunks,
            temperature=self._temperature,
            with_entropy=with_entropy,
            entropy_grad=entropy_grad,
        )
