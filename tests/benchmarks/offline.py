"""Processor seconds of a DPO and an SFT step: this system against TRL's trainers, on the same tokens, in one run.

SmolLM2-135M in float32, 8 pairs a step, one thread. Every step of DPO includes the log-probabilities of the reference.
Two kinds of pairs: dialogues of Anthropic's HH-RLHF as they are, up to 512 tokens, if `../shared` has them; and prompts
of 512 tokens with answers of 64, from the licence of this project. TRL is measured at its defaults (gradient
checkpointing, 8 rows a pass) and without checkpointing with 8, 4 and 2 rows a pass, of which the fastest is its best.
The losses of 20 steps on short pairs are compared too.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ray_rl.data.chat import ChatTokenizer
from ray_rl.models.packaged import resolve_model
from ray_rl.types import Message

MODEL = "smollm2-135m-instruct"
ROOT = Path(__file__).parents[2]
DIALOGUES = ROOT.parent / "shared" / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
ROWS_PER_STEP = 8
LIMIT_S = 5400
Row = dict[str, list[int]]


@dataclass(frozen=True)
class Result:
    """Steps of one system."""

    name: str
    seconds: Sequence[float]
    losses: Sequence[float]
    peak_gib: float

    @property
    def step_s(self) -> float:
        """Median without the first step, which pays for warm-up on both sides."""
        return statistics.median(self.seconds[1:])


def dialogues(*, longest: int) -> Iterator[Row]:
    """Pairs of HH-RLHF in their order, up to a number of tokens."""
    tokenizer = ChatTokenizer(resolve_model(MODEL))
    end = [tokenizer.turn_end]
    with gzip.open(DIALOGUES, "rt", encoding="utf-8") as lines:
        for line in lines:
            sides = [turns(json.loads(line)[name]) for name in ("chosen", "rejected")]
            (*before, chosen), (*other, rejected) = sides
            if before != other or not before or chosen.role == "user" or not (chosen.content and rejected.content):
                continue
            prompt = list(tokenizer.encode(before, chat=True))
            answers = [tokenizer.model_tokenizer.encode(m.content, special=False) + end for m in (chosen, rejected)]
            if len(prompt) + max(map(len, answers)) <= longest:
                yield {"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]}


def turns(dialogue: str) -> list[Message]:
    """The turns of a dialogue of HH-RLHF."""
    found = []
    for part in dialogue.split("\n\nHuman:")[1:]:
        asked, *answered = part.split("\n\nAssistant:")
        found.append(Message("user", asked.strip()))
        found += [Message("assistant", text.strip()) for text in answered]
    return found or [Message("user", "")]


def long_prompts() -> Iterator[Row]:
    """Pairs whose prompts are long and whose answers are short."""
    tokenizer = ChatTokenizer(resolve_model(MODEL)).model_tokenizer
    text = tokenizer.encode((ROOT / "LICENSE").read_text(encoding="utf-8"), special=False)
    random = np.random.default_rng(0)
    while True:
        at = random.integers(0, len(text) - 512, 3)
        prompt, chosen, rejected = (text[i : i + size] for i, size in zip(at, (512, 64, 64), strict=True))
        yield {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def demonstration(row: Row) -> Row:
    """The chosen answer of a pair as a row of supervised fine-tuning."""
    prompt, answer = row["prompt_ids"], row["chosen_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def run(module: str, name: str, kind: str, rows: Path, *words: str, steps: int, learning_rate: float) -> Result:
    """Steps of a system in a process of its own."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", kind, f"--model={resolve_model(MODEL)}"]
    command += [f"--rows={rows}", f"--steps={steps}", f"--rows-per-step={ROWS_PER_STEP}"]
    command += [f"--learning-rate={learning_rate}", *words]
    done = subprocess.run(command, check=True, timeout=LIMIT_S, capture_output=True, text=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    result = Result(name, found["seconds"], found["losses"], found["peak_gib"])
    print(f"{kind}, {name}: {[round(s, 1) for s in result.seconds]} s, {result.peak_gib:.1f} GiB", flush=True)
    return result


def theirs(
    kind: str, rows: Path, *more: str, steps: int, rows_per_pass: int, checkpointing: bool, learning_rate: float
) -> Result:
    """Steps of TRL."""
    name = f"TRL, {rows_per_pass} rows a pass" + (", checkpointing (its default)" if checkpointing else "")
    words = (
        f"--rows-per-pass={rows_per_pass}",
        "--checkpointing" if checkpointing else "--no-checkpointing",
        f"--output={rows.with_suffix('.trl')}",
        *more,
    )
    return run("trl_offline", name, kind, rows, *words, steps=steps, learning_rate=learning_rate)


def compare(console: Console, folder: Path, what: str, pairs: Iterator[Row], *, steps: int) -> None:
    """Prints one table a kind."""
    taken = [next(pairs) for _ in range(ROWS_PER_STEP * steps)]
    for kind, rows in {"dpo": taken, "sft": [demonstration(row) for row in taken]}.items():
        path = folder / f"{kind}.json"
        path.write_text(json.dumps(rows))
        own = run("own_offline", "ray_rl", kind, path, steps=steps, learning_rate=1e-6)
        found = [
            theirs(kind, path, steps=steps, rows_per_pass=each, checkpointing=gc, learning_rate=1e-6)
            for each, gc in ((8, True), (8, False), (4, False), (2, False))
        ]
        table = Table(title=f"A step of {kind} on {what}: 8 rows, {MODEL}, float32, one thread")
        for column in ("", "processor s", "ray_rl takes", "peak GiB"):
            table.add_column(column, justify="right" if column else "left")
        for each in (own, *found):
            ratio = f"1/{each.step_s / own.step_s:.2f}" if each is not own else ""
            table.add_row(each.name, f"{each.step_s:.1f}", ratio, f"{each.peak_gib:.1f}")
        console.print(table)


def compare_losses(console: Console, folder: Path, *, steps: int) -> None:
    """Prints the largest difference of the losses on the same batches in the same order."""
    pairs = dialogues(longest=96)
    taken = [next(pairs) for _ in range(ROWS_PER_STEP * steps)]
    table = Table(title=f"Losses of {steps} steps on short pairs of HH-RLHF, learning rate 1e-5")
    for column in ("", "ray_rl", "TRL", "largest difference"):
        table.add_column(column, justify="right" if column else "left")
    for kind, rows in {"dpo": taken, "sft": [demonstration(row) for row in taken]}.items():
        path = folder / f"{kind}.json"
        path.write_text(json.dumps(rows))
        own = run("own_offline", "ray_rl", kind, path, steps=steps, learning_rate=1e-5)
        other = theirs(kind, path, steps=steps, rows_per_pass=8, checkpointing=False, learning_rate=1e-5)
        largest = max(abs(a - b) for a, b in zip(own.losses, other.losses, strict=True))
        ends = [f"{r.losses[0]:.4f} to {r.losses[-1]:.4f}" for r in (own, other)]
        table.add_row(kind, *ends, f"{largest:.1e}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--loss-steps", type=int, default=20)
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, Callable[[], Iterator[Row]]] = {"prompts of 512 tokens, answers of 64": long_prompts}
        if DIALOGUES.exists():
            kinds["HH-RLHF, up to 512 tokens"] = lambda: dialogues(longest=512)
        else:
            print(f"left out: pairs of HH-RLHF, because there is no {DIALOGUES}")
        for what, pairs in kinds.items():
            compare(console, Path(folder), what, pairs(), steps=arguments.steps)
        if DIALOGUES.exists() and arguments.loss_steps:
            compare_losses(console, Path(folder), steps=arguments.loss_steps)


if __name__ == "__main__":
    main()
