"""Attention over trees: the prompt of a group is computed once and its completions attend to it.

The tokens of a micro-batch are one row, [prompt, completion 1, ..., completion n, next prompt, ...], so that every linear
layer sees each prompt once. Only attention knows the tree: it scatters queries, keys and values into padded views
[trees, prompt] and [trees, completions, tokens] and multiplies there. Exact: a completion token attends to its prompt and
to its own earlier tokens, at the positions it has in its own sequence.

Scores and softmax are float32 whatever the model's dtype: rounding the scores to bfloat16 (8 bits of mantissa) moves the
gradient by several per cent, see tests/unit/models/test_attention.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface

SHARED_PREFIX = "ray_rl_shared_prefix"
"""Name under which transformers knows this attention."""


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Where the tokens of a row of trees go in the padded views.

    N trees; their prompts padded to P tokens, their completions to G of C tokens.
    """

    trees: int
    prompt: int
    completions: int
    completion: int
    slots_S: Tensor
    """int64 [S], for every token of the row its slot among N*P prompt slots, then N*G*C completion slots."""
    prompt_bias_PP: Tensor
    """float32 [P, P], 0 or -inf: causal."""
    completion_bias_NCK: Tensor
    """float32 [N, 1, C, P + C], 0 or -inf: the whole prompt of the tree, then causal over its own tokens."""

    @property
    def prompt_slots(self) -> int:
        """N * P."""
        return self.trees * self.prompt

    @property
    def slots(self) -> int:
        """N * P + N * G * C."""
        return self.prompt_slots + self.trees * self.completions * self.completion


def tree_layout(trees: Sequence[tuple[int, Sequence[int]]]) -> TreeLayout:
    """Layout of trees given as (prompt tokens, tokens of each completion)."""
    count = len(trees)
    prompt = max(tokens for tokens, _ in trees)
    completions = max(len(lengths) for _, lengths in trees)
    completion = max(length for _, lengths in trees for length in lengths)
    slots: list[int] = []
    for n, (tokens, lengths) in enumerate(trees):
        slots += range(n * prompt, n * prompt + tokens)
        for g, length in enumerate(lengths):
            first = count * prompt + (n * completions + g) * completion
            slots += range(first, first + length)

    prompt_tokens_N1 = torch.tensor([tokens for tokens, _ in trees])[:, None]
    is_padding_NP = torch.arange(prompt)[None] >= prompt_tokens_N1
    to_prompt_NCP = is_padding_NP[:, None, None].expand(count, 1, completion, prompt)
    to_own_NCC = _is_future(completion).expand(count, 1, completion, completion)
    return TreeLayout(
        trees=count,
        prompt=prompt,
        completions=completions,
        completion=completion,
        slots_S=torch.tensor(slots),
        prompt_bias_PP=_bias(_is_future(prompt)),
        completion_bias_NCK=_bias(torch.cat([to_prompt_NCP, to_own_NCC], -1)),
    )


def _is_future(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu(1)


def _bias(is_masked: Tensor) -> Tensor:
    return torch.zeros(is_masked.shape).masked_fill(is_masked, float("-inf"))


class _Scatter(torch.autograd.Function):
    """[S, D] tokens into [slots, D] padded views, zeros elsewhere; backward is a gather (slots are distinct)."""

    @staticmethod
    def forward(ctx, tokens_SD: Tensor, slots_S: Tensor, slots: int) -> Tensor:
        ctx.save_for_backward(slots_S)
        return tokens_SD.new_zeros(slots, tokens_SD.shape[1]).index_copy_(0, slots_S, tokens_SD)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (slots_S,) = ctx.saved_tensors
        return grad.index_select(0, slots_S), None, None


class _Gather(torch.autograd.Function):
    """Inverse of `_Scatter`: padded slots are dropped, and get zero gradient."""

    @staticmethod
    def forward(ctx, padded: Tensor, slots_S: Tensor) -> Tensor:
        ctx.save_for_backward(slots_S)
        ctx.slots = padded.shape[0]
        return padded.index_select(0, slots_S)

    @staticmethod
    def backward(ctx, grad_SD: Tensor) -> tuple[Tensor, None]:
        (slots_S,) = ctx.saved_tensors
        return grad_SD.new_zeros(ctx.slots, grad_SD.shape[1]).index_copy_(0, slots_S, grad_SD), None


class _Softmax(torch.autograd.Function):
    """softmax(scores * scale + bias) in float32; only the result is kept for the backward pass, in `dtype`."""

    @staticmethod
    def forward(ctx, scores: Tensor, scale: float, bias: Tensor, dtype: torch.dtype) -> Tensor:
        weights = torch.softmax(scores.float().mul_(scale).add_(bias), -1)
        ctx.save_for_backward(weights if dtype == torch.float32 else (weights := weights.to(dtype)))
        ctx.scale = scale
        return weights

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weights,) = ctx.saved_tensors
        weights = weights.float()
        grad = grad.float()
        dot = (grad * weights).sum(-1, keepdim=True)
        return grad.sub_(dot).mul_(weights).mul_(ctx.scale), None, None, None


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    layout: TreeLayout,
    **ignored: object,
) -> tuple[Tensor, None]:
    """Attention of one row of trees, in the form of transformers' AttentionInterface.

    Axes: H query heads, K key heads, R = H / K, D head size, S tokens of the row; N, P, G, C as in `TreeLayout`.

    Args:
        query: [1, H, S, D], after rotary embedding.
        key: [1, K, S, D].
        value: [1, K, S, D].
        attention_mask: None; the layout is the mask.
        scaling: factor of the scores.
        dropout: 0; a policy that drops at random has no log-probability.
        layout: of the micro-batch, passed as a keyword through the model's forward.
        ignored: what transformers passes to every attention.
    Returns:
        [1, S, H, D] and no weights.
    """
    assert attention_mask is None, "the layout is the mask"
    assert dropout == 0.0, "attention dropout must be 0"
    heads, size = query.shape[1], query.shape[3]
    prompt, completion = layout.prompt_slots, layout.slots - layout.prompt_slots
    views = [_scatter(x, layout) for x in (query, key, value)]
    (query_p, key_p, value_p), (query_c, key_c, value_c) = zip(*(x.split([prompt, completion]) for x in views), strict=True)
    shape_NPKD = (layout.trees, layout.prompt, key.shape[1], size)
    key_NKPD = key_p.view(shape_NPKD).permute(0, 2, 1, 3).contiguous()
    value_NKPD = value_p.view(shape_NPKD).permute(0, 2, 1, 3).contiguous()
    out_p = _prompts_attend(query_p, key_NKPD, value_NKPD, layout, scaling)
    out_c = _completions_attend(query_c, key_c, value_c, key_NKPD, value_NKPD, layout, scaling)
    out = _Gather.apply(torch.cat([out_p, out_c], 0), layout.slots_S)
    return out.view(1, -1, heads, size), None


def _scatter(x: Tensor, layout: TreeLayout) -> Tensor:
    """[1, H, S, D] -> [slots, H * D]."""
    return _Scatter.apply(x.transpose(1, 2).reshape(x.shape[2], -1), layout.slots_S, layout.slots)


def _prompts_attend(query: Tensor, key_NKPD: Tensor, value_NKPD: Tensor, layout: TreeLayout, scaling: float) -> Tensor:
    """[N * P, H * D]. Grouped-query heads are folded into the query rows, so keys are never repeated."""
    n, p, kh, size = layout.trees, layout.prompt, key_NKPD.shape[1], key_NKPD.shape[3]
    q = query.view(n, p, kh, -1, size).permute(0, 2, 3, 1, 4)
    repeat = q.shape[2]
    scores = torch.matmul(q.reshape(n, kh, repeat * p, size).float(), key_NKPD.float().transpose(-1, -2))
    weights = _Softmax.apply(scores.view(n, kh, repeat, p, p), scaling, layout.prompt_bias_PP, value_NKPD.dtype)
    out = torch.matmul(weights.view(n, kh, repeat * p, p), value_NKPD)
    return out.view(n, kh, repeat, p, size).permute(0, 3, 1, 2, 4).reshape(n * p, -1)


def _completions_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_NKPD: Tensor,
    value_NKPD: Tensor,
    layout: TreeLayout,
    scaling: float,
) -> Tensor:
    """[N * G * C, H * D]. All completions of a tree meet its prompt's keys in one product, then each its own."""
    n, p, g, c = layout.trees, layout.prompt, layout.completions, layout.completion
    kh, size = key_NKPD.shape[1], key_NKPD.shape[3]
    q = query.view(n, g, c, kh, -1, size).permute(0, 3, 1, 4, 2, 5).float()
    repeat = q.shape[3]
    own_key = key.view(n, g, c, kh, size).permute(0, 3, 1, 2, 4).contiguous()
    own_value = value.view(n, g, c, kh, size).permute(0, 3, 1, 2, 4).contiguous()
    to_prompt = torch.matmul(q.reshape(n, kh, g * repeat * c, size), key_NKPD.float().transpose(-1, -2))
    to_own = torch.matmul(q.reshape(n, kh, g, repeat * c, size), own_key.float().transpose(-1, -2))
    scores = torch.cat([to_prompt.view(n, kh, g * repeat, c, p), to_own.view(n, kh, g * repeat, c, c)], -1)
    weights = _Softmax.apply(scores, scaling, layout.completion_bias_NCK[:, :, None], value.dtype)
    on_prompt, on_own = weights.split([p, c], -1)
    out = torch.matmul(on_prompt.reshape(n, kh, g * repeat * c, p), value_NKPD).view(n, kh, g, repeat * c, size)
    out = out + torch.matmul(on_own.reshape(n, kh, g, repeat * c, c), own_value)
    return out.view(n, kh, g, repeat, c, size).permute(0, 2, 4, 1, 3, 5).reshape(n * g * c, -1)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
