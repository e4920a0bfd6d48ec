"""How completions are sampled."""

from typing import Annotated, Literal

from pydantic import Field

from ray_rl.config.base import Config

OnPublish = Literal["keep", "finish", "abort_and_resume"]


class RolloutConfig(Config):
    """vLLM engines and their sampling settings."""

    engines: int = Field(1, ge=1)
    """vLLM engines; requests go to the one with the fewest outstanding tokens."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs of one engine. An engine never crosses a node."""
    max_tokens: int = Field(512, ge=1)
    """Limit of a completion."""
    temperature: float = Field(1.0, gt=0)
    """The trainer computes log-probabilities at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Strings that end a completion, which includes them. One that is a token, special ones too, ends it as that token.
    Without any, these end it: the tokenizer's end-of-sequence token, those of generation_config.json, and with a chat
    template the token that it writes behind an answer."""
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Tokens that end a completion, besides those of the model."""
    max_staleness: int = Field(0, ge=0)
    """Steps that a rollout may be older than the trainer. 0: synchronous. 1: engines sample the next batch while the
    trainer trains on this one."""
    order: Literal["admission", "completion"] = "admission"
    """admission: batches come in the order of the prompts, and stragglers are waited for. completion: as groups finish,
    and what has become older than max_staleness is dropped and counted."""
    on_publish: OnPublish = "keep"
    """What becomes of completions under way when weights are published. keep: they stop where they are and go on with
    the new weights, and every token knows its version. finish: the publish waits for them. abort_and_resume: as keep,
    but the engine drops them and is asked for the rest behind what they had, so that they hold no memory meanwhile."""
    max_running: int | None = Field(None, ge=1)
    """Prompts under way at once. None: those of max_staleness + 1 steps."""
    max_sequences: int = Field(256, ge=1)
    """Sequences that one engine runs at once (vLLM max_num_seqs)."""
    gpu_memory_fraction: float = Field(0.9, gt=0, le=1)
    """Of a GPU, for weights and KV cache (vLLM gpu_memory_utilization)."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache of an engine on CPU."""
    enforce_eager: bool | None = None
    """Skip CUDA graphs and torch.compile. None: yes on CPU, no on GPU."""
    timeout_s: float = Field(1800.0, gt=0)
    """Limit for all completions of one prompt."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Limit for loading an engine."""
    heartbeat_s: float = Field(5.0, gt=0)
    """An engine is asked this often whether it still computes."""
    heartbeat_timeout_s: float = Field(120.0, gt=0)
    """An engine that does not answer for so long is ended and restarted. Longer than its longest forward pass, between
    which it answers; a publish does not count, as weight_sync.timeout_s bounds it."""


class WeightSyncConfig(Config):
    """How new weights reach the engines."""

    backend: Literal["auto", "shared_memory", "gloo", "nccl"] = "auto"
    """auto: nccl on GPU; on CPU shared_memory in a cluster that is started here, gloo (sockets) in any other."""
    bucket_mib: int = Field(64, ge=1)
    """Parameters are packed into buckets of this size; a decoder layer is not split unless it alone is larger."""
    timeout_s: float = Field(300.0, gt=0)
    """Limit of one publish, and of every collective in it."""
    audit_every: int | None = Field(10, ge=1)
    """Every so many versions, look at what engines have loaded and how they answer, beyond the proof that every publish
    carries: see `ray_rl.weight_sync.audit`. Takes as long as SHA-256 over the weights of one GPU. None: never."""
