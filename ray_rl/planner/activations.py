"""Estimates the bytes of activations and logits in a forward and backward pass. docs/planning.md has the derivation.

Follows arXiv:2205.05198 (section 4) for the decoder layers that transformers runs: RMS norms that convert to float32,
an attention that never stores its scores (flash, SDPA), a gated MLP, no dropout.
"""

from __future__ import annotations

from ray_rl.catalog.shapes import ModelShape
from ray_rl.planner.adapters import Adapters

WIDE = 4
"""Bytes of a float32."""

BLOCK_ELEMENTS = {"gpu": 2**26, "cpu": 2**20}
"""Logits that are converted to float32 together: `DEVICE_BLOCK_ELEMENTS` and `CPU_BLOCK_ELEMENTS` of the loss."""


def norm_bytes(hidden: int, element: int) -> float:
    """Returns the bytes per token of an RMS norm.

    It keeps its input in float32, and the normalised and the scaled input in the dtype of the weights.
    """
    return (WIDE + 2 * element) * hidden


def layer_bytes(shape: ModelShape, element: int) -> float:
    """Returns the bytes per token that one layer keeps for its backward pass.

    2 norms, (4 + 2 e) D each; q, k, v and the attention's output, e (2 q + 2 kv), with its float32 log-sum of each
    head; gate, up, the gate's activation and the product, 4 e I.
    """
    attention = element * (2 * shape.query + 2 * shape.kv) + WIDE * shape.heads
    return 2 * norm_bytes(shape.hidden, element) + attention + 4 * element * shape.intermediate


def adapted_layer_bytes(shape: ModelShape, element: int, adapters: Adapters) -> float:
    """Returns the same for a layer with adapters, whose own weights are frozen.

    A frozen weight needs no gradient and so no input. A norm keeps only its input in float32, 4 D. The attention keeps
    what it did, and the gate its input, its activation and the other factor, 3 e I. What goes into a matrix is kept
    where it has an adapter: e D for queries, keys and values, e D for gate and up, e I for down; and e r for each A x.
    """
    attention = element * (2 * shape.query + 2 * shape.kv) + WIDE * shape.heads
    targets = set(adapters.targets)
    into_attention, into_mlp = bool(targets & {"q_proj", "k_proj", "v_proj"}), bool(targets & {"gate_proj", "up_proj"})
    inputs = element * shape.hidden * (into_attention + into_mlp)
    gate = element * shape.intermediate * (3 + ("down_proj" in targets))
    return 2 * WIDE * shape.hidden + attention + inputs + gate + element * adapters.lora.rank * len(targets)


def working_bytes(shape: ModelShape, element: int) -> float:
    """Returns the temporary bytes per token inside one layer.

    They are the three wide tensors of the MLP or their gradients, and four tensors of width D.
    """
    return element * (3 * shape.intermediate + 4 * shape.hidden)


def trained_activations(
    shape: ModelShape,
    *,
    tokens: int,
    element: int,
    residual: int,
    checkpointing: bool,
    adapters: Adapters | None = None,
) -> float:
    """Returns the bytes at the start of the backward pass of a micro-batch.

    Without checkpointing every layer keeps its activations. With checkpointing every layer keeps its input, the
    residual, and one layer at a time is recomputed.

    Args:
        shape: the shape of the model.
        tokens: tokens of the micro-batch.
        element: bytes of a weight.
        residual: bytes of an element of the residual.
        checkpointing: whether layers are recomputed.
        adapters: those of a model whose own weights are frozen.
    """
    ends = norm_bytes(shape.hidden, element) + element * shape.hidden
    one = layer_bytes(shape, element) if adapters is None else adapted_layer_bytes(shape, element, adapters)
    kept = shape.layers * residual * shape.hidden + one if checkpointing else shape.layers * one
    return tokens * (kept + ends + working_bytes(shape, element))


def frozen_activations(shape: ModelShape, *, tokens: int, element: int) -> float:
    """Returns the bytes of a forward pass without a backward pass: the residual, a norm, and one running layer."""
    return tokens * (element * shape.hidden + norm_bytes(shape.hidden, element) + working_bytes(shape, element))


def logits_bytes(
    shape: ModelShape, *, tokens: int, chunk: int, element: int, accelerator: str, is_trained: bool
) -> float:
    """Returns the bytes of the head's output and gradient.

    They are one chunk of min(chunk, tokens) rows of V logits, which its gradient overwrites; two float32 copies of a
    block of the chunk; and where the head is trained two gradients of its weights, that of one chunk and the sum.

    Args:
        shape: the shape of the model.
        tokens: tokens of a micro-batch.
        chunk: `logit_chunk_tokens`.
        element: bytes of the logits.
        accelerator: decides the size of the float32 block.
        is_trained: whether the head's weights get a gradient.
    """
    logits = min(chunk, tokens) * shape.vocabulary
    head_gradient = 2 * element * shape.embedding_parameters if is_trained else 0
    return element * logits + 2 * WIDE * min(logits, BLOCK_ELEMENTS[accelerator]) + head_gradient
