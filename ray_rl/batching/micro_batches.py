"""Decides which rank computes which rollouts, in which micro-batches.

Pure functions: every rank computes the whole plan and takes its own part.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from ray_rl.config.train import Packing


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and some of its completions. Without shared prefixes, one completion."""

    prompt: int
    """Index into the batch's prompts."""
    rows: tuple[int, ...]
    """Rows of the batch."""


MicroBatch = tuple[Tree, ...]
"""An empty micro-batch is for a rank without work left, which must still take part in the collectives."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of the prompts [P] and completions [R] of a batch."""

    prompts: Sequence[int]
    completions: Sequence[int]
    group_size: int

    def tokens(self, tree: Tree) -> int:
        """Returns how many tokens of a tree the model processes."""
        return self.prompts[tree.prompt] + sum(self.completions[row] for row in tree.rows)


def plan_micro_batches(
    sizes: Sizes, rows: Sequence[int], *, workers: int, budget: int, packing: Packing
) -> list[list[MicroBatch]]:
    """Returns the micro-batches of every worker: balanced in tokens, within the budget, equally many for each worker.

    A tree that exceeds the budget alone becomes a micro-batch of its own. ZeRO gathers parameters in every micro-batch
    on every rank, so a rank with fewer micro-batches gets empty ones (otherwise DeepSpeed hangs).

    Args:
        sizes: the number of tokens of each prompt and completion.
        rows: the rollouts to compute.
        workers: data-parallel ranks.
        budget: tokens of a micro-batch, padding included (`train.micro_batch_tokens`).
        packing: under shared_prefix, rows of one prompt stay together where the budget and the number of workers allow.
    """
    if packing == "shared_prefix":
        trees = _shared_trees(sizes, rows, workers=workers, budget=budget)
    else:
        trees = _single_trees(sizes, rows)
    plans = [_pack(sizes, share, budget=budget, packing=packing) for share in _balance(sizes, trees, workers)]
    longest = max(len(plan) for plan in plans)
    return [plan + [()] * (longest - len(plan)) for plan in plans]


def _single_trees(sizes: Sizes, rows: Sequence[int]) -> list[Tree]:
    return [Tree(row // sizes.group_size, (row,)) for row in rows]


def _shared_trees(sizes: Sizes, rows: Sequence[int], *, workers: int, budget: int) -> list[Tree]:
    """Returns one tree per prompt, split where it exceeds the budget, then halved until every worker can have one."""
    by_prompt: dict[int, list[int]] = {}
    for row in rows:
        by_prompt.setdefault(row // sizes.group_size, []).append(row)
    trees: list[Tree] = []
    for prompt, members in by_prompt.items():
        tree = Tree(prompt, ())
        for row in members:
            longer = Tree(prompt, (*tree.rows, row))
            if tree.rows and sizes.tokens(longer) > budget:
                trees.append(tree)
                longer = Tree(prompt, (row,))
            tree = longer
        trees.append(tree)
    while len(trees) < workers and any(len(tree.rows) > 1 for tree in trees):
        widest = max(trees, key=lambda tree: len(tree.rows))
        half = len(widest.rows) // 2
        trees.remove(widest)
        trees += [Tree(widest.prompt, widest.rows[:half]), Tree(widest.prompt, widest.rows[half:])]
    return trees


def _balance(sizes: Sizes, trees: Sequence[Tree], workers: int) -> list[list[Tree]]:
    """Gives each tree, longest first, to the worker with the fewest tokens: within 4/3 of the optimum (Graham 1969)."""
    shares: list[list[Tree]] = [[] for _ in range(workers)]
    heap = [(0, worker) for worker in range(workers)]
    for tree in sorted(trees, key=lambda tree: (-sizes.tokens(tree), tree.rows)):
        load, worker = heapq.heappop(heap)
        shares[worker].append(tree)
        heapq.heappush(heap, (load + sizes.tokens(tree), worker))
    return shares


def _pack(sizes: Sizes, trees: Sequence[Tree], *, budget: int, packing: Packing) -> list[MicroBatch]:
    """Puts consecutive trees, longest first, into micro-batches, as many as fit.

    A padded row costs as many tokens as the longest row of its micro-batch.
    """
    packed: list[MicroBatch] = []
    current: list[Tree] = []
    used = 0
    for tree in trees:
        tokens = sizes.tokens(tree)
        # Sorted from long to short, so the first tree of a micro-batch is its longest.
        cost = tokens if packing != "padded" or not current else sizes.tokens(current[0])
        if current and used + cost > budget:
            packed.append(tuple(current))
            current, used, cost = [], 0, tokens
        current.append(tree)
        used += cost
    if current:
        packed.append(tuple(current))
    return packed
