"""Seconds of a whole GRPO step: this system against TRL's GRPOTrainer, on the demo's shape, in one run on one machine.

Same model, prompts, reward, group size, completion limit, sampling, learning rate, KL setting (none) and dtype; where
the processor has no bfloat16 instructions, TRL's own default, bfloat16 under autocast, has a row of its own. The first
row of the table is the demo's task as it stands: groups whose completions all got the same reward have no
gradient, and only this system leaves them out of the update. The second row takes that away: its reward is the length
of the completion, which differs inside nearly every group.
"""

from __future__ import annotations

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


def ours(name: str, folder: Path, *, steps: int, rewards: str | None = None) -> Result:
    command = [
        str(Path(sys.executable).with_name("ray-rl")),
        "train",
        str(CONFIG),
        f"run.dir={folder}",
        "run.name=bench",
        f"run.steps={steps}",
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
    command += ["--max-tokens", str(MAX_TOKENS)]
    command += ["--checkpointing" if checkpointing else "--no-checkpointing"]
    done = subprocess.run(command, check=True, timeout=LIMIT_S, stdout=subprocess.PIPE, text=True)
    return Result(name, json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def main(steps: int = 5, trl_steps: int = 2) -> None:
    dtype = resolve_dtype("auto", "cpu")
    length = f"[{{kind: length, target: {LENGTH_TARGET}}}]"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reference = ours("ray_rl", folder / "ours", steps=steps)
        results = [
            reference,
            ours("ray_rl, nothing left out of the update", folder / "ours-all", steps=steps, rewards=length),
            trl("TRL, defaults", folder / "trl", steps=trl_steps, dtype=TRL_DTYPE, checkpointing=True),
        ]
        if dtype != TRL_DTYPE:
            name = f"TRL, defaults in {dtype}"
            results.append(trl(name, folder / "trl-dtype", steps=trl_steps, dtype=dtype, checkpointing=True))
        name = f"TRL at its best ({dtype}, no gradient checkpointing)"
        results.append(trl(name, folder / "trl-best", steps=trl_steps, dtype=dtype, checkpointing=False))
    table = Table(title=f"GRPO step: {MODEL}, {dtype}, 8 prompts x 8 completions of at most {MAX_TOKENS} tokens")
    for column in ("system", "s/step", "against ray_rl", "steps", "parts"):
        table.add_column(column)
    for result in results:
        steps_s = " ".join(f"{seconds:.1f}" for seconds in result.seconds)
        ratio = f"{result.step_s / reference.step_s:.2f}x"
        table.add_row(result.name, f"{result.step_s:.1f}", ratio, steps_s, result.detail)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
