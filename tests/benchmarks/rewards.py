"""Completions that the verifiers score in a second: a step of 8,192 completions of 2,000 tokens, as a run scores them.

Groups of 8 are scored concurrently, by one worker process and by one a core. Figures for a worker are by the clock, and
those for a core by processor time, of this process and of the workers, so that they do not depend on what else the
machine does. Of `math_verify` there are three kinds: the answer is written
as the gold is, or says that it is not by itself; half of the answers take algebra; all of them do, and no two are the
same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psutil
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from ray_rl.config.rewards import ModelReward, RewardConfig
from ray_rl.isolation.pool import default_processes
from ray_rl.rewards.combine import Rewards, build_rewards
from ray_rl.rewards.functions.parts import build_part
from ray_rl.types import Completion, Prompt
from tests.make import completion
from tests.make import group as make_group

GROUPS, GROUP_SIZE, TOKENS = 1024, 8, 2000
SENTENCE = r"Since $x_1 + x_2 = 12$ and the width is \frac{3}{4} of 20, we add 1,250 and divide the sum by 2. "
REASONING = SENTENCE * (4 * TOKENS // len(SENTENCE))  # four characters a token

Case = tuple[Any, list[str]]
"""A gold and the answers of its group."""


def plain_numbers(group: int) -> Case:
    return str(group), [f"The answer is {group + index % 2}." for index in range(GROUP_SIZE)]


def letters(group: int) -> Case:
    return "ABCD"[group % 4], [f"The answer is ({'ABCD'[index % 4]})." for index in range(GROUP_SIZE)]


def written_alike(group: int) -> Case:
    gold = rf"\frac{{{group}}}{{7}}"
    return gold, [rf"So \boxed{{{gold if index % 2 else group + index}}}." for index in range(GROUP_SIZE)]


def half_algebra(group: int) -> Case:
    gold = rf"x^2+{group}"
    return gold, [rf"So \boxed{{{f'{group + index}+x^2' if index % 2 else gold}}}." for index in range(GROUP_SIZE)]


def all_algebra(group: int) -> Case:
    return rf"(x+{group})^2", [rf"So \boxed{{x^2+{2 * group}x+{group**2 + index}}}." for index in range(GROUP_SIZE)]


CASES: tuple[tuple[str, Callable[[int], Case], dict[str, Any]], ...] = (
    ("number", plain_numbers, {"kind": "number"}),
    ("choice", letters, {"kind": "choice"}),
    ("regex", plain_numbers, {"kind": "regex", "pattern": r"answer is \d+"}),
    ("math_verify, written alike", written_alike, {"kind": "math_verify"}),
    ("math_verify, half algebra", half_algebra, {"kind": "math_verify"}),
    ("math_verify, all algebra", all_algebra, {"kind": "math_verify"}),
)


def completions(answers: Sequence[str]) -> list[Completion]:
    return [completion(TOKENS, REASONING + answer) for answer in answers]


async def score_all(rewards: Rewards, make: Callable[[int], Case], groups: int) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    cases = [make(group) for group in range(groups)]
    prompts = [Prompt(f"bench/{group}", (1,), "?", {"answer": gold}) for group, (gold, _) in enumerate(cases)]
    pairs = zip(prompts, cases, strict=True)
    calls = [rewards.score(make_group(*completions(answers), prompt=prompt)) for prompt, (_, answers) in pairs]
    async with asyncio.timeout(3000):
        await asyncio.gather(*calls)


@dataclass(frozen=True)
class Cost:
    """What scoring took, without the start of the worker processes."""

    clock_s: float
    driver_s: float
    """Of processors, in this process."""
    workers_s: float
    """The same in the worker processes."""


def processor_s() -> tuple[float, float]:
    """Of this process, and of the worker processes that run."""
    own = psutil.Process()
    used = [sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True))]
    return used[0], sum(used[1:])


def measure(make: Callable[[int], Case], section: dict[str, Any], *, groups: int) -> Cost:
    with closing(build_rewards(TypeAdapter(list[RewardConfig]).validate_python([section]))) as rewards:
        asyncio.run(score_all(rewards, make, 4 * default_processes()))
        before, start_s = processor_s(), time.perf_counter()
        asyncio.run(score_all(rewards, make, groups))
        clock_s, after = time.perf_counter() - start_s, processor_s()
    return Cost(clock_s, *(b - a for a, b in zip(before, after, strict=True)))


def runs(section: dict[str, Any]) -> list[tuple[int, int]]:
    """Worker processes and groups of each measurement: a quarter of the step by one, and the step by one a core."""
    (config,) = TypeAdapter(list[RewardConfig]).validate_python([section])
    assert not isinstance(config, ModelReward)
    if not build_part(config).processes:
        return [(0, GROUPS)]
    return [(1, GROUPS // 4), *([(default_processes(), GROUPS)] if default_processes() > 1 else [])]


def main() -> None:
    """Prints the table."""
    table = Table(title=f"Completions of {TOKENS:,} tokens; a step has {GROUPS * GROUP_SIZE:,}")
    for column in ("verifier", "workers", "completions", "seconds", "a second", "a second and worker"):
        table.add_column(column, justify="left" if column == "verifier" else "right")
    for column in ("processor s, driver", "workers", "a second and core"):
        table.add_column(column, justify="right")
    for name, make, section in CASES:
        for workers, groups in runs(section):
            cost = measure(make, section | ({"workers": workers} if workers else {}), groups=groups)
            count, used_s = groups * GROUP_SIZE, cost.driver_s + cost.workers_s
            speed = (count / cost.clock_s, count / cost.clock_s / workers if workers else 0.0)
            table.add_row(
                name,
                str(workers or "-"),
                f"{count:,}",
                f"{cost.clock_s:.1f}",
                *(f"{each:,.0f}" if each else "-" for each in speed),
                f"{cost.driver_s:.1f}",
                f"{cost.workers_s:.1f}",
                f"{count / used_s:,.0f}",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
