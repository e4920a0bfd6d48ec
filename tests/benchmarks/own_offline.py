"""This project's DPO or SFT on given examples, in its own process. Prints what `trl_offline` prints as JSON.

A step of DPO includes the log-probabilities of the reference, as TRL's does; a run of this project computes them once.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ray_rl.app.models_offline import build_learner
from ray_rl.batching.pack_examples import pack_examples
from ray_rl.cluster.environment import keep_freed_memory
from ray_rl.config import RunConfig
from ray_rl.metrics.metric import reduce_metrics
from ray_rl.training.member import Member
from ray_rl.training.trainer import Trainer
from ray_rl.types import Answer, Example, OfflineBatch


def settings(kind: str, model: str, *, steps: int, learning_rate: float) -> RunConfig:
    """The configuration of a run; all that the trainer reads is what TRL is given too, or a default."""
    return RunConfig.model_validate(
        {
            "run": {"name": "bench", "steps": steps},
            "model": {"path": model, "dtype": "float32"},
            "data": {"kind": "jsonl", "path": "unused.jsonl"},
            "algorithm": {"kind": kind},
            "train": {"learning_rate": learning_rate, "zero_stage": 0},
            "cluster": {"accelerator": "cpu"},
        }
    )


def example(row: Mapping[str, Sequence[int]]) -> Example:
    """A row of `trl_offline` as an example: every token of an answer is trained on."""
    if "labels" in row:
        start = next(at for at, label in enumerate(row["labels"]) if label != -100)
        return Example(id="", prompt_ids=tuple(row["input_ids"][:start]), answers=(answer(row["input_ids"][start:]),))
    answers = (answer(row["chosen_ids"]), answer(row["rejected_ids"]))
    return Example(id="", prompt_ids=tuple(row["prompt_ids"]), answers=answers)


def answer(tokens: Sequence[int]) -> Answer:
    """An answer that is trained on."""
    return Answer(np.array(tokens, np.int32), np.ones(len(tokens), np.bool_))


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def with_reference(trainer: Trainer[OfflineBatch], batch: OfflineBatch) -> OfflineBatch:
    """Adds what the untrained model says; the step is timed with it."""
    scores = trainer.scores(batch)
    reference_R = np.zeros(batch.rows, np.float64)
    reference_R[scores.rows] = scores.values_MT.astype(np.float64).sum(1)
    return replace(batch, reference_R=reference_R)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["dpo", "sft"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rows-per-step", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--save", type=Path, help="folder for the model after the last step")
    arguments = parser.parse_args()
    keep_freed_memory()  # as every worker does
    torch.set_num_threads(1)
    examples = [example(row) for row in json.loads(arguments.rows.read_text())]
    config = settings(arguments.kind, arguments.model, steps=arguments.steps, learning_rate=arguments.learning_rate)
    trainer = build_learner(config, [arguments.model], Member(0, 1, "127.0.0.1", free_port()))
    size, seconds, losses = arguments.rows_per_step, [], []
    batches = [pack_examples(examples[i * size : (i + 1) * size], loss_at="tokens") for i in range(arguments.steps)]
    references = []
    if arguments.kind == "dpo":
        # All of them before the first update: the reference is the model as it was.
        for index, batch in enumerate(batches):
            start_s = time.process_time()
            batches[index] = with_reference(trainer, batch)
            references.append(time.process_time() - start_s)
    for index, batch in enumerate(batches):
        start_s = time.process_time()
        metrics = reduce_metrics(trainer.update(batch))
        seconds.append(time.process_time() - start_s + (references[index] if references else 0.0))
        losses.append(metrics[f"{arguments.kind}/loss"])
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if arguments.save:
        trainer.export(str(arguments.save), arguments.steps)
    found = {"seconds": seconds, "losses": losses, "peak_gib": peak_gib, "reference_seconds": references}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
