"""A run that was interrupted and resumed is the run that was not, bit for bit."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ray_rl.checkpoint.export_marks import exported_step
from tests.system.e2e.command import LIMIT_S, Ended, kill_all, place_for, run, steps_done, wait_until, without_the_clock

# The fixtures are six runs and an export.
pytestmark = pytest.mark.timeout(1200)
STEPS = 6
PPO = {
    "kind": "ppo",
    "advantage": {"kind": "gae", "lam": 0.95, "whiten": {}},
    "kl": {"coefficient": 0.1, "place": "reward", "estimator": "k1", "control": {"kind": "adaptive", "target": 0.1}},
    "update_epochs": 1,
    "minibatches": 2,
}
ALGORITHMS = {"grpo": {}, "ppo": {"algorithm": PPO, "critic": {"workers": 1, "zero_stage": 3}}}
STOPS = {"grpo": signal.SIGTERM, "ppo": signal.SIGUSR1}
"""Sent in the middle of a step."""


def place(folder: Path, name: str, kind: str) -> Path:
    return place_for(
        folder,
        name,
        steps=STEPS,
        **ALGORITHMS[kind],
        run={"name": name, "steps": STEPS, "deterministic": True},
        train={"learning_rate": 1e-3, "workers": 2, "zero_stage": 3, "schedule": {"kind": "cosine"}},
        checkpoint={"every_steps": 3},
    )


@pytest.fixture(scope="module", params=["grpo", pytest.param("ppo", marks=pytest.mark.long)])
def whole(request, tmp_path_factory) -> tuple[str, Ended]:
    """Six steps without an interruption."""
    kind = request.param
    ended = run(place(tmp_path_factory.mktemp(f"whole-{kind}"), "whole", kind))
    assert ended.code == 0, ended.stderr
    return kind, ended


@pytest.fixture(scope="module")
def interrupted(whole, tmp_path_factory) -> list[Ended]:
    """Told to stop in step 2, made a model of, resumed, killed with all its processes in step 4, resumed to the end."""
    there = place(tmp_path_factory.mktemp(f"interrupted-{whole[0]}"), "parts", whole[0])
    folder = there / "runs" / "parts"

    def stop_in_step_2(process):
        wait_until(process, lambda: steps_done(folder) == 1)
        process.send_signal(STOPS[whole[0]])

    def kill_in_step_4(process):
        wait_until(process, lambda: (folder / "checkpoints" / "step_3").is_dir())
        kill_all(process.pid)

    stopped = run(there, then=stop_in_step_2)
    (step,) = (path.name.removeprefix("step_") for path in (folder / "checkpoints").iterdir())
    made = run(there, "export", str(folder), "--step", step, "--to", "model-of-stopped")
    return [
        stopped,
        run(there, "resume", str(folder), then=kill_in_step_4),
        run(there, "train", "run.yaml", "--resume", "auto"),
        made,
    ]


def test_told_to_stop_it_saves_ends_all_its_processes_and_asks_to_be_run_again(whole, interrupted):
    stopped = interrupted[0]
    assert stopped.code == 75, stopped.stdout + stopped.stderr
    assert stopped.left_behind == []
    name = STOPS[whole[0]].name
    assert re.search(rf"^{name}: .* the step\b.* and saving, within run\.grace_s=120", stopped.stdout, re.MULTILINE)
    folder = stopped.folder.relative_to(stopped.place)
    ending = rf"ray-rl: stopped by {name} after step \d of 6, saved; resume with: ray-rl resume {folder}\n"
    assert re.fullmatch(ending, stopped.stderr), stopped.stderr
    assert re.search(rf"^Stopped by {name} after step \d of 6, saved, in ", stopped.stdout, re.MULTILINE)
    assert "Traceback" not in stopped.stderr


def test_it_goes_on_behind_the_newest_checkpoint_and_says_so(interrupted):
    assert "resuming after step 3 of 6" in interrupted[2].stdout
    assert interrupted[2].code == 0, interrupted[2].stderr


def test_metrics_are_those_of_the_run_without_interruption(whole, interrupted):
    expected, seen = without_the_clock(whole[1].metrics), without_the_clock(interrupted[2].metrics)
    assert [record["step"] for record in seen] == list(range(1, STEPS + 1))
    assert json.dumps(seen) == json.dumps(expected)


def test_samples_are_those_of_the_run_without_interruption(whole, interrupted):
    for step in range(1, STEPS + 1):
        assert interrupted[2].rollouts(step) == whole[1].rollouts(step)


def test_the_weights_are_those_of_the_run_without_interruption(whole, interrupted):
    weights = [ended.folder / "export" / "model.safetensors" for ended in (whole[1], interrupted[2])]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert weights[0].read_bytes() != (whole[1].place / "model" / "model.safetensors").read_bytes()


def test_rewards_differ_so_that_there_is_something_to_compare(whole):
    assert any(record["reward/std"] > 0 for record in whole[1].metrics)
    assert len({record["policy/grad_norm"] for record in whole[1].metrics}) > 1


def test_old_checkpoints_are_gone_and_the_last_is_there(interrupted):
    names = sorted(path.name for path in (interrupted[2].folder / "checkpoints").iterdir())
    assert names == ["step_3", "step_6"]


def test_a_run_that_is_done_has_nothing_to_resume(interrupted):
    again = run(interrupted[2].place, "resume", str(interrupted[2].folder))
    assert again.code == 0
    assert "all 6 steps are done; raise run.steps to train on" in again.stdout


def test_what_would_make_nonsense_of_a_checkpoint_is_refused(interrupted):
    again = run(interrupted[2].place, "resume", str(interrupted[2].folder), "run.seed=7", "run.steps=9")
    assert again.code == 2
    assert "run.seed=7: the run had 0, and it determines the order of the prompts and the sampling" in again.stderr


def test_a_checkpoint_of_the_stopped_run_is_a_model_that_transformers_and_vllm_load_alike(whole, interrupted):
    made = interrupted[3]
    assert made.code == 0, made.stderr
    folder = made.place / "model-of-stopped"
    assert made.stdout.endswith(f" to {folder.name}\n")
    assert 1 <= exported_step(folder) < STEPS
    assert (folder / "model.safetensors").read_bytes() != (made.place / "model" / "model.safetensors").read_bytes()
    if whole[0] != "grpo":
        return  # the same code, and an engine takes half a minute
    token_ids = [12, 5, 14, 6, 20, 21, 9]
    by_transformers = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([token_ids])).logits[0].log_softmax(-1)
    expected = by_transformers[:-1].gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].tolist()
    command = [sys.executable, "-m", "tests.system.e2e.served", str(folder), *map(str, token_ids)]
    served = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert served.returncode == 0, served.stderr
    assert json.loads(served.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-3)
