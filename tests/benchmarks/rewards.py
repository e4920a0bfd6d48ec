"""Completions that the verifiers score in a second: a step of 8,192 completions of 2,000 tokens, as a run scores them.

Groups of 8 are scored concurrently. The figure for one core is by processor time, of this process and of the workers,
so that it does not depend on what else the machine does. Of `math_verify` there are three kinds: the answer is written
as the gold is, or says that it is not by itself; half of the answers take algebra; all of them do, and no two are the
same.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from ray_rl.config.rewards import RewardConfig
from ray_rl.isolation.pool import default_processes
from ray_rl.rewards.combine import Rewards, build_rewards
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


def processor_s() -> float:
    """Of this process, and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(make: Callable[[int], Case], section: dict[str, Any], *, groups: int) -> tuple[float, float]:
    """Seconds on the clock, without the start of the worker processes, and seconds of processors with it."""
    before_s = processor_s()
    with closing(build_rewards(TypeAdapter(list[RewardConfig]).validate_python([section]))) as rewards:
        asyncio.run(score_all(rewards, make, 4 * default_processes()))
        start_s = time.perf_counter()
        asyncio.run(score_all(rewards, make, groups))
        clock_s = time.perf_counter() - start_s
    return clock_s, processor_s() - before_s


def main() -> None:
    """Prints the table."""
    count = GROUPS * GROUP_SIZE
    table = Table(
        "verifier",
        "seconds",
        "completions a second",
        "completions a second and core",
        title=(f"{count:,} completions of {TOKENS:,} tokens, {default_processes()} cores"),
    )
    for name, make, section in CASES:
        clock_s, used_s = measure(make, section, groups=GROUPS)
        table.add_row(name, f"{clock_s:.1f}", f"{count / clock_s:,.0f}", f"{count / used_s:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
