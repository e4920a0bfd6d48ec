"""TRL's GRPOTrainer on the workload of `end_to_end`, in its own process. Prints the seconds of each step as JSON."""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class StepClock(TrainerCallback):
    """Seconds between the ends of optimizer steps; generation is inside, as it is in ours."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._last_s = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now_s = time.perf_counter()
        self.seconds.append(now_s - self._last_s)
        self._last_s = now_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    rng = random.Random(0)
    pairs = [(rng.randint(0, 50), rng.randint(0, 50)) for _ in range(8 * arguments.steps)]
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {a}+{b}? Answer with a number."}], "answer": str(a + b)}
        for a, b in pairs
    ]

    def last_number(completions: list[list[dict[str, str]]], answer: list[str], **_: object) -> list[float]:
        found = [re.findall(r"-?\d+", completion[0]["content"]) for completion in completions]
        return [float(numbers[-1:] == [right]) for numbers, right in zip(found, answer, strict=True)]

    config = GRPOConfig(
        output_dir=str(arguments.output),
        max_steps=arguments.steps,
        num_generations=8,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=8,
        max_completion_length=arguments.max_tokens,
        temperature=1.0,
        learning_rate=arguments.learning_rate,
        beta=0.0,
        bf16=arguments.dtype == "bfloat16",
        gradient_checkpointing=arguments.checkpointing,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    clock = StepClock()
    trainer = GRPOTrainer(
        # Master weights in float32 in either case; bf16 is autocast, as is TRL's habit.
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        reward_funcs=last_number,
        train_dataset=Dataset.from_list(rows),
        args=config,
        callbacks=[clock],
    )
    trainer.train()
    print(json.dumps({"seconds": clock.seconds}))


if __name__ == "__main__":
    main()
