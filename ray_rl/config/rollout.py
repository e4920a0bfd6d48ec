"""The sections `rollout` and `weight_sync`: how completions are sampled, and how engines get new weights."""

from typing import Annotated, Literal

from pydantic import Field

from ray_rl.config.base import Config

OnPublish = Literal["keep", "finish", "abort_and_resume"]


class RolloutConfig(Config):
    """vLLM engines and their sampling settings."""

    engines: int = Field(1, ge=1)
    """Number of vLLM engines. A request goes to the engine with the fewest outstanding tokens."""
    tensor_parallel: int = Field(1, ge=1)
    """Number of GPUs of each engine. An engine never spans nodes."""
    max_tokens: int = Field(512, ge=1)
    """Most tokens of a completion."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the trainer computes log-probabilities at the same temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens with this total probability. Training needs 1."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Strings that end a completion, which then contains the string. A string that is exactly one token (also a special
    one) ends it as that token. Without this setting, a completion ends at the tokenizer's end-of-sequence token, at
    those of generation_config.json, and at the token that the chat template writes after an answer."""
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Tokens that end a completion, in addition to those of the model."""
    max_staleness: int = Field(0, ge=0)
    """Most steps by which a rollout may be older than the trainer's weights. 0: synchronous. 1: engines sample the next
    batch while the trainer trains on the current one."""
    order: Literal["admission", "completion"] = "admission"
    """admission: batches contain groups in the order of the prompts, and wait for slow groups. completion: batches
    contain groups in the order in which they finish; groups older than `max_staleness` are dropped and counted."""
    score_as_finished: bool | None = None
    """Compute log-probabilities and values of each group when it is finished, while engines still sample others: those
    of the reference, and with `max_staleness: 0` also those of the actor and the critic. False: of the whole batch when
    it is complete. None: true on GPU. Never in deterministic runs, since other rows in a forward pass change the last
    bits, nor by models that share GPUs with engines."""
    on_publish: OnPublish = "keep"
    """What happens to completions in flight when weights are published. keep: they pause and continue with the new
    weights; the version of each token is recorded. finish: the publish waits until they end. abort_and_resume: like
    keep, but aborts the requests to free their KV cache, and resubmits prompt and partial completion after the
    update."""
    max_running: int | None = Field(None, ge=1)
    """Most prompts in flight. None: the prompts of `max_staleness` + 1 steps."""
    max_sequences: int = Field(256, ge=1)
    """Most sequences that an engine runs concurrently (vLLM's max_num_seqs)."""
    gpu_memory_fraction: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory for weights and KV cache (vLLM's gpu_memory_utilization)."""
    sleep_level: Literal[1, 2] = 1
    """Where the weights of engines that share GPUs with the actor are while these sleep. 1: in the memory of the host.
    2: nowhere, so that no sample can be drawn before the next publish; saves that memory and a copy. Not with adapters
    or frozen layers, because publishes bring only what training changes."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Size of the KV cache of an engine on CPU."""
    enforce_eager: bool | None = None
    """Run without CUDA graphs and torch.compile. None: true on CPU, false on GPU."""
    timeout_s: float = Field(1800.0, gt=0)
    """Limit for sampling all completions of one prompt."""
    start_timeout_s: float = Field(600.0, gt=0)
    """Limit for starting an engine."""
    heartbeat_s: float = Field(5.0, gt=0)
    """Interval between two checks that an engine still answers."""
    heartbeat_timeout_s: float = Field(120.0, gt=0)
    """An engine that does not answer for this long is killed and restarted. It answers between forward passes, so this
    must be longer than the longest of them. A publish does not count: `weight_sync.timeout_s` limits it."""


class WeightSyncConfig(Config):
    """How new weights reach the engines."""

    backend: Literal["auto", "shared_memory", "gloo", "nccl", "ipc"] = "auto"
    """auto: nccl on GPU, and ipc (memory of the GPU that both sides map) where engines share the actor's GPUs; on CPU
    shared_memory in a local cluster, else gloo (sockets)."""
    bucket_mib: int = Field(64, ge=1)
    """Size of the buckets in which parameters are sent. A decoder layer is split only if it is larger than a bucket."""
    timeout_s: float = Field(300.0, gt=0)
    """Limit for one publish, and for every collective in it."""
    audit_every: int | None = Field(10, ge=1)
    """Number of publishes between two audits of the weights that engines have loaded and of their answers, in addition
    to the proof of every publish; see `ray_rl.weight_sync.audit`. An audit takes as long as SHA-256 over the weights of
    one GPU. None: never."""
    adapter: Literal["auto", "separate", "merged"] = "auto"
    """How a policy with `model.adapter` is published. separate: the adapters, for vLLM to apply. merged: the targeted
    matrices with the adapters added in float32 and rounded once to `model.dtype`. auto: separate on GPU; merged on CPU,
    where vLLM samples three to four times as slowly with adapters."""
