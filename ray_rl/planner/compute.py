"""Estimates the seconds of passes over a batch: training, and passes without gradients.

A forward pass takes 2 N operations per token (arXiv:2001.08361, section 2.1) and those of the attention; a backward
pass twice as many, and a recomputation once more. Weights that are frozen need no gradient, so that their backward pass
takes as much as the forward pass. Small micro-batches are slower: each layer takes a least time, gathered weights of
ZeRO-3 are sent again for each, and gradients are reduced for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from ray_rl.catalog.shapes import ModelShape
from ray_rl.config.train import Trained
from ray_rl.planner.layout import Place
from ray_rl.planner.rates import Rates

EXPOSED = 0.5
"""Share of the exchange of weights and gradients that is not hidden behind computation."""
OPTIMIZER_BYTES = 40
"""Bytes per parameter that an optimizer step reads and writes: gradient, master weight, two moments, and the weight."""
HOST_MEMORY_BYTES_PER_S = 200e9
"""Memory bandwidth of a node, which the optimizer steps of all its workers share if they are offloaded."""


@dataclass(frozen=True, slots=True)
class Load:
    """The sequences of a step."""

    sequences: float
    tokens: float
    squares: float
    """Sum of the squared lengths, with which the attention grows."""

    def operations(self, parameters: float, shape: ModelShape) -> float:
        """Returns the operations of a forward pass: 2 N per token, and 2 L q T^2 of the causal attention."""
        return 2 * parameters * self.tokens + 2 * shape.layers * shape.query * self.squares


@dataclass(frozen=True, slots=True)
class Team:
    """The workers of a role, and how fast they exchange data."""

    workers: int
    bus: float
    """Bytes per second that each worker receives in a collective."""
    rates: Rates
    on_node: int
    """Workers of the fullest node."""

    @classmethod
    def at(cls, places: Sequence[Place], rates: Rates) -> Team:
        """Returns the team at these places: between nodes, all ports of a node work together."""
        nodes = [place.node for place in places]
        on_node = max(nodes.count(node) for node in set(nodes))
        bus = rates.link if on_node == len(nodes) else min(rates.link, rates.network * on_node)
        return cls(len(places), bus, rates, on_node)

    def exchanged_s(self, size: float) -> float:
        """Returns the seconds in which every worker receives its missing part of so many bytes."""
        return size * (1 - 1 / self.workers) / self.bus

    def micro_batches(self, load: Load, budget: float) -> float:
        """Returns the micro-batches of a worker: rows of mean length that fill the budget, except for half a row."""
        row = load.tokens / load.sequences
        rows = max(1.0, budget / row - 0.5)
        return max(1.0, ceil(load.sequences / self.workers) / rows)


def training_s(
    team: Team,
    trained: Trained,
    shape: ModelShape,
    parameters: float,
    load: Load,
    *,
    updates: int,
    epochs: int,
    element: int,
    frozen: float = 0.0,
) -> float:
    """Returns the seconds in which a model is trained on a batch.

    Args:
        team: its workers.
        trained: its settings.
        shape: its shape.
        parameters: its parameters, or those of all models of an ensemble.
        load: the sequences of the batch.
        updates: optimizer steps.
        epochs: passes over the batch.
        element: bytes of a weight.
        frozen: those of its parameters that are not trained.
    """
    passes = 4 if trained.gradient_checkpointing else 3
    rates, weights, gradients = team.rates, element * parameters, element * (parameters - frozen)
    part = Load(*(epochs * value / updates for value in (load.sequences, load.tokens, load.squares)))
    micro = team.micro_batches(part, trained.micro_batch_tokens)
    operations = passes * part.operations(parameters, shape) - 2 * frozen * part.tokens
    compute = operations / team.workers / rates.training + micro * passes * shape.layers * rates.launch_s
    exchanged = micro * team.exchanged_s(gradients) if trained.zero_stage >= 2 else 2 * team.exchanged_s(gradients)
    if trained.zero_stage == 3:
        exchanged += 2 * micro * team.exchanged_s(weights)
        if trained.offload.parameters:
            exchanged += 2 * micro * weights / team.workers / rates.host
    return updates * (compute + EXPOSED * exchanged + _optimizer_s(team, trained, parameters - frozen, gradients))


def _optimizer_s(team: Team, trained: Trained, parameters: float, weights: float) -> float:
    """Returns the seconds of an optimizer step after the last micro-batch, for those that are trained."""
    shard = parameters / team.workers if trained.zero_stage else parameters
    gathered = team.exchanged_s(weights) if trained.zero_stage in (1, 2) else 0.0
    if not trained.offload.optimizer:
        return OPTIMIZER_BYTES * shard / team.rates.memory + gathered
    moved = 6 * shard / team.rates.host  # the float32 gradient, and the weight in 16 bits
    return moved + OPTIMIZER_BYTES * shard * team.on_node / HOST_MEMORY_BYTES_PER_S + gathered


def scoring_s(
    team: Team,
    shape: ModelShape,
    parameters: float,
    load: Load,
    *,
    budget: float,
    gathered: float = 0.0,
    offloaded: float = 0.0,
) -> float:
    """Returns the seconds of a pass without gradients.

    Args:
        team: the workers.
        shape: the shape of the model.
        parameters: its parameters, or those of all models that score.
        load: the sequences.
        budget: tokens of a micro-batch.
        gathered: bytes of weights that the workers exchange for each micro-batch.
        offloaded: bytes that each worker copies from the host for each micro-batch.
    """
    micro = team.micro_batches(load, budget)
    compute = load.operations(parameters, shape) / team.workers / team.rates.scoring
    compute += micro * shape.layers * team.rates.launch_s
    return compute + EXPOSED * micro * (team.exchanged_s(gathered) + offloaded / team.rates.host)
