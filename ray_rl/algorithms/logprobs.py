"""Log-probabilities of given tokens, without the logits of all tokens in memory at once."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""[n, D] hidden states to [n, V] logits. Deterministic."""

CPU_BLOCK_ELEMENTS = 2**20
"""Logits that are widened to float32 at once: 4 MiB stay in the cache, which made the forward softmax of
1024 tokens over 49152 words 4 to 8 times as fast, and the backward one twice."""
DEVICE_BLOCK_ELEMENTS = 2**26
"""The same on a GPU, where a block costs kernel launches and 256 MiB are affordable."""


def chunked_logprobs(
    hidden_ND: Tensor,
    labels_N: Tensor,
    head: Head,
    *,
    chunk_tokens: int,
    temperature: float = 1.0,
    with_entropy: bool = True,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Returns the log-probability log softmax(head(hidden) / temperature)[label] of each token, and the entropy.

    The entropy is that of the softmax. Logits exist for at most `chunk_tokens` tokens at a time, in as few equal chunks
    as that allows; the backward pass computes them again. Only the last chunk is kept, because the backward pass starts
    with it: that costs no memory at the peak and saves one pass of the head. The gradient overwrites the logits, so a
    second backward pass through the same graph is an error.

    Args:
        hidden_ND: [N, D] in the head's dtype. N may be 0; the head runs all the same, as ZeRO-3 needs.
        labels_N: int64 [N] in [0, V).
        head: maps hidden states to finite logits.
        chunk_tokens: >= 1.
        temperature: > 0; that of the sampler, so that the result is the probability of what was sampled.
        with_entropy: False returns None for it and saves a pass.
        entropy_grad: False treats the entropy as a constant: a metric, not a bonus.

    Returns:
        Log-probabilities [N] and entropies [N], in nats: float32, or float64 from float64 logits.
    """

    def chunk(hidden_nD: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
        return _LabelLogprobs.apply(head(hidden_nD), labels_n, temperature, with_entropy, entropy_grad)  # type: ignore[no-untyped-call, no-any-return]

    pieces: list[tuple[Tensor, Tensor]] = []
    chunks = max(1, math.ceil(len(labels_N) / chunk_tokens))
    for i, piece in enumerate(zip(hidden_ND.tensor_split(chunks), labels_N.tensor_split(chunks), strict=True)):
        if i == chunks - 1 or not torch.is_grad_enabled():
            pieces.append(chunk(*piece))
        else:
            pieces.append(checkpoint(chunk, *piece, use_reentrant=False, preserve_rng_state=False))
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


class _LabelLogprobs(torch.autograd.Function):
    """log softmax(logits / temperature)[label] and entropy, from logits in any float dtype, in float32.

    With p the softmax: d logprob / d logit_j = (1[j = label] - p_j) / temperature,
    d entropy / d logit_j = -p_j (log p_j + entropy) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_nV: Tensor, labels_n: Tensor, temperature: float, with_entropy: bool, entropy_grad: bool
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits_nV.dtype, torch.float32)
        logprobs_n, entropy_n, lse_n = (logits_nV.new_zeros(len(labels_n), dtype=dtype) for _ in range(3))
        for rows in _blocks(logits_nV):
            scaled = _scaled(logits_nV[rows], temperature, dtype)
            peak = scaled.amax(1, keepdim=True)
            exps = scaled.sub_(peak).exp()
            sums = exps.sum(1)
            log_sums = sums.log()
            logprobs_n[rows] = scaled.gather(1, labels_n[rows, None])[:, 0] - log_sums
            lse_n[rows] = log_sums + peak[:, 0]
            if with_entropy:
                entropy_n[rows] = log_sums - exps.mul_(scaled).sum(1) / sums
        ctx.save_for_backward(logits_nV, labels_n, lse_n, entropy_n)
        ctx.temperature, ctx.entropy_grad = temperature, entropy_grad
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy_n)
        return logprobs_n, entropy_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits_nV, labels_n, lse_n, entropy_n = ctx.saved_tensors
        logprob_grad_n, entropy_grad_n = grads
        for rows in _blocks(logits_nV):
            logp = _scaled(logits_nV[rows], ctx.temperature, lse_n.dtype).sub_(lse_n[rows, None])
            grad = logp.exp()
            if ctx.entropy_grad:
                factor = logp.add_(entropy_n[rows, None]).mul_(entropy_grad_n[rows, None])
                grad.mul_(factor.add_(logprob_grad_n[rows, None]).neg_())
            else:
                grad.mul_(-logprob_grad_n[rows, None])
            grad.scatter_add_(1, labels_n[rows, None], logprob_grad_n[rows, None])
            logits_nV[rows] = grad.div_(ctx.temperature)
        return logits_nV, None, None, None, None


def _blocks(logits_nV: Tensor) -> Iterator[slice]:
    """Yields slices of the rows, each small enough to be converted to float32."""
    elements = CPU_BLOCK_ELEMENTS if logits_nV.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    rows = max(1, elements // logits_nV.shape[1])
    return (slice(start, start + rows) for start in range(0, logits_nV.shape[0], rows))


def _scaled(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """Returns a copy of the logits in float32, divided by the temperature."""
    widened = logits.to(dtype, copy=True)
    return widened if temperature == 1.0 else widened.div_(temperature)
