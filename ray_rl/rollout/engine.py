"""A vLLM engine: a plain class over `AsyncLLM` that runs with or without Ray."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_rl.config import RunConfig
from ray_rl.data.chat import ChatTokenizer, Ends
from ray_rl.errors import DataError, EngineError, EngineLost
from ray_rl.rollout.receiver import WeightReceiver
from ray_rl.rollout.request import SampleRequest, continuation, joined
from ray_rl.rollout.stopping import ended_by_text, up_to_a_stop
from ray_rl.types import Completion

GIB = 2**30

ARRIVAL_POLL_S = 0.005
"""Between looks whether all of a wave have arrived."""
DEATH_POLL_S = 0.2
"""Between looks whether vLLM's processes are alive: a call that they were to answer ends in no other way."""

CPU_BLOCK_TOKENS = 32
CPU_BATCH_TOKENS = 8192
"""Of a KV block (the kernel takes multiples of 32) and of a forward pass on CPU."""


class Engine:
    """Samples completions and takes new weights. Prompts go in as token ids; nothing is re-tokenised from text."""

    def __init__(self, config: RunConfig, folder: str, *, transfer_backend: str, threads: int = 1) -> None:
        """Remembers what to start.

        Args:
            config: of the run, with `model.dtype` resolved.
            folder: of the model, whose weights are served until the first publish.
            transfer_backend: name of vLLM's weight-transfer engine.
            threads: of a worker on CPU.
        """
        self._config = config
        self._folder = folder
        self._transfer_backend = transfer_backend
        self._threads = threads
        self._llm: Any = None
        self._drops = 0
        self._tokenizer: ChatTokenizer | None = None
        self._ends = Ends((), ())

    async def start(self) -> None:
        """Loads the model; the engine then serves version 0.

        Raises:
            EngineError: vLLM could not start.
            DataError: vLLM reads the tokenizer otherwise than prompts were made with it.
            ConfigError: `rollout.stop` or `rollout.stop_token_ids` has what cannot end a completion.
        """
        self._tokenizer = ChatTokenizer.of_run(self._config, self._folder)
        self._ends = self._tokenizer.ends_of(self._config)
        on_cpu = self._config.cluster.accelerator == "cpu"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        if on_cpu:
            # The trainer uses the same cores in turn: pinned threads would fight for some and leave others idle.
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            os.environ["OMP_NUM_THREADS"] = str(self._threads)
            # The sampler would compile small functions on first use, for half a minute.
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
            # Lets the CPU platform keep one worker inside the engine's process. In two processes, each polls shared
            # memory for the other on the very cores that compute.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm.v1.engine.async_llm import AsyncLLM

        # vLLM has read the tokenizer once it has started.
        with tempfile.TemporaryDirectory(prefix="ray_rl-tokenizer-") as folder:
            tokenizer = self._tokenizer.model_tokenizer.save_for_engine(Path(folder))
            try:
                self._llm = AsyncLLM.from_engine_args(self._arguments(str(tokenizer), on_cpu=on_cpu))
                await self._llm.update_weight_version("0")
            except (RuntimeError, ValueError, OSError) as error:
                raise EngineError(f"vLLM could not start with {self._folder}: {error}") from error
        difference = self._tokenizer.model_tokenizer.difference(self._llm.get_tokenizer())
        if difference is not None:
            self.stop()
            raise DataError(f"model.path={self._folder}: the engine reads the tokenizer otherwise: {difference}")

    def _arguments(self, tokenizer: str, *, on_cpu: bool) -> Any:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs

        config, rollout = self._config, self._config.rollout
        length = config.data.max_prompt_tokens + rollout.max_tokens
        eager = on_cpu if rollout.enforce_eager is None else rollout.enforce_eager
        memory: dict[str, Any] = {"gpu_memory_utilization": rollout.gpu_memory_fraction}
        if on_cpu:
            memory = {
                "kv_cache_memory_bytes": int(rollout.kv_cache_gib * GIB),
                # Blocks shorter than a short prompt, so that the completions of a group share its prefix.
                "block_size": CPU_BLOCK_TOKENS,
                # vLLM 0.32 winds back the generator of a seeded request whose prompt is computed in chunks, which
                # CPU generators cannot do.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(CPU_BATCH_TOKENS, length),
            }
        return AsyncEngineArgs(
            model=self._folder,
            # Of a class that nothing replaces: AutoTokenizer changes tokenizers by the family of their model.
            tokenizer=tokenizer,
            tokenizer_mode="hf",
            # What ends a completion is said with every request, and by nothing else.
            generation_config="vllm",
            dtype=config.model.dtype,
            tensor_parallel_size=rollout.tensor_parallel,
            distributed_executor_backend="uni" if rollout.tensor_parallel == 1 else "mp",
            max_model_len=length,
            max_num_seqs=rollout.max_sequences,
            enforce_eager=eager,
            seed=config.run.seed,
            # The distribution that was sampled from: after temperature, and after top-p where there is one.
            logprobs_mode="processed_logprobs",
            trust_remote_code=config.model.trust_remote_code,
            load_format="safetensors",
            weight_transfer_config=WeightTransferConfig(backend=self._transfer_backend),
            enable_log_requests=False,
            disable_log_stats=True,
            **memory,
        )

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """G completions with their log-probabilities and the version that sampled each token.

        Raises:
            EngineError: the engine died, or its answer has not a log-probability and a version for every token.
        """
        drops = self._drops
        limit = self._config.rollout.max_tokens
        most = limit if request.max_tokens is None else min(limit, request.max_tokens)
        parts = await self._sample(request, max_tokens=most)
        whole = (self._to_the_end(request, i, part, drops, most) for i, part in enumerate(parts))
        return list(await asyncio.gather(*whole))  # bound: the driver's call has rollout.timeout_s

    async def _to_the_end(
        self, request: SampleRequest, sample: int, part: Completion, drops: int, most: int
    ) -> Completion:
        """A completion with its text, sampled on wherever a publish cut it short, each time under the weights of then.

        vLLM looks for the texts that end a completion in what it samples itself: one that began before a cut is found
        here.
        """
        tokenizer, texts = self._tokenizer, self._ends.texts
        assert tokenizer is not None, "started"
        cuts = 0
        while part.finish_reason == "abort" and drops == self._drops:
            cuts += 1
            rest = continuation(request, sample=sample, cut=cuts, sampled=part.token_ids.tolist())
            left = most - len(part.token_ids)
            part = joined(part, *await self._sample(rest, max_tokens=left))
            part = up_to_a_stop(part, texts, tokenizer.decode)
        return replace(part, text=ended_by_text(tokenizer.decode(part.token_ids.tolist()), texts))

    async def _sample(self, request: SampleRequest, *, max_tokens: int) -> list[Completion]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError

        rollout = self._config.rollout
        parameters = SamplingParams(
            n=request.samples,
            seed=request.seed,
            max_tokens=max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            stop=list(self._ends.texts) or None,
            stop_token_ids=list(self._ends.token_ids),
            include_stop_str_in_output=True,
            # Text is needed to look for texts in it; what rewards read is decoded here, from all tokens.
            detokenize=bool(self._ends.texts),
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = None
        try:
            prompt = {"prompt_token_ids": list(request.token_ids)}
            async for output in self._llm.generate(prompt, parameters, request.id):
                final = output
        except EngineDeadError as error:
            raise EngineLost(f"the engine died during request {request.id}; see its log") from error
        if final is None or len(final.outputs) != request.samples:
            raise EngineError(f"request {request.id} asked for {request.samples} completions and got {final}")
        return [_completion(output, request.id) for output in sorted(final.outputs, key=lambda o: o.index)]

    async def drop(self) -> None:
        """Ends all requests, as nobody waits for them any more; generation is paused until the next publish."""
        self._drops += 1
        await self._llm.pause_generation(mode="abort", clear_cache=True)

    async def hold(self) -> None:
        """Takes requests, and does not begin with them until `release`."""
        await self._llm.pause_generation(mode="keep", clear_cache=False)

    async def release(self, sequences: int) -> None:
        """Begins once so many sequences have been asked for.

        Raises:
            EngineError: they were not within `rollout.timeout_s`.
        """
        limit_s = self._config.rollout.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while self._llm.output_processor.get_num_unfinished_requests() < sequences:
                    await asyncio.sleep(ARRIVAL_POLL_S)
        except TimeoutError:
            raise EngineError(f"{sequences} sequences did not arrive within rollout.timeout_s={limit_s:g}") from None
        await self._llm.resume_generation()

    @property
    def receiver(self) -> WeightReceiver:
        """The receiving end of a publish. The engine must have been started."""
        return WeightReceiver(self._llm, on_publish=self._config.rollout.on_publish)

    async def score(self, token_ids: list[int]) -> list[float]:
        """Log-probability of every token but the first, given those before it, under the weights served now.

        Of the model itself: vLLM does not divide by the temperature here.
        """
        from vllm.sampling_params import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        final = None
        async for output in self._llm.generate({"prompt_token_ids": token_ids}, parameters, f"score-{id(token_ids)}"):
            final = output
        if final is None:
            raise EngineError("the engine gave no answer to a scoring request")
        return [entry[token].logprob for entry, token in zip(final.prompt_logprobs[1:], token_ids[1:], strict=True)]

    async def ping(self) -> None:
        """Returns when every process that computes has answered: between two forward passes, or after an update.

        Raises:
            EngineLost: vLLM's processes are gone.
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


def _completion(output: Any, request_id: str) -> Completion:
    """The completion, whose text is decoded once it is whole."""
    token_ids = np.asarray(output.token_ids, np.int32)
    entries = output.logprobs or []
    versions = np.full(len(token_ids), -1, np.int32)
    for span in output.weight_versions or []:
        versions[span.start : span.end] = int(span.version)
    if len(entries) != len(token_ids) or (versions < 0).any():
        raise EngineError(
            f"request {request_id}: {len(token_ids)} tokens came with {len(entries)} log-probabilities and "
            f"{int((versions >= 0).sum())} versions; this vLLM is not one that ray_rl was tested with"
        )
    logprobs = [entry[token].logprob for entry, token in zip(entries, output.token_ids, strict=True)]
    return Completion(token_ids, np.asarray(logprobs, np.float32), versions, output.finish_reason, text="")
