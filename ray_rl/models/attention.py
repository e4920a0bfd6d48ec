"""Attention over trees: the prompt of a group is computed once and all its completions attend to it.

The tokens of a micro-batch are one row, [prompt, completion 1, ..., completion n, next prompt, ...], so that every
linear layer computes each prompt once. Only attention knows the trees: it copies queries, keys and values into padded
views [trees, prompt] and [trees, completions, tokens], with the heads as outer axes, and multiplies there. The result
is exact: a completion token attends to its prompt and its own earlier tokens, at its positions in its own sequence.

Everything is computed in float32 for any dtype of the model, as inside the kernels of SDPA: rounding the scores to
bfloat16 raised the error of the gradient by a tenth. tests/unit/models/test_attention.py requires the error to be no
larger than that of padded SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_rl.errors import ConfigError

SHARED_PREFIX = "ray_rl_shared_prefix"
"""The name of this attention in transformers."""

BLOCK = 128
"""Tokens of a prompt whose queries are multiplied together: of 32 to 512 the fastest for prompts of 512."""

CHANGES_SCORES = ("s_aux", "softcap", "sliding_window", "position_bias")
"""Keywords under which transformers' models pass attention sinks, caps, windows and biases."""


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Positions of the tokens of a row of trees in the padded views.

    There are N trees. Prompts are padded to P tokens, completions to G per tree with C tokens each. A slot is a
    position in the views: first N * P slots for the prompts, then N * G * C for the completions.
    """

    trees: int
    prompt: int
    completions: int
    completion: int
    token_of_slot: Tensor
    """int64 [slots], index of its token in the row; 0 where the slot is padding."""
    is_token: Tensor
    """bool [slots], False for padding."""
    prompt_bias_PP: Tensor
    """float32 [P, P], 0 or -inf: causal."""
    completion_bias_NCK: Tensor
    """float32 [N, 1, C, P + C], 0 or -inf: the whole prompt of the tree, then causal over its own tokens."""

    @property
    def prompt_slots(self) -> int:
        """N * P, the number of slots of the prompts."""
        return self.trees * self.prompt


def tree_layout(trees: Sequence[tuple[int, Sequence[int]]]) -> TreeLayout:
    """Returns the layout of trees given as (prompt tokens, tokens of each completion)."""
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
    token_of_slot = torch.zeros(count * (prompt + completions * completion), dtype=torch.int64)
    token_of_slot[slots] = torch.arange(len(slots))
    is_token = torch.zeros(len(token_of_slot), dtype=torch.bool)
    is_token[slots] = True

    prompt_tokens_N1 = torch.tensor([tokens for tokens, _ in trees])[:, None]
    is_padding_NP = torch.arange(prompt)[None] >= prompt_tokens_N1
    to_prompt_NCP = is_padding_NP[:, None, None].expand(count, 1, completion, prompt)
    to_own_NCC = _is_future(completion).expand(count, 1, completion, completion)
    return TreeLayout(
        trees=count,
        prompt=prompt,
        completions=completions,
        completion=completion,
        token_of_slot=token_of_slot,
        is_token=is_token,
        prompt_bias_PP=_bias(_is_future(prompt)),
        completion_bias_NCK=_bias(torch.cat([to_prompt_NCP, to_own_NCC], -1)),
    )


def _is_future(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu(1)


def _bias(is_masked: Tensor) -> Tensor:
    return torch.zeros(is_masked.shape).masked_fill(is_masked, float("-inf"))


@dataclass(frozen=True, slots=True)
class _Views:
    """Index maps between rows of [tokens, heads] and rows of the views [N, K, R, P] and, after it, [N, K, G, R, C].

    R query heads share each of the K key heads; for keys and values R is 1.
    """

    row_of_view: Tensor
    """int64 [view rows], the row that is copied there; any row where the view is padding."""
    view_of_row: Tensor
    """int64 [rows], the view row of each row."""
    prompt_rows: int
    """Number of view rows of the prompts."""

    @classmethod
    def of(cls, layout: TreeLayout, key_heads: int, repeat: int) -> _Views:
        n, p, g, c = layout.trees, layout.prompt, layout.completions, layout.completion
        heads = torch.arange(key_heads * repeat)

        def spread(slots: Tensor, heads: Tensor) -> Tensor:
            """Returns all slots for all heads, in the order of the views."""
            prompt, completion = slots.split([layout.prompt_slots, len(slots) - layout.prompt_slots])
            prompt_NKRP = prompt.view(n, 1, 1, p) + heads.view(1, key_heads, repeat, 1)
            completion_NKGRC = completion.view(n, 1, g, 1, c) + heads.view(1, key_heads, 1, repeat, 1)
            return torch.cat([prompt_NKRP.flatten(), completion_NKGRC.flatten()])

        row_of_view = spread(layout.token_of_slot * len(heads), heads)
        shown = spread(layout.is_token.long(), torch.zeros_like(heads)).nonzero()[:, 0]
        view_of_row = torch.empty_like(shown)
        view_of_row[row_of_view[shown]] = shown
        return cls(row_of_view, view_of_row, n * key_heads * repeat * p)


class _IntoViews(torch.autograd.Function):
    """Copies rows [S * H, D] into view rows.

    The backward pass takes the gradient of each row from its view row. Padding has no gradient, as this requires: its
    keys have weight 0 and the results of its queries are dropped.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, views: _Views) -> Tensor:
        ctx.views = views
        return rows.index_select(0, views.row_of_view)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.views.view_of_row), None


class _OutOfViews(torch.autograd.Function):
    """Copies view rows back into rows [S * H, D]. Padding is dropped, and its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, shown: Tensor, views: _Views) -> Tensor:
        ctx.views = views
        return shown.index_select(0, views.view_of_row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        views = ctx.views
        padded = grad.new_zeros(len(views.row_of_view), grad.shape[1])
        return padded.index_copy_(0, views.view_of_row, grad), None


class _Softmax(torch.autograd.Function):
    """Computes softmax(scores * scale + bias) in place; only the result is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, scale: float, bias: Tensor) -> Tensor:
        weights = torch.softmax(scores.mul_(scale).add_(bias), -1)
        ctx.save_for_backward(weights)
        ctx.scale = scale
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        grad = torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)
        return grad.mul_(ctx.scale), None, None


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
    """Computes the attention of one row of trees, with the signature of transformers' AttentionInterface.

    Axes: H query heads, K key heads, R = H / K, D head size, S tokens of the row; N, P, G, C as in `TreeLayout`.

    Args:
        module: the model's attention layer, not used.
        query: [1, H, S, D], after rotary embedding.
        key: [1, K, S, D].
        value: [1, K, S, D].
        attention_mask: None, because the layout says what to mask.
        scaling: the factor of the scores.
        dropout: 0, because the log-probabilities of a policy with random dropout would not be reproducible.
        layout: the trees of the micro-batch, passed as a keyword through the model's forward.
        ignored: other keywords that transformers passes to every attention.

    Returns:
        [1, S, H, D] and no weights.

    Raises:
        ConfigError: the model changes its attention scores in a way that is not implemented here.
    """
    assert attention_mask is None, "the layout is the mask"
    assert dropout == 0.0, "attention dropout must be 0"
    for name in CHANGES_SCORES:
        if ignored.get(name) is not None:
            raise ConfigError(
                f"train.packing=shared_prefix: the model needs {name} in its attention; set train.packing=padded"
            )
    heads, key_heads, size = query.shape[1], key.shape[1], query.shape[3]
    queries, keys = _Views.of(layout, key_heads, heads // key_heads), _Views.of(layout, key_heads, 1)
    query_p, query_c = _view(query, queries)
    key_p, key_c = _view(key, keys)
    value_p, value_c = _view(value, keys)
    shape_NKPD = (layout.trees, key_heads, layout.prompt, size)
    key_NKPD, value_NKPD = key_p.view(shape_NKPD), value_p.view(shape_NKPD)
    out_p = _prompts_attend(query_p, key_NKPD, value_NKPD, layout, scaling)
    out_c = _completions_attend(query_c, key_c, value_c, key_NKPD, value_NKPD, layout, scaling)
    out = _OutOfViews.apply(torch.cat([out_p, out_c]).to(query.dtype), queries)
    return out.view(1, -1, heads, size), None


def _view(x: Tensor, views: _Views) -> tuple[Tensor, Tensor]:
    """Copies [1, H, S, D] into float32 view rows; returns those of the prompts and those of the completions."""
    shown: Tensor = _IntoViews.apply(x.transpose(1, 2).reshape(-1, x.shape[3]), views).float()
    prompts, completions = shown.split([views.prompt_rows, len(shown) - views.prompt_rows])
    return prompts, completions


def _prompts_attend(query: Tensor, key_NKPD: Tensor, value_NKPD: Tensor, layout: TreeLayout, scaling: float) -> Tensor:
    """Returns [N * K * R * P, D]. Heads that share keys are rows of one product, so that keys are never copied.

    The queries of a long prompt come in blocks, each with the keys up to its end. That halves the work and the weights
    that are kept.
    """
    n, kh, p, size = key_NKPD.shape
    query_NKRPD, blocks = query.view(n, kh, -1, p, size), []
    for first in range(0, p, BLOCK):
        last = min(first + BLOCK, p)
        key, value = key_NKPD[:, :, :last], value_NKPD[:, :, :last]
        scores = torch.matmul(query_NKRPD[:, :, :, first:last].reshape(n, kh, -1, size), key.transpose(-1, -2))
        bias = layout.prompt_bias_PP[first:last, :last]
        weights = _Softmax.apply(scores.view(n, kh, -1, last - first, last), scaling, bias)
        blocks.append(torch.matmul(weights.view(n, kh, -1, last), value).view(n, kh, -1, last - first, size))
    return torch.cat(blocks, 3).view(-1, size)


def _completions_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_NKPD: Tensor,
    value_NKPD: Tensor,
    layout: TreeLayout,
    scaling: float,
) -> Tensor:
    """Returns [N * K * G * R * C, D].

    One product multiplies all completions of a tree with the keys of its prompt, a second each with its own keys.
    """
    n, kh, p, size = key_NKPD.shape
    g, c = layout.completions, layout.completion
    own_key, own_value = key.view(n, kh, g, c, size), value.view(n, kh, g, c, size)
    to_prompt = torch.matmul(query.view(n, kh, -1, size), key_NKPD.transpose(-1, -2))
    to_own = torch.matmul(query.view(n, kh, g, -1, size), own_key.transpose(-1, -2))
    scores = torch.cat([to_prompt.view(n, kh, -1, c, p), to_own.view(n, kh, -1, c, c)], -1)
    weights = _Softmax.apply(scores, scaling, layout.completion_bias_NCK[:, :, None])
    on_prompt, on_own = weights.split([p, c], -1)
    out_prompt = torch.matmul(on_prompt.reshape(n, kh, -1, p), value_NKPD)
    out_own = torch.matmul(on_own.reshape(n, kh, g, -1, c), own_value)
    return out_prompt.view(-1, size) + out_own.view(-1, size)


def register_shared_prefix() -> None:
    """Makes `shared_prefix_attention` known to transformers, for models that are loaded with its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
