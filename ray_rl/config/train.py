"""How the policy and the critic are updated, and the frozen models beside them."""

from typing import Any, Literal

from pydantic import Field

from ray_rl.config.base import Config


class Schedule(Config):
    """Learning rate as a share of its peak, by optimizer step."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: flat, or down to `minimum` at the last step of the run."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of a linear rise from 0."""
    minimum: float = Field(0.0, ge=0, le=1)
    """Share of the peak at the end of linear and cosine."""


Packing = Literal["padded", "packed", "shared_prefix"]
"""How the sequences of a micro-batch become rows."""


class Offload(Config):
    """DeepSpeed's CPU offload."""

    optimizer: bool = False
    """Optimizer state and step on the CPU (ZeRO 1-3)."""
    parameters: bool = False
    """Parameters on the CPU between uses (ZeRO 3)."""


class Trained(Config):
    """A model that DeepSpeed trains, one worker a GPU."""

    workers: int = Field(1, ge=1)
    """Data-parallel workers."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards: 1 optimizer state, 2 also gradients, 3 also parameters."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak of the schedule."""
    schedule: Schedule = Schedule()
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW."""
    eps: float = Field(1e-8, gt=0)
    """AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW, decoupled."""
    clip_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens (padding included) of one forward and backward pass on one worker."""
    packing: Literal["auto"] | Packing = "auto"
    """padded: one row a sequence. packed: sequences one after the other in one row, without padding. shared_prefix:
    packed, and the prompt of a group is computed once for all its completions. auto: shared_prefix on CPU; on GPU
    packed with flash-attn, else padded."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """For padded packing. auto: flash-attn where it is installed and there is a GPU, else SDPA."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which gradients of several micro-batches are summed, under bfloat16."""
    offload: Offload = Offload()
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Merged over the DeepSpeed configuration that is generated, for what has no field here."""
    timeout_s: float = Field(1800.0, gt=0)
    """Limit of one update, and of every collective in it."""


class TrainConfig(Trained):
    """The actor."""

    frozen_layers: int = Field(0, ge=0)
    """Decoder layers from the first on that are not trained, and with them the embeddings (and a head tied to those).
    Engines get them once and not with every publish. `ray-rl plan` counts them as if they were trained."""
    logit_chunk_tokens: int | None = Field(None, ge=1)
    """Positions whose logits exist at once; the others are recomputed in the backward pass. None: 256 on CPU; 1024 on
    GPU, where every chunk reads and writes the gradient of the head's weights."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """nan or inf in a reward, log-probability, loss or gradient is never applied, and the samples are saved. stop: the
    run ends. skip: it goes on with the next step, the critic's too."""
    max_skips: int = Field(3, ge=1)
    """Steps in a row that may be skipped; one more stops the run."""


class CriticConfig(Trained):
    """The value model: a backbone of its own with a head of one number. Needed by `gae`, and by nothing else."""

    path: str | None = None
    """Where its weights come from. None: the model that training starts from. A reward model gives its head too."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak of the schedule. verl: 1e-5; OpenRLHF: 9e-6."""
    value_clip: float | None = Field(0.5, gt=0)
    """How far a value may move from what it was before the update. verl, OpenRLHF: 0.5; TRL: 0.2; None: no bound."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of the run in which only the critic is trained."""


class ReferenceConfig(Config):
    """The frozen reference, loaded only when algorithm.kl.coefficient > 0."""

    workers: int = Field(1, ge=1)
    """Rollouts are split over them."""
    path: str | None = None
    """None: the model that training starts from."""
    zero_stage: Literal[0, 3] = 0
    """0: each worker has the whole model. 3: the workers share one."""
    offload: bool = False
    """Parameters on the CPU between uses; zero_stage 3."""
    timeout_s: float = Field(1800.0, gt=0)
    """Limit of one pass over the batch."""
