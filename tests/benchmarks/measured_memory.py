"""Peak resident memory of workers on CPU, by the options of training: `python -m tests.benchmarks.measured_memory`.

Two workers a role take one step on 4 prompts with 4 completions each. The models are SmolLM2-135M and a random Llama of
317M parameters. Each row of the first table adds one change to those above it; the last column makes it alone. What a
process has after importing its libraries, before a model is loaded, is subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ray_rl.app.models import build_actor, build_critic, build_reference
from ray_rl.config import RunConfig
from ray_rl.config.roles import ACTOR, CRITIC, REFERENCE
from ray_rl.models.packaged import resolve_model
from ray_rl.sizes import GIB
from ray_rl.training.member import Member
from ray_rl.types import TrainBatch
from tests import make
from tests.benchmarks.own_offline import free_port

WORKERS, PROMPTS, GROUP, PROMPT_TOKENS, COMPLETION_TOKENS = 2, 4, 4, 256, 128
LIMIT_S = 900
BUILDERS = {ACTOR: build_actor, CRITIC: build_critic, REFERENCE: build_reference}
BASE: Mapping[str, Any] = {"dtype": "float32", "zero_stage": 1, "gradient_checkpointing": False, "chunk": 10**6}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "bfloat16 weights and activations": {"dtype": "bfloat16"},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "logits in chunks of 256 tokens": {"chunk": 256},
    "ZeRO-2 in place of ZeRO-1": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
}


def config_of(model: str, options: Mapping[str, Any]) -> RunConfig:
    """A PPO run with these options for every role."""
    trained = {name: options[name] for name in ("zero_stage", "gradient_checkpointing")}
    trained |= {"workers": WORKERS, "micro_batch_tokens": 2048}
    return RunConfig.model_validate(
        {
            "run": {"name": "memory", "steps": 1},
            "model": {"path": model, "dtype": options["dtype"]},
            "data": {"kind": "addition", "max_prompt_tokens": PROMPT_TOKENS},
            "rewards": [{"kind": "number"}],
            "rollout": {"max_tokens": COMPLETION_TOKENS},
            "algorithm": {"kind": "ppo", "prompts_per_step": PROMPTS, "group_size": GROUP, "minibatches": 1},
            "train": trained | {"logit_chunk_tokens": options["chunk"]},
            "critic": trained,
            "reference": {"workers": WORKERS, "zero_stage": 3 if options["zero_stage"] == 3 else 0},
            "cluster": {"accelerator": "cpu"},
        }
    )


def batch_of(vocabulary: int) -> TrainBatch:
    """Random tokens with all that actor, critic and reference read."""
    random = np.random.default_rng(0)
    shape = (PROMPTS * GROUP, COMPLETION_TOKENS)

    def numbers() -> Any:
        return random.normal(size=shape).astype(np.float32)

    return make.batch(
        shape,
        prompts=[random.integers(3, vocabulary, PROMPT_TOKENS) for _ in range(PROMPTS)],
        tokens_RT=random.integers(3, vocabulary, shape).astype(np.int32),
        advantages_RT=numbers(),
        old_logprobs_RT=np.full(shape, -10, np.float32),
        reference_logprobs_RT=np.full(shape, -10, np.float32),
        old_values_RT=numbers(),
        returns_RT=numbers(),
    )


def resident(field: str) -> int:
    """Bytes of this process that are in memory (VmRSS), or were at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024


def child(role: str, rank: int, port: int, model: str, options: Mapping[str, Any]) -> None:
    """Takes one step as a worker, and prints its peak without what it had before the model."""
    import deepspeed  # noqa: F401 - before the first look at the memory
    import torch

    torch.set_num_threads(1)
    config, before = config_of(model, options), resident("VmRSS")
    held: Any = BUILDERS[role](config, [model], Member(rank, WORKERS, "127.0.0.1", port))
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    batch = batch_of(vocabulary)
    if role == REFERENCE:
        held.logprobs(batch)
    else:
        held.update(batch)

    print(json.dumps({"peak": resident("VmHWM") - before}), flush=True)


def measure(role: str, model: str, options: Mapping[str, Any]) -> float:
    """The mean peak of the workers of a role, in bytes."""
    port = free_port()
    words = [sys.executable, "-m", "tests.benchmarks.measured_memory", f"--model={model}", f"--role={role}"]
    words += [f"--port={port}", f"--options={json.dumps(options)}"]
    children = [
        subprocess.Popen([*words, f"--rank={rank}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for rank in range(WORKERS)
    ]
    said = [each.communicate(timeout=LIMIT_S)[0] for each in children]
    peak = fmean(json.loads(text.splitlines()[-1])["peak"] for text in said)
    print(f"{Path(model).name}, {role}, {options}: {peak / GIB:.2f} GiB", flush=True)
    return peak


@dataclass(frozen=True)
class Row:
    """A row of a table of options."""

    name: str
    peak: float
    alone: float | None = None


def options_of(model: str) -> list[Row]:
    """The peaks of the actor with more and more options, and with each alone."""
    first = measure(ACTOR, model, BASE)
    rows, options = [Row("ZeRO-1, float32, nothing else", first)], dict(BASE)
    for name, change in STEPS.items():
        options |= change
        rows.append(Row(name, measure(ACTOR, model, options), measure(ACTOR, model, {**BASE, **change})))
    return rows


def write_random(folder: Path) -> str:
    """A random Llama of 317M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32768,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def main() -> None:
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as scratch:
        models = {"SmolLM2-135M": resolve_model("smollm2-135m-instruct"), "a random Llama of 317M": ""}
        models["a random Llama of 317M"] = write_random(Path(scratch) / "random-317m")
        for name, folder in models.items():
            rows = options_of(str(folder))
            table = Table(title=f"{name}: peak GiB of a worker of the actor, {WORKERS} workers")
            for column in ("change", "GiB", "saves of the row above", "alone"):
                table.add_column(column)
            first = rows[0].peak
            for row, above in zip(rows, [rows[0], *rows], strict=False):
                saved = "" if row is above else f"{1 - row.peak / above.peak:.0%}"
                alone = "" if row.alone is None else f"{1 - row.alone / first:.0%}"
                table.add_row(row.name, f"{row.peak / GIB:.2f}", saved, alone)
            table.add_row("together", f"{rows[-1].peak / GIB:.2f}", f"{1 - rows[-1].peak / first:.0%}", "")
            console.print(table)
            roles = {role: WORKERS * measure(role, str(folder), {**BASE, "dtype": "bfloat16"}) for role in BUILDERS}
            ppo = sum(roles.values())
            parts = ", ".join(f"{role} {peak / GIB:.2f}" for role, peak in roles.items())
            console.print(
                f"{name}, bfloat16, ZeRO-1: {parts} GiB; GRPO saves {roles[CRITIC] / ppo:.0%} of PPO's models"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--role")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--model")
    parser.add_argument("--options", type=json.loads)
    arguments = parser.parse_args()
    if arguments.role is None:
        main()
    else:
        child(arguments.role, arguments.rank, arguments.port, arguments.model, arguments.options)
