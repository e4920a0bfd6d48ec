"""Counts the parameters of adapters, and which parameters of a model are trained."""

from __future__ import annotations

from dataclasses import dataclass

from ray_rl.catalog.shapes import ModelShape
from ray_rl.config import RunConfig
from ray_rl.config.adapter import Lora
from ray_rl.config.roles import keeps_start
from ray_rl.config.train import TrainConfig, Trained

PACKED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Matrices of a layer that vLLM packs into one."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits: its code, and the scale of 64 weights in 8 bits, of which 256 share a float32."""
ROW_PARALLEL = ("o_proj", "down_proj")
"""Matrices of which each GPU of an engine has a part of the inputs; of the others it has a part of the outputs."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters of a model of a known shape."""

    shape: ModelShape
    lora: Lora
    targets: tuple[str, ...]
    """The matrices of a layer that have adapters."""

    @classmethod
    def of(cls, config: RunConfig, shape: ModelShape) -> Adapters | None:
        """Returns the adapters of a run on a model of this shape; None if all weights are trained."""
        adapter = config.model.adapter
        if adapter is None:
            return None
        if adapter.targets == "all-linear":
            return cls(shape, adapter, tuple(shape.linears))
        return cls(shape, adapter, tuple(name for name in shape.linears if name in adapter.targets))

    @property
    def parameters(self) -> int:
        """Parameters of A and B: rank * (inputs + outputs) for each matrix of each layer."""
        return self.shape.layers * self.lora.rank * sum(sum(self.shape.linears[name]) for name in self.targets)

    @property
    def matrices(self) -> int:
        """Parameters of the matrices that have adapters."""
        sizes = [self.shape.linears[name] for name in self.targets]
        return self.shape.layers * sum(inputs * outputs for inputs, outputs in sizes)

    @property
    def largest_matrix(self) -> int:
        """Parameters of the largest matrix that has an adapter."""
        sizes = [self.shape.linears[name] for name in self.targets]
        return max((inputs * outputs for inputs, outputs in sizes), default=0)

    @property
    def largest_part(self) -> int:
        """Parameters of the largest A or B."""
        return self.lora.rank * max((max(self.shape.linears[name]) for name in self.targets), default=0)

    def room(self, tensor_parallel: int) -> float:
        """Returns the parameters for which each GPU of an engine has room: A and B at a rank that vLLM knows.

        It splits the outputs of B, or the inputs of A, among the GPUs, and nothing else. Matrices that it packs into
        one have room together.
        """
        packed = {name for names in PACKED if set(names) & set(self.targets) for name in names}
        widths = 0.0
        for name, (inputs, outputs) in self.shape.linears.items():
            split, whole = (inputs, outputs) if name in ROW_PARALLEL else (outputs, inputs)
            widths += (whole + split / tensor_parallel) * (name in packed)
        return self.shape.layers * self.lora.engine_rank * widths


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The parameters of a model under training, or of all models of an ensemble."""

    shape: ModelShape
    parameters: int
    """All, with those of adapters, and of a frozen copy of them."""
    trained: int
    """Those that are trained."""
    has_logits: bool
    """Whether it has the head that predicts tokens."""
    adapters: Adapters | None
    models: int = 1
    """Models of an ensemble."""

    @classmethod
    def of(cls, config: RunConfig, settings: Trained, shape: ModelShape) -> TrainedModel:
        """Returns the model that the actor or the critic trains."""
        is_actor = isinstance(settings, TrainConfig)
        is_scorer = not is_actor or (config.is_offline and config.offline.is_scorer)
        models = config.members if is_actor else 1
        whole = models * shape.scorer_parameters if is_scorer else shape.parameters
        adapters = Adapters.of(config, shape)
        if adapters is None:
            return cls(shape, whole, whole, not is_scorer, None)
        added = models * adapters.parameters
        # The head that predicts one number is new, so that it is trained whole.
        heads = models * shape.hidden if is_scorer else 0
        copy = added if is_actor and keeps_start(config) else 0
        return cls(shape, whole + added + copy, added + heads, not is_scorer, adapters, models)

    @property
    def frozen(self) -> int:
        """Parameters that need no gradient."""
        return self.parameters - self.trained

    @property
    def in_4_bits(self) -> int:
        """Parameters in 4 bits: the matrices of all layers if the adapters quantise them."""
        if self.adapters is None or self.adapters.lora.quantise is None:
            return 0
        matrices = sum(inputs * outputs for inputs, outputs in self.shape.linears.values())
        return self.models * self.shape.layers * matrices

    def weight_bytes(self, element: int) -> float:
        """Returns the bytes of all weights; `element` is that of a weight that is not in 4 bits."""
        return element * (self.parameters - self.in_4_bits) + NF4_BYTES * self.in_4_bits

    @property
    def largest_gradient(self) -> int:
        """Elements of the largest gradient of a matrix."""
        return self.shape.embedding_parameters if self.adapters is None else self.adapters.largest_part
