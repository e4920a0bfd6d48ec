"""Computes the memory of one worker of every role, term by term. docs/planning.md has the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_rl.catalog.shapes import ModelShape
from ray_rl.config import RunConfig
from ray_rl.config.gpus import sends_from_host
from ray_rl.config.rewards import ModelReward
from ray_rl.config.roles import REFERENCE, REWARD
from ray_rl.config.train import REDUCE_BUCKET, ReferenceConfig, TrainConfig, Trained
from ray_rl.planner.activations import WIDE, frozen_activations, logits_bytes, trained_activations
from ray_rl.planner.adapters import Adapters, TrainedModel
from ray_rl.planner.hardware import resolve_dtype
from ray_rl.planner.states import BYTES, MASTER, MOMENTS, step_copy, trained_states
from ray_rl.sizes import GIB, MIB

CONTEXT_BYTES = 3 * GIB // 2
"""CUDA context, cuBLAS workspace and NCCL buffers of a process on a GPU: an allowance, not measured."""

LIVE_PARAMETERS = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered: DeepSpeed's stage3_max_live_parameters."""
SUB_GROUP = 1_000_000_000
"""Elements of the shard that an optimizer step of ZeRO-3 processes together: DeepSpeed's sub_group_size."""

SYNC_BUCKETS = 3
"""Buckets of weight_sync.bucket_mib that exist at the same time: packed, in flight, and kept for reuse."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one worker in bytes."""

    role: str
    held: Mapping[str, float]
    """Memory that is always in use, by term."""
    phases: Mapping[str, Mapping[str, float]]
    """Temporary memory, by phase and term; only one phase runs at a time."""
    offloaded: float = 0.0
    """State that is always in the host's memory instead of a GPU's."""
    loading: float = 0.0
    """Host memory in use until the weights are on the GPU. ZeRO-3 reads mapped files, which take none."""
    parked: float = 0.0
    """State that has its place in the host's memory while roles that share the GPU need it; of all GPUs of an
    engine."""
    sends_from_host: bool = False
    """Whether its weights are in the host's memory during a publish to engines on the same GPU."""

    @property
    def states(self) -> float:
        """Total of the memory that is always in use."""
        return sum(self.held.values())

    @property
    def on_host(self) -> float:
        """State in the host's memory, always or in turns."""
        return self.offloaded + self.parked

    @property
    def peak(self) -> float:
        """Memory that is always in use, plus the largest phase."""
        return self.states + max((sum(terms.values()) for terms in self.phases.values()), default=0.0)

    def terms(self) -> dict[str, float]:
        """Returns every term, including those of all phases."""
        merged = dict(self.held)
        for terms in self.phases.values():
            merged |= terms
        return merged


@dataclass(frozen=True, slots=True)
class Bounds:
    """The sizes on which the memory of a run depends, apart from the shapes of its models."""

    config: RunConfig

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        if self.config.is_offline:
            # A model that scores reads one more token, after the end.
            return self.config.data.max_tokens + self.config.offline.is_scorer
        return self.config.data.max_prompt_tokens + self.config.most_tokens

    @property
    def whole_rows(self) -> int:
        """Sequences that are never in different micro-batches: those of a pair."""
        return self.config.offline.rows_per_example if self.config.is_offline else 1

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return BYTES[self.dtype]

    @property
    def residual(self) -> int:
        """Bytes of an element of the residual: float32 with shared prefixes, the default on CPU."""
        return BYTES["float32"] if self.accelerator == "cpu" else self.element

    @property
    def dtype(self) -> str:
        """The dtype of the weights, resolved."""
        return resolve_dtype(self.config.model.dtype, self.config.cluster.accelerator)

    @property
    def accelerator(self) -> str:
        """`cpu` or `gpu`, where the workers run."""
        return self.config.cluster.accelerator

    @property
    def context(self) -> dict[str, float]:
        """Memory of a process before it loads a model."""
        return {"context": CONTEXT_BYTES} if self.accelerator == "gpu" else {}

    def micro_batch(self, budget: int) -> int:
        """Returns the tokens of a micro-batch: what must stay whole is one of its own if it exceeds the budget."""
        return max(budget, self.whole_rows * self.longest)

    def bucket(self, elements: int, parameters: float, *, largest: float) -> float:
        """Returns the elements of gradients in transit. On CPU: those of the largest gradient, and at most of all."""
        return elements if self.accelerator == "gpu" else min(max(elements, largest), parameters)


def trained_memory(config: RunConfig, role: str, trained: Trained, shape: ModelShape) -> Memory:
    """Returns the memory of a worker of the actor or the critic."""
    bounds, model = Bounds(config), TrainedModel.of(config, trained, shape)
    stage, workers = trained.zero_stage, trained.workers
    zero = _zero_settings(trained)
    states = trained_states(stage=stage, dtype=bounds.dtype, gradient_dtype=trained.gradient_dtype)
    counts = {state.name: model.trained for state in states} | {"weights": model.parameters}
    held = bounds.context | {state.name: state.on_worker(counts[state.name], workers) for state in states}
    if model.in_4_bits:
        held["weights"] = model.weight_bytes(bounds.element)
    offloaded = _offload(held, trained, model.trained, bounds)
    held |= _communication(bounds, trained, model)
    copy = step_copy(
        model.trained,
        stage=stage,
        workers=workers,
        dtype=bounds.dtype,
        gradient_dtype=trained.gradient_dtype,
        sub_group=int(zero.get("sub_group_size", SUB_GROUP)),
    )
    backward = _backward(bounds, trained, model)
    phases = {"backward": backward, "step": {"step": 0.0 if trained.offload.optimizer else copy}}
    if isinstance(trained, TrainConfig) and not config.is_offline:
        phases["sync"] = {"sync": sync_workspace(config, shape, is_sharded=stage == 3)}
    is_away = isinstance(trained, TrainConfig) and sends_from_host(config) and bounds.accelerator == "gpu"
    if is_away:
        held["lent"] = lent_bytes(config, shape)
    loading = 0.0 if stage == 3 else float(bounds.element * model.parameters)
    return Memory(role, held, phases, offloaded, loading, sends_from_host=is_away)


def _backward(bounds: Bounds, trained: Trained, model: TrainedModel) -> dict[str, float]:
    """Returns what a forward and backward pass of a micro-batch takes."""
    config, shape = bounds.config, model.shape
    tokens = bounds.micro_batch(trained.micro_batch_tokens)
    models = config.members if isinstance(trained, TrainConfig) else 1
    activations = trained_activations(
        shape,
        tokens=tokens,
        element=bounds.element,
        residual=bounds.residual,
        checkpointing=trained.gradient_checkpointing,
        adapters=model.adapters,
    )
    if model.in_4_bits:
        # One matrix at a time is computed from its 4 bits.
        activations += bounds.element * max(inputs * outputs for inputs, outputs in shape.linears.values())
    backward = {"activations": models * activations}
    if model.has_logits:
        backward["logits"] = logits_bytes(
            shape,
            tokens=tokens,
            chunk=config.logit_chunk_tokens,
            element=bounds.element,
            accelerator=bounds.accelerator,
            is_trained=model.adapters is None,
        )
    return backward


def _zero_settings(trained: Trained) -> Mapping[str, Any]:
    """Returns the settings of DeepSpeed's ZeRO that the user changes."""
    settings = trained.deepspeed.get("zero_optimization", {})
    return settings if isinstance(settings, dict) else {}


def _offload(held: dict[str, float], trained: Trained, parameters: int, bounds: Bounds) -> float:
    """Removes offloaded state from the terms and returns its bytes in host memory. Does nothing on CPU.

    Args:
        held: the terms.
        trained: the settings.
        parameters: those that are trained.
        bounds: the sizes of the run.
    """
    if bounds.accelerator == "cpu":
        return 0.0
    share, host = parameters / trained.workers, 0.0
    if trained.offload.optimizer:
        held["optimizer"] = 0.0
        # Master weights, moments and the float32 gradient; a staging copy in the dtype of the weights.
        host += (MASTER + MOMENTS + MASTER + bounds.element) * share
        if trained.zero_stage >= 2:
            held["gradients"] = 0.0
    if trained.offload.parameters:
        host += held["weights"]
        held["weights"] = 0.0
    return host


def _communication(bounds: Bounds, trained: Trained, model: TrainedModel) -> dict[str, float]:
    """Returns the buffers that DeepSpeed keeps: gradients in transit, and under ZeRO-3 the gathered weights."""
    zero, parameters = _zero_settings(trained), model.trained
    elements: float
    if trained.zero_stage == 0:
        # One flat copy of all gradients, of at most DeepSpeed's default size: here, and where BF16_Optimizer sums in
        # float32, DeepSpeed reads no setting. A worker alone reduces nothing.
        elements = 0 if trained.workers == 1 else min(REDUCE_BUCKET["gpu"], parameters)
    elif _is_widened(bounds, trained) and trained.zero_stage == 1:
        elements = min(REDUCE_BUCKET["gpu"], parameters)
    else:
        bucket = int(zero.get("reduce_bucket_size", min(REDUCE_BUCKET[bounds.accelerator], parameters)))
        if trained.zero_stage == 1:
            bucket = min(bucket, parameters)
        elements = bounds.bucket(bucket, parameters, largest=model.largest_gradient)
    terms = {"buckets": _bucket_bytes(bounds, trained, elements)}
    if trained.zero_stage == 3:
        live = int(zero.get("stage3_max_live_parameters", LIVE_PARAMETERS))
        terms["gathered"] = gathered_bytes(model.shape, model.parameters, live=live, element=bounds.element)
    return terms


def _is_widened(bounds: Bounds, trained: Trained) -> bool:
    """Returns whether gradients are summed in a wider dtype than they are computed in."""
    return bounds.dtype == "bfloat16" and trained.gradient_dtype == "float32"


def _bucket_bytes(bounds: Bounds, trained: Trained, elements: float) -> float:
    """Returns the bytes of the gradients that are reduced together, with the copies that the reduction makes."""
    element, summed = bounds.element, BYTES[trained.gradient_dtype]
    is_widened = _is_widened(bounds, trained)
    if trained.zero_stage == 1 and is_widened:
        return elements * MASTER
    if trained.zero_stage < 3:
        return elements * element
    # A copy with the slices of each rank next to each other, and the rank's slice in the dtype of the sums.
    copies = 2.0 * element + (summed / trained.workers if is_widened else 0)
    if bounds.accelerator == "cpu" and trained.workers > 1:
        copies += element  # gloo's reduce-scatter is an all-reduce of another copy
    return elements * copies


def gathered_bytes(shape: ModelShape, parameters: int, *, live: int, element: int) -> float:
    """Returns the bytes of weights that ZeRO-3 gathers together: up to its limit, at least the largest module."""
    return element * min(parameters, max(live, shape.largest_module))


def sync_workspace(config: RunConfig, shape: ModelShape, *, is_sharded: bool) -> float:
    """Returns the bytes that rank 0 needs in a publish: the gathered layer, and the buckets in flight.

    With merged adapters these are a layer with adapters, and one matrix and its sum in float32. Weights that are sent
    from the host are copied to the GPU like gathered ones.
    """
    element, adapters = Bounds(config).element, Adapters.of(config, shape)
    is_copied = is_sharded or sends_from_host(config)
    layer = 2.0 * element * max(shape.layer_parameters, shape.embedding_parameters) if is_copied else 0.0
    if adapters is not None and not config.publishes_adapters:
        layer += element * adapters.matrices / shape.layers + 2 * WIDE * adapters.largest_matrix
    return layer + SYNC_BUCKETS * config.weight_sync.bucket_mib * MIB


def lent_bytes(config: RunConfig, shape: ModelShape) -> float:
    """Returns the bytes that a rank lends to engines on its GPU all the time: a bucket, or the largest parameter."""
    return float(max(config.weight_sync.bucket_mib * MIB, Bounds(config).element * shape.embedding_parameters))


def reference_memory(config: RunConfig, reference: ReferenceConfig, shape: ModelShape) -> Memory:
    """Returns the memory of a reference worker: its weights, whole or sharded among the workers, and a forward pass."""
    bounds = Bounds(config)
    weights = float(bounds.element * shape.parameters)
    held: dict[str, float] = dict(bounds.context)
    loading = 0.0 if reference.zero_stage == 3 else weights
    offloaded = 0.0
    if reference.zero_stage == 3:
        weights /= reference.workers
        held["gathered"] = gathered_bytes(shape, shape.parameters, live=LIVE_PARAMETERS, element=bounds.element)
    if reference.offload and bounds.accelerator == "gpu":
        offloaded, weights = weights, 0.0
    held["weights"] = weights
    tokens = bounds.micro_batch(config.train.micro_batch_tokens)
    forward = {
        "activations": frozen_activations(shape, tokens=tokens, element=bounds.element),
        "logits": logits_bytes(
            shape,
            tokens=tokens,
            chunk=config.logit_chunk_tokens,
            element=bounds.element,
            accelerator=bounds.accelerator,
            is_trained=False,
        ),
    }
    return Memory(REFERENCE, held, {"forward": forward}, offloaded, loading)


def reward_memory(config: RunConfig, reward: ModelReward, shapes: list[ModelShape]) -> Memory:
    """Returns the memory of the fullest reward worker: its models, and a forward pass of the largest."""
    bounds = Bounds(config)
    each = -(-len(shapes) // reward.workers)  # models per worker, rounded up
    largest_first = sorted(shapes, key=lambda shape: -shape.scorer_parameters)[:each]
    weights = bounds.element * sum(shape.scorer_parameters for shape in largest_first)
    longest = bounds.longest if reward.max_tokens is None else min(bounds.longest, reward.max_tokens)
    tokens = max(reward.micro_batch_tokens, longest)
    activations = max(frozen_activations(shape, tokens=tokens, element=bounds.element) for shape in largest_first)
    held = bounds.context | {"weights": float(weights)}
    return Memory(REWARD, held, {"forward": {"activations": activations}}, loading=float(weights))
