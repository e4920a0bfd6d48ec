"""A vLLM engine in one process, without AsyncLLM: fresh, fast to start, and open to experiments."""

import gc
import os
from typing import Any

BACKEND = "without_repack"


class LoneEngine:
    """Serves a folder; takes weights by the gloo transport, without the remedy for tied heads."""

    def __init__(self, folder: str) -> None:
        os.environ.update(
            CUDA_VISIBLE_DEVICES="",
            OMP_NUM_THREADS="1",
            TORCHDYNAMO_DISABLE="1",
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            VLLM_LOGGING_LEVEL="WARNING",
            VLLM_NO_USAGE_STATS="1",
        )
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

        if BACKEND not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(BACKEND, "tests.system.cluster.without_repack", "WithoutRepack")
        self._llm: Any = None
        self.serve(folder)

    def serve(self, folder: str) -> None:
        """Starts afresh with another folder."""
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        # An engine that ends takes the process group with it: before the next one makes its own.
        self._llm = None
        gc.collect()
        self._llm = LLM(
            folder,
            dtype="float32",
            enforce_eager=True,
            max_model_len=64,
            max_num_seqs=8,
            block_size=32,
            kv_cache_memory_bytes=2**24,
            enable_prefix_caching=False,
            enable_chunked_prefill=False,
            max_num_batched_tokens=512,
            distributed_executor_backend="uni",
            weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        )

    def greedy(self, token_ids: list[int], *, tokens: int) -> list[int]:
        """The likeliest continuation."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=tokens)
        (answer,) = self._llm.generate({"prompt_token_ids": token_ids}, parameters, use_tqdm=False)
        return list(answer.outputs[0].token_ids)

    def score(self, token_ids: list[int]) -> list[float]:
        """As `Engine.score`."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        (answer,) = self._llm.generate({"prompt_token_ids": token_ids}, parameters, use_tqdm=False)
        return [entry[token].logprob for entry, token in zip(answer.prompt_logprobs[1:], token_ids[1:], strict=True)]

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        self._llm.collective_rpc("init_weight_transfer_engine", args=(init_info,))

    def receive(self, update_info: dict[str, Any]) -> None:
        """A whole update but for its version."""
        self._llm.collective_rpc("start_weight_update")
        self._llm.collective_rpc("update_weights", kwargs={"update_info": update_info})
        self._llm.collective_rpc("finish_weight_update")

    def repack_tied_head(self) -> None:
        """The remedy."""
        from ray_rl.weight_sync.receivers.gloo import repack_tied_head

        self._llm.collective_rpc(lambda worker: repack_tied_head(worker.model_runner.model))
