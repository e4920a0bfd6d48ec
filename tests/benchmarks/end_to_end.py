"""Seconds of a whole GRPO step: this system against TRL's GRPOTrainer, on the demo's shape, in one run on one machine.

Same model, prompts, reward, group size, completion limit, sampling, learning rate, KL setting (none) and dtype; where
the processor has no bfloat16 instructions, TRL's own default, bfloat16 under autocast, has a row of its own. The
learning rate is too small to change a weight of ordinary size, so completions do not get longer or shorter from step to
step. TRL samples with transformers' `generate`, because it cannot send weights to vLLM's CPU build.

In the first row nothing is left out: its reward is the length of the completion, which differs inside nearly every
group. The second row is the demo's task as it stands: groups whose completions all got the same reward have no
gradient, and only this system leaves them out of the update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ray_rl.models.packaged import resolve_model
from ray_rl.planner.hardware import resolve_dtype

MODEL = "smollm2-135m-instruct"
CONFIG = Path(__file__).parents[2] / "configs" / "grpo_addition_smollm2-135m_cpu.yaml"
LENGTH_TARGET = 8
MAX_TOKENS = 24
TRL_DTYPE = "bfloat16"
"""What `GRPOConfig` computes in unless told otherwise."""
FROZEN = 1e-12
"""A learning rate: AdamW's first steps move a weight by as much, which float32 rounds away for weights above 2e-5."""
LIMIT_S = 1800


@dataclass(frozen=True)
class Result:
    name: str
    seconds: list[float]
    """Of each step."""
    detail: str = ""

    @property
    def step_s(self) -> float:
        """Median without the first step, which pays for warm-up on both sides."""
        return statistics.median(self.seconds[1:])

    @property
    def spread(self) -> str:
        """The median step and, in brackets, the fastest and the slowest one."""
        return f"{self.step_s:.1f} [{min(self.seconds[1:]):.1f}, {max(self.seconds[1:]):.1f}]"


def ours(name: str, folder: Path, *, steps: int, dtype: str, rewards: str | None = None) -> Result:
    command = [
        str(Path(sys.executable).with_name("ray-rl")),
        "train",
        str(CONFIG),
        f"run.dir={folder}",
        "run.name=bench",
        f"run.steps={steps}",
        f"model.dtype={dtype}",
        f"train.learning_rate={FROZEN}",
        f"rollout.max_tokens={MAX_TOKENS}",
        "checkpoint.export=false",
        *([] if rewards is None else [f"rewards={rewards}"]),
    ]
    subprocess.run(command, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (folder / "bench" / "metrics.jsonl").read_text().splitlines()]
    phases = {
        phase: statistics.median(r[f"time/{phase}_s"] for r in records[1:]) for phase in ("rollout", "train", "sync")
    }
    skipped = statistics.mean(record["train/skipped_fraction"] for record in records[1:])
    parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
    return Result(name, [record["time/step_s"] for record in records], f"{parts}; skipped {skipped:.0%}")


def trl(name: str, folder: Path, *, steps: int, dtype: str, checkpointing: bool) -> Result:
    command = [sys.executable, "-m", "tests.benchmarks.trl_grpo", "--model", resolve_model(MODEL)]
    command += ["--steps", str(steps), "--dtype", dtype, "--output", str(folder)]
    command += ["--max-tokens", str(MAX_TOKENS), "--learning-rate", str(FROZEN)]
    command += ["--checkpointing" if checkpointing else "--no-checkpointing"]
    done = subprocess.run(command, check=True, timeout=LIMIT_S, stdout=subprocess.PIPE, text=True)
    return Result(name, json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=4, help="of each system; the first is not counted")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto")
    arguments = parser.parse_args()
    steps, dtype = arguments.steps, resolve_dtype(arguments.dtype, "cpu")
    length = f"[{{kind: length, target: {LENGTH_TARGET}}}]"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = ours("ray_rl, nothing left out of the update", folder / "all", steps=steps, dtype=dtype, rewards=length)
        task = ours("ray_rl, the demo's task", folder / "task", steps=steps, dtype=dtype)
        settings = [("TRL, defaults", TRL_DTYPE, True)]
        if dtype != TRL_DTYPE:
            settings.append((f"TRL, defaults in {dtype}", dtype, True))
        settings.append((f"TRL at its best ({dtype}, no gradient checkpointing)", dtype, False))
        theirs = [
            trl(name, folder / f"trl-{i}", steps=steps, dtype=in_dtype, checkpointing=checkpointing)
            for i, (name, in_dtype, checkpointing) in enumerate(settings)
        ]
    table = Table(
        title=f"GRPO step: {MODEL}, {dtype}, 8 prompts x 8 completions of at most {MAX_TOKENS} tokens, policy frozen"
    )
    for column in ("system", "s/step [least, most]", "over the first row", "over the second", "parts"):
        table.add_column(column)
    for result in (whole, task, *theirs):
        ratios = [f"{result.step_s / own.step_s:.2f}x" for own in (whole, task)]
        table.add_row(result.name, result.spread, *ratios, result.detail)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
