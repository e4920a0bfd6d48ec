"""Log-probabilities of tokens by vLLM: `python -m tests.system.e2e.served FOLDER TOKEN ...`, in its own process."""

import json
import os
import sys


def main(folder: str, token_ids: list[int]) -> None:
    """Prints the log-probability of every token but the first, given those before it, as JSON."""
    os.environ.update(
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",
        TORCHDYNAMO_DISABLE="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="WARNING",
        VLLM_NO_USAGE_STATS="1",
    )
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        max_num_seqs=4,
        block_size=32,
        kv_cache_memory_bytes=2**24,
        enable_chunked_prefill=False,
        max_num_batched_tokens=512,
        distributed_executor_backend="uni",
    )
    parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    (answer,) = llm.generate({"prompt_token_ids": token_ids}, parameters, use_tqdm=False)
    pairs = zip(answer.prompt_logprobs[1:], token_ids[1:], strict=True)
    print("\n" + json.dumps([entry[token].logprob for entry, token in pairs]))


if __name__ == "__main__":
    main(sys.argv[1], [int(token) for token in sys.argv[2:]])
