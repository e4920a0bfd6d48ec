"""The forward pass for the losses: log-probabilities at the positions that they need, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ray_rl.models.attention import TreeLayout
from ray_rl.models.head import ChunkedHead, OwnLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WRAPPED = "causal_lm."
"""The prefix of the wrapped model's parameter names in `PolicyModel`."""
MASTER = "master"
"""A checkpoint holds the float32 weights of a trained parameter as `MASTER/<name>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """A micro-batch as the model reads it: B rows of L tokens, N positions that predict loss tokens."""

    tokens_BL: Tensor
    """int64, token ids."""
    positions_BL: Tensor
    """int64, position of each token in its own sequence."""
    attention_mask_BL: Tensor | None
    """int64, 1 on tokens and 0 on padding; None if rows have no padding."""
    layout: TreeLayout | None
    """The trees of shared prefixes; None without them. In packed rows the positions of each sequence start at 0."""
    predict_N: Tensor
    """int64, index into the flattened [B * L] hidden states: the position before each loss token."""
    labels_N: Tensor
    """int64, the loss tokens."""

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords for the forward pass of a model of transformers."""
        keywords = {
            "input_ids": self.tokens_BL,
            "position_ids": self.positions_BL,
            "attention_mask": self.attention_mask_BL,
            "use_cache": False,
        }
        return keywords if self.layout is None else {**keywords, "layout": self.layout}

    def predicting(self, hidden_BLD: Tensor) -> Tensor:
        """Returns [N, D], the rows of hidden states (or logits) at the positions that predict loss tokens."""
        return hidden_BLD.flatten(0, 1).index_select(0, self.predict_N)

    def to(self, device: str) -> ModelInputs:
        """Returns a copy on another device. Trees stay on CPU: shared prefixes are implemented for CPU only."""
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
        )


class PolicyModel(nn.Module):
    """A causal language model whose forward returns log-probabilities of given tokens.

    It is a module, so that DeepSpeed's hooks run around everything that uses parameters.
    """

    def __init__(self, causal_lm: PreTrainedModel, *, chunk_tokens: int, temperature: float) -> None:
        """Makes a model that shares the parameters of `causal_lm` under their own names.

        Raises:
            ConfigError: the model's head is not a linear layer.
        """
        super().__init__()
        self.causal_lm = causal_lm
        self._temperature = temperature
        self._head = ChunkedHead(OwnLogits(causal_lm), chunk_tokens=chunk_tokens, temperature=temperature)

    @property
    def exported(self) -> Mapping[str, PreTrainedModel]:
        """The model that an export writes, under the prefix of its parameters without `WRAPPED`."""
        return {"": self.causal_lm}

    def forward(
        self, inputs: ModelInputs, *, with_entropy: bool, entropy_grad: bool = False, own_logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the log-probabilities float32 [N] of the labels, and entropies float32 [N] if requested.

        Args:
            inputs: the micro-batch.
            with_entropy: return entropies too.
            entropy_grad: compute the entropies with a gradient.
            own_logits: instead return the float32 logits [N, V] of the model's own forward pass, divided by the
                temperature, for a comparison. All of them are in memory at the same time.
        """
        if own_logits:
            logits_BLV = self.causal_lm(**inputs.keywords).logits
            return inputs.predicting(logits_BLV).float() / self._temperature, None
        hidden_ND = inputs.predicting(self.causal_lm.base_model(**inputs.keywords).last_hidden_state)
        logprobs: tuple[Tensor, Tensor | None] = self._head(
            hidden_ND, inputs.labels_N, with_entropy=with_entropy, entropy_grad=entropy_grad
        )
        return logprobs
