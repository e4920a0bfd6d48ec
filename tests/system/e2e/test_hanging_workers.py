"""Workers that hang or die in a run: trainer, reference and reward model are restarted, and the run ends as planned."""

import os
import re
import signal
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from tests.driver_log import now, said
from tests.system.e2e.command import GROUP, PROMPTS, Ended, place_for, processes_of, run, steps_done, wait_until
from tests.tiny_reward_model import write_tiny_reward_model

pytestmark = pytest.mark.faults

STEPS = 40
"""Steps take a fraction of a second, and between two faults a few must be done."""
HEARTBEAT_S, LIMIT_S = 1.0, 12.0
KILL, STOP = signal.SIGKILL, signal.SIGSTOP


@dataclass
class Harm:
    """A signal for one worker, and what the log says from then on."""

    title: str
    """Of the process, as Ray names it."""
    signal: signal.Signals
    lost: str
    """The line that tells of the loss; NAME is the worker's."""
    back: str
    """The line that tells of the recovery."""
    name: str = ""
    """Of the worker that was harmed."""
    struck_at: datetime | None = None


SILENT = rf"NAME has not answered for 1[2-9]\.\d s \(cluster\.heartbeat_timeout_s={LIMIT_S:g}\) and is killed\."
DIED = r"NAME died on [\d.]+ \(process \d+: SYSTEM_ERROR.*"


@pytest.fixture(scope="module")
def harms():
    return [
        Harm(
            r"actor-\d\.update", STOP, rf"{SILENT} Going back to step \d+ of {STEPS}; restart 1 of 3", "actor restarted"
        ),
        Harm("reference", KILL, rf"{DIED} Restarting the reference; restart 1 of 3", "reference answers again"),
        Harm(
            "reference",
            STOP,
            rf"{SILENT} Restarting the reference; restart 2 of 3",
            "reference answers again",
        ),
        Harm("reward", KILL, rf"{DIED} Restarting the reward; restart 1 of 3", "reward answers again"),
        Harm("reward", STOP, rf"{SILENT} Restarting the reward; restart 2 of 3", "reward answers again"),
    ]


def log(folder: Path) -> str:
    file = folder / "logs" / "driver.log"
    return file.read_text() if file.exists() else ""


def pids(session: int, title: str) -> list[int]:
    return [int(line.split()[0]) for line in processes_of(session) if re.search(f"ray::{title}", line)]


def name_of(pid: int) -> str:
    """The worker that a process is, by its log file."""
    return Path(os.readlink(f"/proc/{pid}/fd/1")).stem


@pytest.fixture(scope="module")
def ended(tmp_path_factory, harms) -> Ended:
    place = tmp_path_factory.mktemp("hanging")
    write_tiny_reward_model(place / "judge")
    place_for(
        place,
        "hanging",
        steps=STEPS,
        data={"size": PROMPTS * STEPS},
        rewards=[{"kind": "number"}, {"kind": "model", "paths": ["./judge"], "weight": 0.1}],
        algorithm={"kl": {"coefficient": 0.1}},
        train={"workers": 2, "zero_stage": 3},
        checkpoint={"every_steps": 2},
        cluster={"heartbeat_s": HEARTBEAT_S, "heartbeat_timeout_s": LIMIT_S},
    )
    folder = place / "runs" / "hanging"

    def do(harm, process):
        step = steps_done(folder)
        wait_until(process, lambda: steps_done(folder) >= step + 3 and pids(process.pid, harm.title))
        victim = pids(process.pid, harm.title)[-1]
        harm.name = name_of(victim)
        backs = log(folder).count(harm.back)
        os.kill(victim, harm.signal)
        harm.struck_at = now()
        wait_until(process, lambda: log(folder).count(harm.back) > backs)

    def harm_all(process):
        for harm in harms:
            do(harm, process)

    return run(place, then=harm_all)


def test_the_run_ends_as_if_nothing_had_happened(ended):
    assert ended.code == 0, ended.stdout + ended.stderr
    assert ended.left_behind == []
    assert [record["step"] for record in ended.metrics] == list(range(1, STEPS + 1))
    assert (ended.folder / "export" / "model.safetensors").is_file()


def test_each_loss_names_the_worker_that_was_harmed_and_what_is_done(ended, harms):
    for harm in harms:
        fault = f"{harm.name} {harm.signal.name}"
        lost = said(ended.folder / "logs" / "driver.log", harm.name, since=harm.struck_at, fault=fault)
        assert re.search(harm.lost.replace("NAME", harm.name), lost.text), lost.text
        said(ended.folder / "logs" / "driver.log", harm.back, since=harm.struck_at, fault=fault)


def test_only_the_trainer_goes_back_to_a_checkpoint(ended):
    assert log(ended.folder).count("Going back to step") == 1


def test_every_prompt_of_the_epoch_is_trained_on_once(ended):
    seen = [sample["prompt_id"] for step in range(1, STEPS + 1) for sample in ended.rollouts(step)]
    assert len(seen) == PROMPTS * STEPS * GROUP
    assert {seen.count(prompt) for prompt in seen} == {GROUP}
