"""Decides which rank computes which rows of a batch, in which micro-batches.

Pure functions: every rank computes the whole plan and takes its own part.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from ray_rl.config.train import Packing


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and some of its completions. Without shared prefixes, one completion, or a group that stays whole."""

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
        """Returns how many tokens a tree has, its prompt counted once."""
        return self.prompts[tree.prompt] + sum(self.completions[row] for row in tree.rows)

    def lengths(self, tree: Tree) -> list[int]:
        """Returns the length of each sequence of a tree, its prompt included."""
        return [self.prompts[tree.prompt] + self.completions[row] for row in tree.rows]

    def work(self, tree: Tree, packing: Packing) -> int:
        """Returns how many tokens of a tree the model processes, without padding."""
        return self.tokens(tree) if packing == "shared_prefix" else sum(self.lengths(tree))


def plan_micro_batches(
    sizes: Sizes, rows: Sequence[int], *, workers: int, budget: int, packing: Packing, whole_groups: bool = False
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
        whole_groups: rows of one prompt stay together always, with any packing, also over the budget, and also if
            workers remain without rows.
    """
    if whole_groups:
        trees = [Tree(prompt, tuple(members)) for prompt, members in _by_prompt(sizes, rows).items()]
    elif packing == "shared_prefix":
        trees = _shared_trees(sizes, rows, workers=workers, budget=budget)
    else:
        trees = _single_trees(sizes, rows)
    shares = _balance(sizes, trees, workers, packing)
    plans = [_pack(sizes, share, budget=budget, packing=packing) for share in shares]
    longest = max(len(plan) for plan in plans)
    return [plan + [()] * (longest - len(plan)) for plan in plans]


def _single_trees(sizes: Sizes, rows: Sequence[int]) -> list[Tree]:
    return [Tree(row // sizes.group_size, (row,)) for row in rows]


def _by_prompt(sizes: Sizes, rows: Sequence[int]) -> dict[int, list[int]]:
    by_prompt: dict[int, list[int]] = {}
    for row in rows:
        by_prompt.setdefault(row // sizes.group_size, []).append(row)
    return by_prompt


def _shared_trees(sizes: Sizes, rows: Sequence[int], *, workers: int, budget: int) -> list[Tree]:
    """Returns one tree per prompt, split where it exceeds the budget, then halved until every worker can have one."""
    trees: list[Tree] = []
    for prompt, members in _by_prompt(sizes, rows).items():
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


def _balance(sizes: Sizes, trees: Sequence[Tree], workers: int, packing: Packing) -> list[list[Tree]]:
    """Gives each tree, longest first, to the worker with the fewest tokens: within 4/3 of the optimum (Graham 1969)."""
    shares: list[list[Tree]] = [[] for _ in range(workers)]
    heap = [(0, worker) for worker in range(workers)]
    for tree in sorted(trees, key=lambda tree: (-sizes.work(tree, packing), tree.rows)):
        load, worker = heapq.heappop(heap)
        shares[worker].append(tree)
        heapq.heappush(heap, (load + sizes.work(tree, packing), worker))
    return shares


def _pack(sizes: Sizes, trees: Sequence[Tree], *, budget: int, packing: Packing) -> list[MicroBatch]:
    """Puts consecutive trees, longest first, into micro-batches, as many as fit.

    A padded row costs as many tokens as the longest row of its micro-batch.
    """
    packed: list[MicroBatch] = []
    current: list[Tree] = []
    work = width = rows = 0
    for tree in trees:
        tokens, widest = sizes.work(tree, packing), max(sizes.lengths(tree))
        padded = max(width, widest) * (rows + len(tree.rows))
        if current and (padded if packing == "padded" else work + tokens) > budget:
            packed.append(tuple(current))
            current, work, width, rows = [], 0, 0, 0
        current.append(tree)
        work, width, rows = work + tokens, max(width, widest), rows + len(tree.rows)
    if current:
        packed.append(tuple(current))
    return packed
