"""A trainer rank that is killed in an update: the run goes back to its checkpoint and ends, with the same engine."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.driver_log import now, said
from tests.system.e2e.command import GROUP, PROMPTS, place_for, processes_of, run, steps_done, wait_until

pytestmark = pytest.mark.faults

STEPS = 20
"""Steps take a tenth of a second, and one of them must be met in its update."""


UPDATING = r"ray::actor-\d\.update"


def log(folder: Path) -> str:
    file = folder / "logs" / "driver.log"
    return file.read_text() if file.exists() else ""


def pids(session: int, title: str) -> list[int]:
    return [int(line.split()[0]) for line in processes_of(session) if re.search(title, line)]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    place = place_for(
        tmp_path_factory.mktemp("lost"),
        "lost",
        steps=STEPS,
        data={"size": PROMPTS * STEPS},
        rollout={"max_tokens": 32},
        train={"workers": 2, "zero_stage": 3},
        checkpoint={"every_steps": 2},
    )
    folder = place / "runs" / "lost"
    engines, killed_at = [], []

    def kill_a_trainer(process):
        wait_until(process, lambda: steps_done(folder) >= 3)
        engines.append(pids(process.pid, "EngineCore"))
        victims = []  # seen once: an update may have ended by a second look
        wait_until(process, lambda: victims.extend(pids(process.pid, UPDATING)) or victims)
        os.kill(victims[-1], signal.SIGKILL)
        killed_at.append(now())
        wait_until(process, lambda: "restarted; training continues" in log(folder))
        engines.append(pids(process.pid, "EngineCore"))

    ended = run(place, then=kill_a_trainer)
    for text in ("Going back", "restarted; training continues"):
        said(folder / "logs" / "driver.log", text, since=killed_at[0], fault="a trainer rank killed")
    return ended, engines


def test_the_run_ends_as_if_nothing_had_happened(ended):
    assert ended[0].code == 0, ended[0].stdout + ended[0].stderr
    assert ended[0].left_behind == []
    assert [record["step"] for record in ended[0].metrics] == list(range(1, STEPS + 1))
    assert (ended[0].folder / "export" / "model.safetensors").is_file()


def test_it_says_who_died_and_where_it_goes_on(ended):
    text = log(ended[0].folder)
    assert re.search(r"actor-\d died on .*Going back to step \d+ of 20; restart 1 of 3", text)
    assert "actor restarted; training continues after step " in text


def test_every_prompt_of_the_epoch_is_trained_on_once(ended):
    seen = [sample["prompt_id"] for step in range(1, STEPS + 1) for sample in ended[0].rollouts(step)]
    assert len(seen) == PROMPTS * STEPS * GROUP
    assert {seen.count(prompt) for prompt in seen} == {GROUP}


def test_the_engine_is_the_same(ended):
    before, after = ended[1]
    assert before
    assert before == after
