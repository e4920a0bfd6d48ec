"""`ray-rl train` on given examples: what it learns, what it leaves, and that an interruption changes no bit of it."""

import json
import math
import os
import re
import signal
from pathlib import Path

import pytest
import yaml

from ray_rl.checkpoint.export_marks import exported_step
from tests.algorithm import algorithm
from tests.driver_log import now, said
from tests.system.e2e.command import Ended, kill_all, processes_of, run, steps_done, wait_until, without_the_clock
from tests.tiny_model import write_tiny_model

# The fixtures are up to four starts of a run.
pytestmark = pytest.mark.timeout(1200)
STEPS = 8


def pairs() -> list[dict]:
    return [
        {"prompt": f"What is {i}+1?", "chosen": f"the sum is {i + 1}", "rejected": f"a number {i % 3}"}
        for i in range(40)
    ]


def demonstrations() -> list[dict]:
    turns = [(("user", row["prompt"]), ("assistant", row["chosen"])) for row in pairs()]
    return [{"messages": [{"role": role, "content": content} for role, content in row]} for row in turns]


def place_for(folder: Path, kind: str, *, is_exact: bool, adapter: dict | None = None) -> Path:
    """A folder with a tiny model, data of the kind, and a `run.yaml` for them."""
    write_tiny_model(folder / "model")
    rows = demonstrations() if kind == "sft" else pairs()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"name": kind, "steps": STEPS, "evaluate_every": 2, "deterministic": is_exact},
        "model": {"path": "./model", "dtype": "float32", "adapter": adapter},
        "data": {"kind": "jsonl", "path": "rows.jsonl", "held_out": 0.2, "max_tokens": 64},
        "algorithm": {"kind": kind, "batch_size": 8},
        "train": {"learning_rate": 1e-3, "workers": 2 if is_exact else 1, "zero_stage": 3 if is_exact else 1},
        "checkpoint": {"every_steps": 3, "keep_best": "eval/loss", "keep_last": 1},
        "cluster": {"accelerator": "cpu"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module", params=["dpo", pytest.param("sft", marks=pytest.mark.long)])
def whole(request, tmp_path_factory) -> Ended:
    """All steps without an interruption."""
    ended = run(place_for(tmp_path_factory.mktemp(f"whole-{request.param}"), request.param, is_exact=True))
    assert ended.code == 0, ended.stderr + ended.stdout
    return ended


@pytest.fixture(scope="module")
def interrupted(whole, tmp_path_factory) -> list[Ended]:
    """Killed, told to stop in a step of the next start, resumed to the end.

    DPO is killed while its reference scores examples, SFT behind its first checkpoint.
    """
    kind = whole.folder.name
    place = place_for(tmp_path_factory.mktemp(f"interrupted-{kind}"), kind, is_exact=True)
    folder = place / "runs" / kind

    def kill_early(process):
        awaited = "reference.jsonl" if kind == "dpo" else "checkpoints/step_*/manifest.json"
        wait_until(process, lambda: any(folder.glob(awaited)), poll_s=0.01)
        kill_all(process.pid)

    def has_trained_on() -> bool:
        """The file is written when the records of later steps are set aside: no line is of the start before."""
        starts = [int(path.stem.rpartition("_")[2]) for path in folder.glob("environment.from_step_*.json")]
        return (kind == "dpo" or bool(starts)) and steps_done(folder) >= max([1, *starts])

    def stop_in_a_step(process):
        wait_until(process, has_trained_on, poll_s=0.01)
        process.send_signal(signal.SIGTERM)

    return [
        run(place, then=kill_early),
        run(place, "train", "run.yaml", "--resume", "auto", then=stop_in_a_step),
        run(place, "resume", str(folder)),
    ]


def test_an_interrupted_run_has_the_metrics_of_one_that_was_left_alone(whole, interrupted):
    stopped, resumed = interrupted[1:]
    assert stopped.code == 75, stopped.stderr + stopped.stdout
    assert resumed.code == 0, resumed.stderr + resumed.stdout
    expected, seen = without_the_clock(whole.metrics), without_the_clock(resumed.metrics)
    assert [record["step"] for record in seen] == list(range(1, STEPS + 1))
    assert json.dumps(seen) == json.dumps(expected)


def test_an_interrupted_run_has_the_weights_and_the_reference_of_one_that_was_left_alone(whole, interrupted):
    files = ["export/model.safetensors", "export/ray_rl.json"]
    if whole.folder.name == "dpo":
        files.append("reference.jsonl")
    for file in files:
        assert (interrupted[2].folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
    assert (whole.folder / "export/model.safetensors").read_bytes() != (
        whole.place / "model/model.safetensors"
    ).read_bytes()


def test_a_fresh_policy_is_its_reference_so_that_the_loss_of_dpo_begins_at_log_2(whole):
    first = whole.metrics[0]
    if whole.folder.name == "dpo":
        assert first["dpo/loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert abs(first["dpo/margin"]) < 1e-5
        last = whole.metrics[-1]  # the last batch of held-out pairs has fewer pairs than there are workers
        assert last["eval/margin"] == pytest.approx(last["eval/chosen_reward"] - last["eval/rejected_reward"], rel=1e-4)
    assert whole.metrics[-1]["eval/loss"] < whole.metrics[1]["eval/loss"]


def test_the_examples_of_each_step_are_in_the_run_folder_and_the_checkpoints_are_the_last_and_the_best(whole):
    files = sorted((whole.folder / "examples").iterdir())
    ids = [[json.loads(line)["id"] for line in file.read_text().splitlines()] for file in files]
    assert [len(step) for step in ids] == [8] * STEPS
    assert len({id for step in ids[:3] for id in step}) == 24  # no example comes twice in an epoch
    evaluated = {record["step"]: record["eval/loss"] for record in whole.metrics if "eval/loss" in record}
    best = min(evaluated, key=lambda step: evaluated[step])
    names = {path.name for path in (whole.folder / "checkpoints").iterdir()}
    assert names == {f"step_{best}", f"step_{STEPS}"}
    assert exported_step(whole.folder / "export") == best
    made = run(whole.place, "export", str(whole.folder), "--to", "copy")
    assert made.stdout.startswith(f"exported step {best} of "), made.stderr
    again = run(whole.place, "resume", str(whole.folder))
    assert (again.code, f"all {STEPS} steps are done; raise run.steps to train on" in again.stdout) == (0, True)


@pytest.mark.faults
@pytest.mark.parametrize("whole", ["dpo"], indirect=True)
def test_a_run_whose_trainer_is_killed_ends_with_the_metrics_and_weights_of_one_that_was_left_alone(whole, tmp_path):
    place = place_for(tmp_path, "dpo", is_exact=True)
    folder, killed_at = place / "runs" / "dpo", []

    def kill_a_rank(process):
        wait_until(process, lambda: steps_done(folder) >= 1, poll_s=0.01)
        ranks = [int(line.split()[0]) for line in processes_of(process.pid) if re.search(r" ray::actor-\d", line)]
        assert len(ranks) == 2
        # A step behind a checkpoint, so that there are steps to train again.
        wait_until(process, lambda: steps_done(folder) >= 4, poll_s=0.01)
        killed_at.append(now())
        os.kill(ranks[-1], signal.SIGKILL)

    ended = run(place, then=kill_a_rank)
    assert (ended.code, ended.left_behind) == (0, []), ended.stderr + ended.stdout
    log, fault = folder / "logs" / "driver.log", "a rank of a run on examples killed"
    lost = said(log, "Going back", since=killed_at[0], fault=fault)
    assert re.search(rf"actor-\d died on .*Going back to step \d of {STEPS}; restart 1 of 3", lost.text)
    said(log, "actor restarted; training continues after step ", since=killed_at[0], fault=fault)
    assert json.dumps(without_the_clock(ended.metrics)) == json.dumps(without_the_clock(whole.metrics))
    weights = "export/model.safetensors"
    assert (folder / weights).read_bytes() == (whole.folder / weights).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("whole", ["dpo"], indirect=True)
def test_a_live_reference_gives_the_metrics_of_a_stored_one(whole, tmp_path):
    ended = run(place_for(tmp_path, "dpo", is_exact=True), "reference.when=during")
    assert ended.code == 0, ended.stderr + ended.stdout
    assert not (ended.folder / "reference.jsonl").exists()
    live, stored = without_the_clock(ended.metrics), without_the_clock(whole.metrics)
    assert [record["step"] for record in live] == list(range(1, STEPS + 1))
    # The batches of the two references differ, and so may the last bits of their numbers.
    for found, expected in zip(live, stored, strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.long
def test_adapters_have_the_same_metrics_with_a_live_reference_as_with_a_stored_one(tmp_path):
    """The reference is the policy without its adapters, before training and in every step."""
    ended = []
    for when in ("before", "during"):
        place = place_for(tmp_path / when, "dpo", is_exact=True, adapter={"kind": "lora", "rank": 4})
        ended.append(run(place, f"reference.when={when}", "train.learning_rate=1e-2"))
        assert ended[-1].code == 0, ended[-1].stderr + ended[-1].stdout
        assert {path.name for path in (ended[-1].folder / "logs").glob("*-*")} == {"actor-0.log", "actor-1.log"}
    stored, live = (without_the_clock(each.metrics) for each in ended)
    assert stored[0]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert stored[-1]["eval/loss"] < stored[1]["eval/loss"]
    for found, expected in zip(live, stored, strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def reward_models(tmp_path_factory) -> Ended:
    """An ensemble of two."""
    place = place_for(tmp_path_factory.mktemp("reward"), "reward_model", is_exact=False)
    ended = run(place, "algorithm.members=2")
    assert ended.code == 0, ended.stderr + ended.stdout
    return ended


def test_an_ensemble_learns_to_tell_the_answers_and_its_exports_are_the_judges_of_a_run(reward_models, monkeypatch):
    import torch

    from ray_rl.app.models import build_reward_models
    from ray_rl.app.sources import folders_of
    from ray_rl.config import RunConfig
    from ray_rl.config.roles import REWARD
    from ray_rl.training.member import Member
    from ray_rl.types import Message

    last = reward_models.metrics[-1]
    assert last["eval/accuracy"] == 1.0
    assert last["eval/loss"] < 0.6 < reward_models.metrics[0]["reward_model/loss"]

    (line,) = re.findall(r"use it +(rewards: .*)", reward_models.stdout)
    judged = {
        "run": {"name": "judged", "steps": 1},
        "model": {"path": "./model", "dtype": "float32"},
        "data": {"kind": "addition"},
        "algorithm": algorithm(),
        "cluster": {"accelerator": "cpu"},
    }
    config = RunConfig.model_validate(judged | yaml.safe_load(line))
    monkeypatch.chdir(reward_models.place)
    folders = folders_of(config, "./model")[REWARD]
    assert [Path(folder).name for folder in folders] == ["member_0", "member_1"]
    judges = build_reward_models(config, folders, Member(0, 1, "127.0.0.1", 0), threads=torch.get_num_threads())
    rows = pairs()
    chosen_MR, rejected_MR = (
        judges.scores([(Message("user", row["prompt"]), Message("assistant", row[side])) for row in rows])[0]
        for side in ("chosen", "rejected")
    )
    assert chosen_MR.shape == (2, len(rows))
    assert (chosen_MR > rejected_MR).all()
    assert abs(chosen_MR[0] - chosen_MR[1]).min() > 1e-4  # each has a head and a sample of its own


EPOCHS, PATIENCE = 20, 2


@pytest.fixture(scope="module")
def stalled(tmp_path_factory) -> Ended:
    """SFT with time for many more steps than improve it."""
    place = place_for(tmp_path_factory.mktemp("stalled"), "sft", is_exact=False)
    settings = ["run.steps=null", f"run.epochs={EPOCHS}", f"run.patience={PATIENCE}", "train.learning_rate=3e-3"]
    ended = run(place, *settings)
    assert ended.code == 0, ended.stderr + ended.stdout
    return ended


def test_sft_lowers_the_loss_and_says_before_the_start_what_it_takes_the_data_for(stalled):
    losses = [record["sft/loss"] for record in stalled.metrics]
    assert losses[-1] < losses[0] - 1
    assert "rows.jsonl is read as messages" in stalled.stderr
    written = yaml.safe_load((stalled.folder / "config.yaml").read_text())
    trained_on = int(re.search(r"demonstrations to train on: (\d+)", stalled.stderr)[1])
    assert (written["run"]["steps"], written["run"]["epochs"]) == (EPOCHS * trained_on // 8, None)
    assert not {"rollout", "rewards", "weight_sync"} & written.keys()


def test_a_run_out_of_patience_ends_and_exports_its_best_step_and_a_resume_has_nothing_to_do(stalled):
    evaluated = {record["step"]: record["eval/loss"] for record in stalled.metrics if "eval/loss" in record}
    best, last = min(evaluated, key=lambda step: evaluated[step]), stalled.metrics[-1]["step"]
    planned = yaml.safe_load((stalled.folder / "config.yaml").read_text())["run"]["steps"]
    assert best + 2 * PATIENCE == last < planned  # an evaluation every two steps
    text = f"eval/loss was best after step {best}, {evaluated[best]:.4g}, and {PATIENCE} evaluations since then were"
    assert f"{text} not better; the run ends after step {last} of {planned}\n" in stalled.stdout
    assert f"Done: {last} of {planned} steps in " in stalled.stdout
    assert "run.patience=null" in stalled.stdout
    names = {path.name for path in (stalled.folder / "checkpoints").iterdir()}
    assert names == {f"step_{best}", f"step_{last}"}
    assert exported_step(stalled.folder / "export") == best
    before = (stalled.folder / "export" / "model.safetensors").read_bytes()

    again = run(stalled.place, "resume", str(stalled.folder))
    assert again.code == 0, again.stderr
    assert f"the run ended early, after step {last} of " in again.stdout
    assert f"(run.patience={PATIENCE}); set run.patience=null to train on\n" in again.stdout
    assert again.metrics == stalled.metrics
    assert (stalled.folder / "export" / "model.safetensors").read_bytes() == before
