"""The sections `train`, `critic` and `reference`: how models are trained, and the frozen reference."""

from typing import Any, Literal

from pydantic import Field

from ray_rl.config.base import Config


class Schedule(Config):
    """Learning rate at each optimizer step, as a share of its peak."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up the rate is constant, or falls to `minimum` at the last step of the run."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps in which the rate rises linearly from 0."""
    minimum: float = Field(0.0, ge=0, le=1)
    """Share of the peak that linear and cosine reach at the end."""


REDUCE_BUCKET = {"cpu": 1, "gpu": 500_000_000}
"""Elements of the buffer in which gradients are reduced together. On CPU every gradient is reduced where it is, since a
copy of it costs more than a call of gloo. On GPU it is DeepSpeed's default."""

Packing = Literal["padded", "packed", "shared_prefix"]
"""How the sequences of a micro-batch are arranged in rows."""


class Offload(Config):
    """What DeepSpeed keeps in the memory of the CPU instead of the GPU."""

    optimizer: bool = False
    """Keep the optimizer state and run the optimizer step on the CPU (ZeRO 1-3)."""
    parameters: bool = False
    """Keep parameters on the CPU between uses (ZeRO 3)."""


class Trained(Config):
    """Settings of a model that DeepSpeed trains, with one worker per GPU."""

    workers: int = Field(1, ge=1)
    """Number of data-parallel workers."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards: 1 optimizer state, 2 also gradients, 3 also parameters."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak of the learning rate. For algorithms that learn from examples, the default is that of the `kind`."""
    schedule: Schedule = Schedule()
    """How the learning rate changes during the run."""
    betas: tuple[float, float] = (0.9, 0.999)
    """The two decay rates of AdamW."""
    eps: float = Field(1e-8, gt=0)
    """The epsilon of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    """The decoupled weight decay of AdamW."""
    clip_grad_norm: float = Field(1.0, gt=0)
    """Gradients with a larger global norm are scaled down to this norm."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens, padding included, that a worker processes in one forward and backward pass."""
    packing: Literal["auto"] | Packing = "auto"
    """padded: one row per sequence. packed: all sequences follow each other in one row, without padding. shared_prefix:
    like packed, and the prompt of a group is computed once for all its completions. auto: shared_prefix on CPU; on GPU
    packed with flash-attn, else padded."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention of the padded packing. auto: flash-attn if it is installed and there is a GPU, else SDPA."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the gradients of several micro-batches are summed if the model is in bfloat16."""
    offload: Offload = Offload()
    """What is kept in the memory of the CPU, to save memory of the GPU."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed options that have no field here; they override the generated DeepSpeed configuration."""
    timeout_s: float = Field(1800.0, gt=0)
    """Limit for one update, and for every collective in it."""


class TrainConfig(Trained):
    """Training of the policy."""

    frozen_layers: int = Field(0, ge=0)
    """Number of first decoder layers that are not trained; above 0, the embeddings (and a head tied to them) are not
    trained either. Engines get frozen weights only once, not with every publish. `ray-rl plan` counts them as if they
    were trained."""
    logit_chunk_tokens: int | None = Field(None, ge=1)
    """Number of positions whose logits are in memory at the same time; logits are recomputed in the backward pass. None
    is 256 on CPU, and 1024 on GPU, where every chunk reads and writes the gradient of the head's weights."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens when a reward, log-probability, loss or gradient is nan or inf. The step is never applied, and its
    samples are saved. stop ends the run; skip continues with the next step, also for the critic."""
    max_skips: int = Field(3, ge=1)
    """Number of consecutive steps that may be skipped; one more stops the run."""


class CriticConfig(Trained):
    """The value model: a model of its own that predicts one number per token. Only the advantage `gae` needs it."""

    path: str | None = None
    """Model with the initial weights. None uses `model.path`. Of a reward model, the head is used too."""
    learning_rate: float = Field(1e-5, gt=0)
    """Peak of the learning rate. verl: 1e-5; OpenRLHF: 9e-6."""
    value_clip: float | None = Field(0.5, gt=0)
    """Largest change of a value in one update. None: no limit. verl, OpenRLHF: 0.5; TRL: 0.2."""
    warmup_steps: int = Field(0, ge=0)
    """Number of first steps of the run in which only the critic is trained."""


class ReferenceConfig(Config):
    """The frozen reference model of algorithms that compare the policy with it.

    Those that learn from rollouts do if `algorithm.kl.coefficient` is above 0; of the others, dpo, ipo and kto do.
    """

    when: Literal["before", "during"] = "before"
    """When the reference's log-probabilities of examples are computed. before: once, by the policy before its first
    step, so that no reference stays in memory; needs `path` to be None or `model.path`. during: with every batch, by
    workers of their own. Algorithms that learn from rollouts always compute them during training."""
    workers: int = Field(1, ge=1)
    """Number of workers; the rollouts are divided among them."""
    path: str | None = None
    """Model with the weights. None uses `model.path`."""
    zero_stage: Literal[0, 3] = 0
    """0: each worker holds the whole model. 3: the workers hold one sharded copy together."""
    offload: bool = False
    """Keep parameters on the CPU between uses; needs `zero_stage: 3`."""
    timeout_s: float = Field(1800.0, gt=0)
    """Limit for one pass over the batch."""
