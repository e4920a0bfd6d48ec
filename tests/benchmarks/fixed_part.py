"""Processor time of the part of an update that does not depend on its tokens, by ZeRO stage and dtype.

An update with two loss tokens reads every weight and writes every gradient once; the rest of its time is the norm, the
clipping, AdamW, and what DeepSpeed copies. The floor is the same in bare torch: forward and backward pass of the same
tokens, norm, and fused AdamW on float32. All seconds are those of the processor, of all workers together, with one
thread each; the least of some updates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table

from ray_rl.app.models_offline import offline_parts
from ray_rl.batching.pack_examples import pack_examples
from ray_rl.cluster.environment import keep_freed_memory
from ray_rl.config import RunConfig
from ray_rl.models.loading import load_causal_lm
from ray_rl.training.member import Member
from ray_rl.training.trainer import Trainer
from ray_rl.types import Answer, Example, OfflineBatch
from tests.system.cluster.ranks import Ranks

PROMPT_TOKENS, LOSS_TOKENS = 4, 2
UPDATES = 5


@dataclass(frozen=True)
class Layout:
    """How the model is trained; stage None is bare torch."""

    stage: int | None
    workers: int = 1
    dtype: str = "float32"

    def __str__(self) -> str:
        if self.stage is None:
            return f"bare torch, {self.dtype}"
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"ZeRO-{self.stage}, {workers}, {self.dtype}"


LAYOUTS = (
    *(Layout(stage) for stage in (None, 0, 1, 2, 3)),
    *(Layout(stage, workers=2) for stage in (2, 3)),
    *(Layout(stage, dtype="bfloat16") for stage in (None, 1, 2, 3)),
)


def settings(folder: str, layout: Layout) -> RunConfig:
    """The configuration of a run."""
    return RunConfig.model_validate(
        {
            "run": {"name": "fixed_part", "steps": 1000},
            "model": {"path": folder, "dtype": layout.dtype},
            "data": {"kind": "jsonl", "path": "unused.jsonl"},
            "algorithm": {"kind": "sft"},
            "train": {"zero_stage": layout.stage, "workers": layout.workers},
            "cluster": {"accelerator": "cpu"},
        }
    )


def few_tokens(workers: int) -> OfflineBatch:
    """An example for each worker."""
    random = np.random.default_rng(0)
    answer = np.ones(LOSS_TOKENS, np.bool_)
    examples = [
        Example(
            id="",
            prompt_ids=tuple(random.integers(3, 1000, PROMPT_TOKENS).tolist()),
            answers=(Answer(random.integers(3, 1000, LOSS_TOKENS).astype(np.int32), answer),),
        )
        for _ in range(workers)
    ]
    return pack_examples(examples, loss_at="tokens")


def least(update: Callable[[], object]) -> float:
    """Seconds of the fastest call; the first ones make the moments and the memory that later ones use again."""
    seconds = []
    for _ in range(UPDATES):
        start_s = time.process_time()
        update()
        seconds.append(time.process_time() - start_s)
    return min(seconds)


def system(member: Member, folder: str, layout: Layout) -> float:
    """Seconds of an update of this system; runs in a rank."""
    keep_freed_memory()  # as every worker does
    trainer = Trainer(*offline_parts(settings(folder, layout), (folder,)), member, threads=1)
    batch = few_tokens(member.world)
    return least(lambda: trainer.update(batch))


def bare(member: Member, folder: str, layout: Layout) -> float:
    """Seconds of the same in torch alone: bfloat16 weights have float32 copies that AdamW changes."""
    keep_freed_memory()
    torch.set_num_threads(1)
    model = load_causal_lm(folder, dtype=layout.dtype, attention="sdpa", trust_remote_code=False).train()
    weights = list(model.parameters())
    masters = weights if layout.dtype == "float32" else [weight.detach().float() for weight in weights]
    adam = torch.optim.AdamW(masters, lr=1e-6, fused=True)
    (prompt,) = few_tokens(1).prompt_ids
    tokens = torch.tensor([*prompt.tolist(), *few_tokens(1).tokens_RT[0].tolist()])[None]

    def update() -> None:
        logits = model(input_ids=tokens, use_cache=False).logits[0, PROMPT_TOKENS - 1 : -1]
        torch.nn.functional.cross_entropy(logits.float(), tokens[0, PROMPT_TOKENS:]).backward()
        if masters is not weights:
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        adam.step()
        adam.zero_grad()
        if masters is not weights:
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)

    return least(update)


def seconds_of(folder: str, layout: Layout) -> float:
    """Seconds of an update, in processes of their own; of all workers together."""
    ranks = Ranks(layout.workers)
    try:
        return sum(ranks.run(bare if layout.stage is None else system, folder, layout))
    finally:
        ranks.close()


def table(folder: str) -> Table:
    """Measures every layout."""
    found = Table(title=f"An update with {LOSS_TOKENS} loss tokens a worker: the part that does not depend on tokens")
    for column in ("layout", "processor s", "bare torch takes"):
        found.add_column(column, justify="left" if column == "layout" else "right")
    floor_s = 0.0
    for layout in LAYOUTS:
        seconds = seconds_of(folder, layout)
        print(f"{layout}: {seconds:.2f} s", flush=True)
        if layout.stage is None:
            floor_s = seconds
        found.add_row(str(layout), f"{seconds:.2f}", f"{floor_s * layout.workers / seconds:.2f}x")
    return found
