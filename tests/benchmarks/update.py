"""Processor time of one forward and backward pass, by the layout of its sequences; and how exact each layout is.

The model is SmolLM2-135M (grouped-query heads, tied embeddings) in float32. Every layout computes logits at the
completions alone. Seconds are those of the processor, with one thread, so that other load counts less. The gradient is
held against that of one plain transformers forward pass a sequence.

In bfloat16 the reference is float32 with the same, rounded weights, and the tokens are text and what the model samples
after it: random ones are so far from anything that it knows that one rounding may change everything behind it. Shown is
the geometric mean of some batches, of fewer prompts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from ray_rl.batching.encoding import Split
from ray_rl.cluster.environment import keep_freed_memory
from ray_rl.config.run import LOGIT_CHUNK_TOKENS
from ray_rl.config.train import Packing
from ray_rl.models.attention import SHARED_PREFIX
from ray_rl.models.loading import load_causal_lm, load_model_config
from ray_rl.models.packaged import resolve_model
from ray_rl.models.policy import PolicyModel
from ray_rl.types import TrainBatch
from tests import make
from tests.benchmarks import fixed_part

LICENCE = Path(__file__).parents[2] / "LICENSE"
MODEL = "smollm2-135m-instruct"
Dtype = Literal["float32", "bfloat16"]
LAYOUTS: tuple[Packing, ...] = ("padded", "packed", "shared_prefix")
BFLOAT16_LAYOUTS: tuple[Packing, ...] = ("padded", "shared_prefix")
MICRO_BATCH_TOKENS = 4096
CHUNK_TOKENS = LOGIT_CHUNK_TOKENS["cpu"]
BFLOAT16_PROMPTS, BFLOAT16_SEEDS = 2, range(4)


@dataclass(frozen=True)
class Shape:
    prompts: int
    group: int
    prompt_tokens: int
    completion_tokens: int

    def __str__(self) -> str:
        return f"{self.prompts} x {self.group} x ({self.prompt_tokens} + {self.completion_tokens})"

    def batch(self, vocabulary: int) -> TrainBatch:
        """Random tokens; every completion has the full length, so that padding costs its least."""
        random = np.random.default_rng(0)
        shape = (self.prompts * self.group, self.completion_tokens)
        return make.batch(
            shape,
            prompts=[random.integers(3, vocabulary, self.prompt_tokens) for _ in range(self.prompts)],
            tokens_RT=random.integers(3, vocabulary, shape).astype(np.int32),
            advantages_RT=np.repeat(random.normal(size=(shape[0], 1)), shape[1], 1).astype(np.float32),
        )


SHAPES = (Shape(8, 8, 43, 20), Shape(1, 8, 512, 128))


def load(folder: str, layout: Packing | None, *, dtype: Dtype) -> PreTrainedModel:
    """The model with the attention of a layout; None is for the reference: the same weights in float32."""
    attention = SHARED_PREFIX if layout == "shared_prefix" else "sdpa"
    model = load_causal_lm(folder, dtype=dtype, attention=attention, trust_remote_code=False)
    return model.float() if layout is None else model


def sampled(model: PreTrainedModel, folder: str, shape: Shape, seed: int) -> TrainBatch:
    """Prompts out of the licence of this project, each with what the model samples after it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = np.array(tokenizer(LICENCE.read_text(encoding="utf-8")).input_ids, np.int32)
    starts = np.random.default_rng(seed).integers(0, len(text) - shape.prompt_tokens, shape.prompts)
    prompts = tuple(text[start : start + shape.prompt_tokens] for start in starts)
    tokens = torch.from_numpy(np.stack(prompts)).long().repeat_interleave(shape.group, 0)
    torch.manual_seed(seed)
    size = shape.completion_tokens
    with torch.no_grad():
        sequences = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=True,
            top_k=0,
            min_new_tokens=size,
            max_new_tokens=size,
        )
    batch = shape.batch(model.config.vocab_size)
    return replace(batch, prompt_ids=prompts, tokens_RT=sequences[:, shape.prompt_tokens :].to(torch.int32).numpy())


def backward(model: PreTrainedModel, batch: TrainBatch, layout: Packing) -> float:
    """Leaves the gradient of sum(advantage * logprob) in the parameters; seconds of the processor."""
    policy = PolicyModel(model, chunk_tokens=CHUNK_TOKENS, temperature=1.0)
    split = Split(workers=1, micro_batch_tokens=MICRO_BATCH_TOKENS, packing=layout)
    model.zero_grad()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one that waits for another counts as working
    start_s = time.process_time()
    for micro in split.encode(batch, np.arange(batch.rows), rank=0):
        logprobs_N, _ = policy(micro.inputs, with_entropy=False)
        assert batch.advantages_RT is not None
        (logprobs_N * micro.pick(batch.advantages_RT)).sum().backward()
    seconds = time.process_time() - start_s
    torch.set_num_threads(threads)
    return seconds


def backward_one_by_one(model: PreTrainedModel, batch: TrainBatch) -> None:
    """The same gradient, a sequence at a time, with nothing of ours."""
    model.zero_grad()
    assert batch.advantages_RT is not None
    for row, (completion, advantages) in enumerate(zip(batch.tokens_RT, batch.advantages_RT, strict=True)):
        prompt = batch.prompt_ids[row // batch.group_size]
        tokens = torch.from_numpy(np.concatenate([prompt, completion])).long()
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.float().log_softmax(-1).gather(1, tokens[len(prompt) :, None])[:, 0]
        (logprobs * torch.from_numpy(advantages)).sum().backward()


def gradient(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def errors(
    folder: str, batch: TrainBatch, layouts: Sequence[Packing], *, dtype: Dtype
) -> dict[Packing, tuple[float, float]]:
    """|gradient - reference| / |reference| of each layout, and the seconds."""
    model = load(folder, None, dtype=dtype)
    backward_one_by_one(model, batch)
    reference = gradient(model)
    found: dict[Packing, tuple[float, float]] = {}
    for layout in layouts:
        model = load(folder, layout, dtype=dtype)
        seconds = backward(model, batch, layout)
        error = float((gradient(model) - reference).norm() / reference.norm())
        print(f"{layout} {dtype}: {seconds:.1f} s, {error:.1e}", flush=True)
        found[layout] = error, seconds
    return found


def rounded_errors(folder: str, shape: Shape) -> dict[Packing, float]:
    """The geometric mean of the bfloat16 errors over some batches."""
    sampler = load(folder, None, dtype="bfloat16")
    few = replace(shape, prompts=min(shape.prompts, BFLOAT16_PROMPTS))
    batches = [sampled(sampler, folder, few, seed) for seed in BFLOAT16_SEEDS]
    found = [errors(folder, batch, BFLOAT16_LAYOUTS, dtype="bfloat16") for batch in batches]
    return {layout: geometric_mean(each[layout][0] for each in found) for layout in BFLOAT16_LAYOUTS}


def main() -> None:
    keep_freed_memory()  # as every worker does
    folder = resolve_model(MODEL)
    vocabulary = load_model_config(folder, trust_remote_code=False).vocab_size
    table = Table(title=f"One update of {MODEL}, prompts x group x (prompt + completion tokens), float32")
    for column in ("shape", "layout", "processor s", "padded takes", "gradient error", "bfloat16 error"):
        table.add_column(column, justify="left" if column in ("shape", "layout") else "right")
    for shape in SHAPES:
        exact = errors(folder, shape.batch(vocabulary), LAYOUTS, dtype="float32")
        rounded = rounded_errors(folder, shape)
        padded_s = exact["padded"][1]
        for layout, (error, seconds) in exact.items():
            in_bfloat16 = f"{rounded[layout]:.1e}" if layout in rounded else ""
            cells = (f"{seconds:.1f}", f"{padded_s / seconds:.2f}x", f"{error:.1e}", in_bfloat16)
            table.add_row(str(shape), layout, *cells)
    console = Console(width=120)
    console.print(table)
    console.print(fixed_part.table(folder))


if __name__ == "__main__":
    main()
