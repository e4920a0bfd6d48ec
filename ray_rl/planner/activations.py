"""Bytes of activations and logits of a forward and backward pass. docs/planning.md has the derivation.

After arXiv:2205.05198 (section 4), for the decoder layers that transformers runs: RMS norms that widen to float32, an
attention that never writes its scores (flash, SDPA), a gated MLP, no dropout.
"""

from __future__ import annotations

from ray_rl.catalog.shapes import ModelShape

WIDE = 4
"""Bytes of a float32."""

BLOCK_ELEMENTS = {"gpu": 2**26, "cpu": 2**20}
"""Logits that are widened to float32 at once: `DEVICE_BLOCK_ELEMENTS` and `CPU_BLOCK_ELEMENTS` of the loss."""


def norm_bytes(hidden: int, element: int) -> float:
    """A token's in an RMS norm: its input in float32, and in the weights' dtype the normalised and the scaled one."""
    return (WIDE + 2 * element) * hidden


def layer_bytes(shape: ModelShape, element: int) -> float:
    """A token's that one layer keeps for its backward pass.

    2 norms, (4 + 2 e) D each; q, k, v and the attention's output, e (2 q + 2 kv), with its float32 log-sum of each
    head; gate, up, the gate's activation and the product, 4 e I.
    """
    attention = element * (2 * shape.query + 2 * shape.kv) + WIDE * shape.heads
    return 2 * norm_bytes(shape.hidden, element) + attention + 4 * element * shape.intermediate


def working_bytes(shape: ModelShape, element: int) -> float:
    """A token's that come and go inside one layer: the MLP's three wide tensors or their gradients, four of width D."""
    return element * (3 * shape.intermediate + 4 * shape.hidden)


def trained_activations(shape: ModelShape, *, tokens: int, element: int, residual: int, checkpointing: bool) -> float:
    """Bytes at the start of the backward pass of a micro-batch.

    Without checkpointing every layer keeps its own. With it every layer keeps its input, the residual, and one layer is
    computed again.

    Args:
        shape: of the model.
        tokens: of the micro-batch.
        element: bytes of a weight.
        residual: bytes of an element of the residual.
        checkpointing: whether layers are computed again.
    """
    ends = norm_bytes(shape.hidden, element) + element * shape.hidden
    one = layer_bytes(shape, element)
    kept = shape.layers * residual * shape.hidden + one if checkpointing else shape.layers * one
    return tokens * (kept + ends + working_bytes(shape, element))


def frozen_activations(shape: ModelShape, *, tokens: int, element: int) -> float:
    """Bytes of a forward pass without a backward pass: the residual, a norm, and one layer at work."""
    return tokens * (element * shape.hidden + norm_bytes(shape.hidden, element) + working_bytes(shape, element))


def logits_bytes(
    shape: ModelShape, *, tokens: int, chunk: int, element: int, accelerator: str, is_trained: bool
) -> float:
    """Bytes of the head's output and gradient.

    One chunk of min(chunk, tokens) rows of V logits, which its gradient overwrites; two float32 copies of a block of
    it; in training the gradient of the head's weights twice, as one chunk gives it and as it is summed.

    Args:
        shape: of the model.
        tokens: of a micro-batch.
        chunk: `logit_chunk_tokens`.
        element: bytes of the logits.
        accelerator: decides the size of the float32 block.
        is_trained: there is a backward pass.
    """
    logits = min(chunk, tokens) * shape.vocabulary
    head_gradient = 2 * element * shape.embedding_parameters if is_trained else 0
    return element * logits + 2 * WIDE * min(logits, BLOCK_ELEMENTS[accelerator]) + head_gradient
