"""Turns a batch into the tensors of each worker's micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_rl.batching.micro_batches import MicroBatch, Sizes, Tree, plan_micro_batches
from ray_rl.config.train import Packing
from ray_rl.models.attention import tree_layout
from ray_rl.models.policy import ModelInputs
from ray_rl.types import TokenBatch


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tensors of a micro-batch, and the positions of its loss tokens in the batch."""

    inputs: ModelInputs
    row_N: NDArray[np.int64]
    """Row of each loss token in the batch's [R, T] arrays."""
    time_N: NDArray[np.int64]
    """Column of each loss token in the batch's [R, T] arrays."""

    tokens: int
    """Number of tokens that the model processes, without padding."""

    def to(self, device: str) -> Encoded:
        """Returns the micro-batch with its tensors on another device."""
        return replace(self, inputs=self.inputs.to(device))

    def pick(self, values_RT: NDArray[np.float32]) -> Tensor:
        """Returns float32 [N], the values of the loss tokens, on the device of the inputs."""
        return torch.from_numpy(values_RT[self.row_N, self.time_N]).to(self.inputs.labels_N.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a batch is divided among workers and micro-batches."""

    workers: int
    micro_batch_tokens: int
    packing: Packing

    def encode(
        self, batch: TokenBatch, rows: NDArray[np.int64], *, rank: int, whole_groups: bool = False
    ) -> list[Encoded]:
        """Returns one worker's micro-batches for some rows of the batch; every worker has the same number of them.

        Raises:
            ValueError: a prompt has no tokens.
        """
        plans = plan_micro_batches(
            Sizes([len(prompt) for prompt in batch.prompt_ids], batch.lengths_R.tolist(), batch.group_size),
            rows.tolist(),
            workers=self.workers,
            budget=self.micro_batch_tokens,
            packing=self.packing,
            whole_groups=whole_groups,
        )
        return [encode(batch, micro_batch, packing=self.packing) for micro_batch in plans[rank]]


def encode(batch: TokenBatch, micro_batch: MicroBatch, *, packing: Packing) -> Encoded:
    """Returns the tensors of a micro-batch. An empty one becomes two tokens without a loss.

    Raises:
        ValueError: a prompt has no tokens: in a row of several sequences, the end of another would predict its answer.
    """
    if not micro_batch:
        return _nothing(packing)
    empty = [tree.prompt for tree in micro_batch if not len(batch.prompt_ids[tree.prompt])]
    if empty:
        raise ValueError(f"prompt {empty[0]} of the batch has no tokens, so nothing predicts its first answer token")
    if packing == "padded":
        return _encode_padded(batch, micro_batch)
    if packing == "packed":
        micro_batch = tuple(Tree(tree.prompt, (row,)) for tree in micro_batch for row in tree.rows)
    return _encode_row(batch, micro_batch, is_shared=packing == "shared_prefix")


def _nothing(packing: Packing) -> Encoded:
    empty = np.zeros(0, np.int64)
    inputs = ModelInputs(
        tokens_BL=torch.zeros(1, 2, dtype=torch.int64),
        positions_BL=torch.arange(2)[None],
        attention_mask_BL=torch.ones(1, 2, dtype=torch.int64) if packing == "padded" else None,
        layout=tree_layout([(1, [1])]) if packing == "shared_prefix" else None,
        predict_N=torch.zeros(0, dtype=torch.int64),
        labels_N=torch.zeros(0, dtype=torch.int64),
    )
    return Encoded(inputs, empty, empty, tokens=0)


def _loss_times(batch: TokenBatch, row: int) -> NDArray[np.int64]:
    return np.flatnonzero(batch.loss_mask_RT[row, : batch.lengths_R[row]])


def _encode_row(batch: TokenBatch, micro_batch: MicroBatch, *, is_shared: bool) -> Encoded:
    """Returns one row of trees: each prompt, followed by its completions (one completion if prompts are not shared).

    Without a layout, attention finds the start of each sequence by its position 0.
    """
    tokens, positions, predict, row_N, time_N, trees = [], [], [], [], [], []
    end = 0
    for tree in micro_batch:
        prompt = batch.prompt_ids[tree.prompt]
        last_of_prompt = end + len(prompt) - 1
        tokens.append(prompt)
        positions.append(np.arange(len(prompt)))
        end += len(prompt)
        for row in tree.rows:
            length = int(batch.lengths_R[row])
            times = _loss_times(batch, row)
            # Token 0 is predicted by the end of the prompt, token t by token t - 1 of the same completion.
            predict.append(np.where(times == 0, last_of_prompt, end + times - 1))
            row_N.append(np.full(len(times), row))
            time_N.append(times)
            tokens.append(batch.tokens_RT[row, :length])
            positions.append(len(prompt) + np.arange(length))
            end += length
        trees.append((len(prompt), [int(batch.lengths_R[row]) for row in tree.rows]))
    rows, times = np.concatenate(row_N), np.concatenate(time_N)
    inputs = ModelInputs(
        tokens_BL=torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None],
        positions_BL=torch.from_numpy(np.concatenate(positions))[None],
        attention_mask_BL=None,
        layout=tree_layout(trees) if is_shared else None,
        predict_N=torch.from_numpy(np.concatenate(predict)),
        labels_N=torch.from_numpy(batch.tokens_RT[rows, times].astype(np.int64)),
    )
    return Encoded(inputs, rows, times, tokens=end)


def _encode_padded(batch: TokenBatch, micro_batch: MicroBatch) -> Encoded:
    """Returns one row per sequence, padded on the right."""
    pairs = [(batch.prompt_ids[tree.prompt], row) for tree in micro_batch for row in tree.rows]
    lengths = [len(prompt) + int(batch.lengths_R[row]) for prompt, row in pairs]
    width = max(lengths)
    tokens_BL = np.zeros((len(pairs), width), np.int64)
    mask_BL = np.zeros((len(pairs), width), np.int64)
    predict, row_N, time_N = [], [], []
    for i, (prompt, row) in enumerate(pairs):
        tokens_BL[i, : len(prompt)] = prompt
        tokens_BL[i, len(prompt) : lengths[i]] = batch.tokens_RT[row, : batch.lengths_R[row]]
        mask_BL[i, : lengths[i]] = 1
        times = _loss_times(batch, row)
        predict.append(i * width + len(prompt) + times - 1)
        row_N.append(np.full(len(times), row))
        time_N.append(times)
    rows, times = np.concatenate(row_N), np.concatenate(time_N)
    inputs = ModelInputs(
        tokens_BL=torch.from_numpy(tokens_BL),
        positions_BL=torch.arange(width)[None].expand(len(pairs), width),
        attention_mask_BL=torch.from_numpy(mask_BL),
        layout=None,
        predict_N=torch.from_numpy(np.concatenate(predict)),
        labels_N=torch.from_numpy(batch.tokens_RT[rows, times].astype(np.int64)),
    )
    return Encoded(inputs, rows, times, tokens=sum(lengths))
