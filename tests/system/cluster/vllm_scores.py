"""Prints the scores that vLLM gives to token sequences, as JSON: `python -m ... FOLDER '[[1, 2], [3]]'`.

In a process of its own, which ends with everything that vLLM has started.
"""

import json
import os
import sys


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from vllm import LLM, PoolingParams

    folder, sequences = sys.argv[1], json.loads(sys.argv[2])
    engine = LLM(model=folder, runner="pooling", dtype="float32", enforce_eager=True, max_model_len=64)
    outputs = engine.classify(
        [{"prompt_token_ids": tokens} for tokens in sequences],
        pooling_params=PoolingParams(use_activation=False),
        use_tqdm=False,
    )
    print("SCORES", json.dumps([output.outputs.probs[0] for output in outputs]), flush=True)


if __name__ == "__main__":
    main()
