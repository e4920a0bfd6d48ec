"""A vLLM engine: a plain class over `AsyncLLM` that runs with or without Ray."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ray_rl.config.rollout import OnPublish
from ray_rl.data.tokenizer import ModelTokenizer, load_tokenizer
from ray_rl.errors import DataError, EngineError, EngineLost
from ray_rl.imports import quick_imports, quicken_spawned
from ray_rl.rollout.adapter import EngineAdapter
from ray_rl.rollout.forked_core import forked_core
from ray_rl.rollout.memory import SleepLevel
from ray_rl.rollout.receiver import WeightReceiver
from ray_rl.rollout.request import SampleRequest, continuation, joined
from ray_rl.rollout.stopping import ended_by_text, up_to_a_stop
from ray_rl.sizes import GIB
from ray_rl.types import Completion

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

ARRIVAL_POLL_S = 0.005
"""Seconds between two checks whether all requests of a wave have arrived."""
DEATH_POLL_S = 0.2
"""Seconds between two checks whether vLLM's processes are alive: a call to a dead process never ends."""

CPU_BLOCK_TOKENS = 32
CPU_BATCH_TOKENS = 8192
"""Tokens of a KV block (the kernel needs a multiple of 32) and of a forward pass on CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The model and the resources of an engine, for a model of any role."""

    model: str
    """Folder of the model. Its weights are served until the first publish."""
    dtype: Literal["auto", "bfloat16", "float32"]
    context_tokens: int
    """The most tokens of prompt and completion together."""
    on_cpu: bool
    tensor_parallel: int = 1
    max_sequences: int = 256
    """The most sequences in one forward pass."""
    gpu_memory_fraction: float = 0.9
    kv_cache_gib: float = 1.0
    """Size of the KV cache on CPU."""
    enforce_eager: bool | None = None
    """Whether to skip CUDA graphs and torch.compile. None: yes on CPU, no on GPU."""
    trust_remote_code: bool = False
    threads: int = 1
    """Threads of a worker on CPU."""
    transfer_backend: str | None = None
    """Name of vLLM's weight-transfer engine; None for a model whose weights never change."""
    adapter: EngineAdapter | None = None
    """The adapter that every request is computed with; the first publish brings it."""
    on_publish: OnPublish = "keep"
    """What happens to completions in flight when weights are published."""
    sleep_level: SleepLevel | None = None
    """What happens to the weights while the engine sleeps; None for an engine that never sleeps."""
    timeout_s: float = 1800.0
    """How long the requests of a wave may take to arrive."""


class Engine(WeightReceiver):
    """Samples completions and receives new weights. Prompts are token ids; no text is tokenised again."""

    def __init__(self, settings: EngineSettings, *, leave: Callable[[], None] | None = None) -> None:
        """Makes an engine; `start` loads its model.

        Args:
            settings: the model and its resources.
            leave: allows the engine to fork the process that computes, where that is sound, and is called in it first.
                Nothing in this process may have computed with torch before. None: the process is spawned.
        """
        super().__init__(
            None, on_publish=settings.on_publish, sleep_level=settings.sleep_level or 1, adapter=settings.adapter
        )
        self._settings = settings
        self._leave = leave
        self._drops = 0
        self._tokenizer: ModelTokenizer | None = None

    async def start(self) -> None:
        """Loads the model; the engine then serves version 0.

        Raises:
            EngineError: vLLM could not start.
            DataError: vLLM's tokenizer differs from the one that tokenises prompts.
        """
        settings = self._settings
        self._tokenizer = load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        if settings.on_cpu:
            # The trainer uses the same cores in turn: pinned threads would fight for some and leave others idle.
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ["OMP_NUM_THREADS"] = str(settings.threads)
            # The sampler would compile small functions on first use, for half a minute.
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
            # Keeps the worker inside the engine's process. Two processes would poll shared memory for each other, on
            # the same cores that compute.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        with quick_imports():
            from vllm.v1.engine.async_llm import AsyncLLM
        quicken_spawned()  # vLLM's processes import the same modules; `weight_sync.plugin` ends it in them.

        # The folder can be removed after the start: vLLM has read the tokenizer by then.
        with tempfile.TemporaryDirectory(prefix="ray_rl-tokenizer-") as folder:
            tokenizer = self._tokenizer.save_for_engine(Path(folder))
            try:
                with self._starting():
                    self._llm = AsyncLLM.from_engine_args(self._arguments(str(tokenizer)))
                await self._llm.update_weight_version("0")
            except (RuntimeError, ValueError, OSError) as error:
                raise EngineError(f"vLLM could not start with {settings.model}: {error}") from error
        difference = self._tokenizer.difference(self._llm.get_tokenizer())
        if difference is not None:
            self.stop()
            raise DataError(
                f"{settings.model}: vLLM's tokenizer differs from tokenizer.json: {difference} in vLLM; install the "
                "versions of vLLM and transformers that ray_rl was tested with"
            )

    def _starting(self) -> AbstractContextManager[None]:
        """Returns the block in which vLLM starts the process that computes."""
        computes_in_core = self._settings.on_cpu and self._settings.tensor_parallel == 1
        return nullcontext() if self._leave is None or not computes_in_core else forked_core(self._leave)

    def _arguments(self, tokenizer: str) -> Any:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs

        settings, backend = self._settings, self._settings.transfer_backend
        memory: dict[str, Any] = {
            "gpu_memory_utilization": settings.gpu_memory_fraction,
            "enable_sleep_mode": settings.sleep_level is not None,
        }
        if settings.on_cpu:
            # vLLM's CPU build refuses `enable_sleep_mode`; an engine that sleeps there pauses, and keeps its memory.
            memory = {
                "kv_cache_memory_bytes": int(settings.kv_cache_gib * GIB),
                # Blocks shorter than a short prompt, so that the completions of a group share its prefix.
                "block_size": CPU_BLOCK_TOKENS,
                # vLLM 0.32 rewinds the generator of a seeded request whose prompt is computed in chunks, and CPU
                # generators cannot do that.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(CPU_BATCH_TOKENS, settings.context_tokens),
            }
        adapter: Mapping[str, Any] = {} if settings.adapter is None else settings.adapter.arguments
        return AsyncEngineArgs(
            model=settings.model,
            # A copy that names a generic class: for some model families, AutoTokenizer would change the tokenizer.
            tokenizer=tokenizer,
            tokenizer_mode="hf",
            # Only the request says what ends a completion.
            generation_config="vllm",
            dtype=settings.dtype,
            tensor_parallel_size=settings.tensor_parallel,
            distributed_executor_backend="uni" if settings.tensor_parallel == 1 else "mp",
            max_model_len=settings.context_tokens,
            max_num_seqs=settings.max_sequences,
            enforce_eager=settings.on_cpu if settings.enforce_eager is None else settings.enforce_eager,
            # Every request has its own seed.
            seed=0,
            # Log-probabilities of the distribution that is sampled: after temperature and top-p.
            logprobs_mode="processed_logprobs",
            trust_remote_code=settings.trust_remote_code,
            load_format="safetensors",
            weight_transfer_config=None if backend is None else WeightTransferConfig(backend=backend),
            enable_log_requests=False,
            disable_log_stats=True,
            **memory,
            **adapter,
        )

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """Returns the completions, with the log-probability of each token and the version that sampled it.

        Raises:
            EngineLost: the engine died.
            EngineError: its answer lacks a completion, or a log-probability or a version of a token, or the engine
                waits for its first adapter.
        """
        drops = self._drops
        parts = await self._sample(request)
        whole = (self._to_the_end(request, i, part, drops) for i, part in enumerate(parts))
        return list(await asyncio.gather(*whole))  # bound: the driver's call has rollout.timeout_s

    async def _to_the_end(self, request: SampleRequest, sample: int, part: Completion, drops: int) -> Completion:
        """Returns a complete completion with its text. Samples the rest with new weights after each interruption.

        vLLM searches only the tokens of one request for texts that end a completion. A text that begins before an
        interruption is found here.
        """
        tokenizer, texts = self._tokenizer, request.sampling.stop
        assert tokenizer is not None, "started"
        cuts = 0
        while part.finish_reason == "abort" and drops == self._drops:
            cuts += 1
            rest = continuation(request, sample=sample, cut=cuts, sampled=part.token_ids.tolist())
            part = joined(part, *await self._sample(rest))
            part = up_to_a_stop(part, texts, tokenizer.decode)
        return replace(part, text=ended_by_text(tokenizer.decode(part.token_ids.tolist()), texts))

    async def _sample(self, request: SampleRequest) -> list[Completion]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling, adapter = request.sampling, self._adapter_for(f"request {request.id}")
        parameters = SamplingParams(
            n=request.samples,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop) or None,
            stop_token_ids=list(sampling.stop_token_ids),
            include_stop_str_in_output=True,
            # vLLM needs text only to find stop texts in it; the text for rewards is decoded here, from all tokens.
            detokenize=bool(sampling.stop),
            logprobs=0 if sampling.logprobs else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = None
        try:
            prompt = {"prompt_token_ids": list(request.token_ids)}
            async for output in self._llm.generate(prompt, parameters, request.id, lora_request=adapter):
                final = output
        except EngineDeadError as error:
            raise EngineLost(f"the engine died during request {request.id}; see its log") from error
        count = 0 if final is None else len(final.outputs)
        if final is None or count != request.samples:
            raise EngineError(
                f"request {request.id}: vLLM returned {count} of {request.samples} completions; see the engine's log"
            )
        return [_completion(output, request) for output in sorted(final.outputs, key=lambda o: o.index)]

    def _adapter_for(self, request: str) -> LoRARequest | None:
        """Returns the adapter as a request to vLLM names it; None for an engine without one."""
        if self._adapter is None:
            return None
        if not self._has_adapter:
            # vLLM would compute the request with the model alone, even after the adapter has come.
            raise EngineError(f"{request} came before the adapter; publish to this engine first")
        return self._adapter.request

    async def drop(self) -> None:
        """Cancels all requests, because their caller is gone. Generation is paused until the next publish."""
        self._drops += 1
        await self._llm.pause_generation(mode="abort", clear_cache=True)

    async def hold(self) -> None:
        """Accepts requests without starting them, until `release`."""
        await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def release(self, sequences: int) -> None:
        """Starts the held requests once `sequences` sequences have arrived.

        Raises:
            EngineError: they did not arrive within `rollout.timeout_s`.
        """
        limit_s = self._settings.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while self._llm.output_processor.get_num_unfinished_requests() < sequences:
                    await asyncio.sleep(ARRIVAL_POLL_S)
        except TimeoutError:
            arrived = self._llm.output_processor.get_num_unfinished_requests()
            raise EngineError(
                f"only {arrived} of {sequences} sequences arrived within rollout.timeout_s={limit_s:g}; see the logs, "
                "or raise it"
            ) from None
        await self._llm.resume_generation()

    async def score(self, token_ids: list[int]) -> list[float]:
        """Returns the log-probability of each token after the first, given those before it, with the current weights.

        Logits are not divided by a temperature: vLLM does that only for sampled tokens.

        Raises:
            EngineError: vLLM returned nothing, or the engine waits for its first adapter.
        """
        from vllm.sampling_params import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        name, final = f"score-{id(token_ids)}", None
        prompt, adapter = {"prompt_token_ids": token_ids}, self._adapter_for(name)
        async for output in self._llm.generate(prompt, parameters, name, lora_request=adapter):
            final = output
        if final is None:
            raise EngineError("vLLM returned nothing for a scoring request; see the engine's log")
        return [entry[token].logprob for entry, token in zip(final.prompt_logprobs[1:], token_ids[1:], strict=True)]

    async def ping(self) -> None:
        """Waits until every process that computes has answered, which it does between forward passes and updates.

        Raises:
            EngineLost: vLLM's processes have ended.
        """
        answer = asyncio.ensure_future(self._llm.collective_rpc("check_health"))
        try:
            while not answer.done():
                if self._llm.errored:
                    raise EngineLost("vLLM's process ended; see its log")
                await asyncio.wait({answer}, timeout=DEATH_POLL_S)
            answer.result()
        finally:
            answer.cancel()

    def stop(self) -> None:
        """Ends vLLM's processes."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def _completion(output: Any, request: SampleRequest) -> Completion:
    """Converts vLLM's output to a completion; its text is decoded later, as a whole."""
    token_ids = np.asarray(output.token_ids, np.int32)
    entries = output.logprobs or []
    is_whole = len(entries) == len(token_ids) or not request.sampling.logprobs
    versions = np.full(len(token_ids), -1, np.int32)
    for span in output.weight_versions or []:
        versions[span.start : span.end] = int(span.version)
    if not is_whole or (versions < 0).any():
        raise EngineError(
            f"request {request.id}: {len(token_ids)} tokens came with {len(entries)} log-probabilities and "
            f"{int((versions >= 0).sum())} versions; install the version of vLLM that ray_rl was tested with"
        )
    logprobs = np.full(len(token_ids), np.nan, np.float32)
    if request.sampling.logprobs:
        logprobs[:] = [entry[token].logprob for entry, token in zip(entries, output.token_ids, strict=True)]
    return Completion(token_ids, logprobs, versions, output.finish_reason, text="")
