"""Seconds of steps on CPU as `ray-rl plan` estimates them, beside those that runs take.

One run gives the rates (`ray-rl plan --calibrate RUN`), and so does a measurement of the machine (`--calibrate
CONFIG`). With each, the steps of three other runs are planned: longer completions, PPO with all its models, and two
workers with ZeRO-3. Rewards differ inside groups, so that nothing is left out of an update, and the learning rate is
too small to change the policy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from ray_rl.config.loading.load import load_config
from ray_rl.data.chat import ChatTokenizer
from ray_rl.models.packaged import resolve_model
from ray_rl.planner.assess import assess
from ray_rl.planner.calibration import Phases, read_phases
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.lengths import Lengths, parse_lengths
from ray_rl.planner.rates import read_rates
from ray_rl.planner.throughput import Assumptions, Estimate, estimate

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
STEPS = 4
LIMIT_S = 1800
COMMON = (
    f"run.steps={STEPS}",
    "run.name=run",
    "train.learning_rate=1e-12",
    "rewards=[{kind: length, target: 8}]",
    "checkpoint.export=false",
    "checkpoint.every_steps=null",
)
GRPO, PPO = "grpo_addition_smollm2-135m_cpu", "ppo_addition_smollm2-135m_cpu"


@dataclass(frozen=True)
class Case:
    """A run that is planned and measured."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The recipe and its overrides, as the command line takes them."""
        return [str(ROOT / "configs" / f"{self.recipe}.yaml"), *COMMON, *self.overrides]


CALIBRATED = Case("GRPO, 8 x 8 completions of up to 24 tokens", GRPO)
CASES = (
    Case(
        "GRPO, 4 x 16 of up to 96 tokens",
        GRPO,
        ("algorithm.prompts_per_step=4", "algorithm.group_size=16", "rollout.max_tokens=96"),
    ),
    Case("PPO, 8 x 8 of up to 24, two minibatches", PPO, ("critic.learning_rate=1e-12",)),
    Case(
        "GRPO, 16 x 8 of up to 24, two workers, ZeRO-3",
        GRPO,
        ("algorithm.prompts_per_step=16", "train.workers=2", "train.zero_stage=3"),
    ),
)


def ray_rl(*words: str) -> str:
    """Runs the command and returns its output."""
    command = [str(Path(sys.executable).with_name("ray-rl")), *words]
    return subprocess.run(command, check=True, timeout=LIMIT_S, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def measure(case: Case, folder: Path) -> tuple[Phases, Lengths]:
    """Runs it, and returns the seconds of its phases and the lengths of its prompts and completions."""
    ray_rl("train", *case.words, f"run.dir={folder}")
    files = sorted((folder / "run" / "rollouts").glob("*.jsonl"))[1:]
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    lengths = folder / "lengths.txt"
    lengths.write_text("".join(f"{record['length']}\n" for record in records))
    tokenizer = ChatTokenizer(resolve_model(MODEL)).model_tokenizer
    prompt = fmean(len(tokenizer.encode(record["prompt"], special=False)) for record in records)
    config = load_config(case.words[0], case.words[1:])
    measured = parse_lengths(str(lengths), maximum=config.rollout.max_tokens)
    return read_phases(folder / "run"), replace(measured, prompt=prompt)


def plan(case: Case, lengths: Lengths, rates: Path) -> Estimate:
    """The estimate for a run at these rates."""
    config = load_config(case.words[0], case.words[1:])
    assessment = assess(config, ClusterShape.of(config))
    return estimate(config, assessment, Assumptions(lengths, read_rates(str(rates), None)))


def main() -> None:
    table = Table(title=f"A step of {MODEL} on CPU: seconds that it takes, and planned over measured seconds")
    for column in ("run", "measured s", "by the rates of a run", "by those of the machine"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        machine, run = folder / "machine.json", folder / "run.json"
        machine.write_text(ray_rl("plan", "--calibrate", *CALIBRATED.words))
        for case in (CALIBRATED, *CASES):
            phases, lengths = measure(case, folder / str(len(table.rows)))
            if case is CALIBRATED:
                words = (str(folder / "0" / "run"), f"--lengths=prompt={lengths.prompt}", f"--rates={machine}")
                run.write_text(ray_rl("plan", "--calibrate", *words))
            table.add_row(
                case.name,
                measured_text(phases),
                *(planned_text(plan(case, lengths, rates), phases) for rates in (run, machine)),
            )
            print(f"{case.name}: done", flush=True)
    Console(width=160).print(table)


def seconds_of(phases: Phases) -> dict[str, float]:
    """Seconds by phase."""
    return {"rollout": phases.rollout_s, "score": phases.score_s, "update": phases.update_s, "sync": phases.sync_s}


def measured_text(phases: Phases) -> str:
    """The seconds of a step and of its phases."""
    parts = seconds_of(phases)
    return f"{sum(parts.values()):.1f} ({', '.join(f'{name} {value:.1f}' for name, value in parts.items() if value)})"


def planned_text(planned: Estimate, phases: Phases) -> str:
    """Planned over measured seconds, of a step and of its phases."""
    parts = {name: getattr(planned, f"{name}_s") / value for name, value in seconds_of(phases).items() if value}
    ratio = planned.step_s / sum(seconds_of(phases).values())
    return f"{ratio:.2f} ({', '.join(f'{name} {value:.2f}' for name, value in parts.items())})"


if __name__ == "__main__":
    main()
