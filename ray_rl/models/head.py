"""Turns hidden states into logits: the linear head, and whatever else the model's own forward pass does there."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ray_rl.algorithms.logprobs import chunked_logprobs
from ray_rl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_ROWS, PROBE_WORDS, PROBE_SIZE = 8, 16, 20.0
"""The test that compares a model's logits with the output of its head alone: the number of hidden states, the number of
rows of the head, and the size of the logits. Models cap logits at 30 or 50, which changes logits of this size."""
SAME = 1e-5
"""Largest difference, relative to the largest logit, that rounding in float32 explains."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """A head with given weights, without the hooks of the module that it replaces."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight, self.bias)


class _Given:
    """A backbone that returns given hidden states; its other attributes are those of the real backbone."""

    def __init__(self, backbone: nn.Module, hidden_BLD: Tensor) -> None:
        self._backbone = backbone
        self._hidden_BLD = hidden_BLD

    def __call__(self, *ignored: Any, **also_ignored: Any) -> _Output:
        return _Output(self._hidden_BLD)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


class _Output:
    """The output of a backbone, as far as a forward pass to logits reads it: everything but hidden states is None."""

    def __init__(self, hidden_BLD: Tensor) -> None:
        self.last_hidden_state = hidden_BLD

    def __getitem__(self, index: Any) -> Any:
        return self.last_hidden_state if index == 0 else ()

    def __getattr__(self, name: str) -> None:
        return None


class OwnLogits:
    """Computes logits from hidden states with the model's own code.

    Some families scale, cap or divide between backbone and logits, each with a setting of a different name. This class
    knows none of them: it runs the forward pass of the model's own class, with the backbone replaced by the hidden
    states and the head replaced by the given weights.
    """

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        """Makes the function; the model is kept without being registered as a submodule.

        Raises:
            ConfigError: the model has no backbone, or its head is something else than a linear layer.
        """
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ConfigError(
                f"model.path: the head of {type(causal_lm).__name__} is a {type(head).__name__}, and log-probabilities "
                "can only be computed with a linear layer; choose another model"
            )
        if causal_lm.base_model is causal_lm:
            raise ConfigError(
                f"model.path: {type(causal_lm).__name__} does not say which of its modules is its backbone "
                "(base_model_prefix); choose another model"
            )
        self.head: nn.Linear = head
        self._causal_lm = causal_lm
        names = {id(module): name for name, module in causal_lm.named_children()}
        self._backbone, self._head = names.get(id(causal_lm.base_model)), names.get(id(head))

    def __call__(self, hidden_nD: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the logits [n, V]."""
        # A shallow copy of the module. Attributes in its __dict__ are found before its submodules.
        model = copy.copy(self._causal_lm)
        assert self._backbone is not None and self._head is not None, "is_plain_head says so"
        model.__dict__[self._backbone] = _Given(self._causal_lm.base_model, hidden_nD[None])
        model.__dict__[self._head] = _Linear(weight, bias)
        logits: Tensor = model.forward(inputs_embeds=hidden_nD[None], use_cache=False, return_dict=True).logits
        return logits[0]

    @torch.no_grad()
    def is_plain_head(self) -> bool:
        """Returns whether the logits are the plain output of the head, as a test on random numbers finds.

        Also True if the model's code cannot run without its backbone: the comparison of whole forward passes
        (`ray_rl.training.logit_check`) decides then.
        """
        if self._backbone is None or self._head is None:
            return True
        random = torch.Generator().manual_seed(0)
        hidden_nD = torch.randn(PROBE_ROWS, self.head.in_features, generator=random)
        weight = torch.randn(PROBE_WORDS, self.head.in_features, generator=random)
        plain = nn.functional.linear(hidden_nD, weight)
        weight *= PROBE_SIZE / plain.abs().max()
        plain = nn.functional.linear(hidden_nD, weight)
        try:
            own = self(hidden_nD, weight, None)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return True
        if own.shape != plain.shape:
            return True
        return bool((own - plain).abs().max() <= SAME * PROBE_SIZE)


class ChunkedHead(nn.Module):
    """A model's head, with the log-probabilities and entropies of its logits, computed in chunks of tokens.

    One module does all chunks, so that ZeRO-3 gathers the weights once per pass for any number of chunks. If the head
    were called once per chunk, it would be gathered each time, and DeepSpeed, which prefetches by the recorded order of
    module calls, would restart its recording whenever the number of chunks changes.
    """

    def __init__(self, own: OwnLogits, *, chunk_tokens: int, temperature: float) -> None:
        """Makes a head that shares the parameters of the model's head.

        Args:
            own: computes the logits of the model.
            chunk_tokens: the number of tokens whose logits are in memory at the same time.
            temperature: the temperature of the sampler.
        """
        super().__init__()
        self.weight, self.bias = own.head.weight, own.head.bias
        self._own = None if own.is_plain_head() else own
        self._chunk_tokens = chunk_tokens
        self._temperature = temperature

    def forward(
        self, hidden_ND: Tensor, labels_N: Tensor, *, with_entropy: bool, entropy_grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Calls `chunked_logprobs` with the head."""
        return chunked_logprobs(
            hidden_ND,
            labels_N,
            self._logits,
            chunk_tokens=self._chunk_tokens,
            temperature=self._temperature,
            with_entropy=with_entropy,
            entropy_grad=entropy_grad,
        )

    def _logits(self, hidden_nD: Tensor) -> Tensor:
        if self._own is not None:
            return self._own(hidden_nD, self.weight, self.bias)
        return nn.functional.linear(hidden_nD, self.weight, self.bias)
