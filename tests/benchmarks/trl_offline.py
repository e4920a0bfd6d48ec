"""TRL's DPOTrainer or SFTTrainer on given tokens, in its own process. Prints seconds and losses of steps as JSON."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


class Given:
    """Trains on the tokens of the rows, in their order."""

    train_dataset: Dataset

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class GivenDpo(Given, DPOTrainer):
    """DPO on columns prompt_ids, chosen_ids and rejected_ids."""


class GivenSft(Given, SFTTrainer):
    """Supervised fine-tuning on columns input_ids and labels."""


TRAINERS = {"dpo": (GivenDpo, DPOConfig), "sft": (GivenSft, SFTConfig)}


class StepClock(TrainerCallback):
    """Processor seconds and loss of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._start_s = time.process_time()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seconds.append(time.process_time() - self._start_s)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(TRAINERS))
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rows-per-step", type=int, required=True)
    parser.add_argument("--rows-per-pass", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--save", type=Path, help="folder for the model after the last step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a thread that waits for another counts as working

    trainer_of, config_of = TRAINERS[arguments.kind]
    config = config_of(
        output_dir=str(arguments.output),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.rows_per_pass,
        gradient_accumulation_steps=arguments.rows_per_step // arguments.rows_per_pass,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        bf16=False,
        gradient_checkpointing=arguments.checkpointing,
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    clock = StepClock()
    trainer = trainer_of(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(json.loads(arguments.rows.read_text())),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        callbacks=[clock],
    )
    torch.set_num_threads(1)
    trainer.train()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if arguments.save:
        trainer.save_model(str(arguments.save))
    print(json.dumps({"seconds": clock.seconds, "losses": clock.losses, "peak_gib": peak_gib}))


if __name__ == "__main__":
    main()
