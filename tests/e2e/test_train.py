"""`ray-rl train` as a user runs it, on a model small enough for every machine: what it prints, leaves and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ray_rl.config.load import load_config
from tests.tiny_model import write_tiny_model

STEPS = 2
PROMPTS, GROUP = 4, 4
LIMIT_S = 400
GONE_WITHIN_S = 30.0

ALWAYS = {
    "step",
    "version",
    "reward/mean",
    "reward/std",
    "reward/number_mean",
    "rollout/tokens",
    "rollout/length_mean",
    "rollout/truncated_fraction",
    "rollout/staleness_max",
    "policy/loss",
    "policy/entropy",
    "policy/clip_fraction",
    "policy/grad_norm",
    "policy/learning_rate",
    "sync/logprob_gap_mean",
    "sync/bytes",
    "data/epoch",
    "throughput/tokens_per_s",
    "time/step_s",
    "time/rollout_s",
    "time/train_s",
    "time/sync_s",
}


@dataclass(frozen=True)
class Ended:
    """A run that ended."""

    command: list[str]
    place: Path
    folder: Path
    code: int
    stdout: str
    stderr: str
    left_behind: list[str]

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def rollouts(self, step: int) -> list[dict]:
        file = self.folder / "rollouts" / f"step_{step:06d}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]


def processes_of(session: int) -> list[str]:
    """Command lines of the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            line = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(f"{stat.parent.name} {line}")
    return found


def run(place: Path, *overrides: str, end_after_step: int | None = None) -> Ended:
    """The command in a session of its own, whose processes can be told from all others.

    Args:
        place: the folder to run in.
        overrides: of the configuration.
        end_after_step: send SIGTERM after this step.
    """
    command = [str(Path(sys.executable).with_name("ray-rl")), "train", "run.yaml", *overrides]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    process = subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    folder = place / "runs" / yaml.safe_load((place / "run.yaml").read_text())["run"]["name"]
    try:
        if end_after_step is not None:
            wait_for_step(process, folder / "metrics.jsonl", end_after_step)
            process.terminate()
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    give_up_s = time.monotonic() + GONE_WITHIN_S
    while (left := processes_of(process.pid)) and time.monotonic() < give_up_s:
        time.sleep(0.2)
    return Ended(command, place, folder, process.returncode, stdout.decode(), stderr.decode(), left)


def wait_for_step(process: subprocess.Popen, metrics: Path, step: int) -> None:
    give_up_s = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < give_up_s:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= step:
            return
        time.sleep(0.2)


def place_for(folder: Path, name: str, **algorithm: object) -> Path:
    write_tiny_model(folder / "model")
    config = {
        "run": {"name": name, "steps": STEPS},
        "model": {"path": "./model", "dtype": "float32"},
        "data": {"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        "rewards": [{"kind": "number", "require_stop": False}],
        "algorithm": {"prompts_per_step": PROMPTS, "group_size": GROUP, **algorithm},
        "rollout": {"max_tokens": 16, "max_sequences": 16, "kv_cache_gib": 0.05},
        "train": {"learning_rate": 1e-3},
        "cluster": {"accelerator": "cpu"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(place_for(tmp_path_factory.mktemp("plain"), "plain"))


@pytest.fixture(scope="module")
def penalised(tmp_path_factory):
    algorithm = {"kl": {"coefficient": 0.1}, "update_epochs": 2, "minibatches": 2}
    return run(place_for(tmp_path_factory.mktemp("penalised"), "penalised", **algorithm))


@pytest.fixture(scope="module", params=["plain", "penalised"])
def ended(request):
    return request.getfixturevalue(request.param)


def test_the_run_succeeds(ended):
    assert ended.code == 0, ended.stderr + ended.stdout


def test_the_output_has_a_line_a_step_a_table_and_a_summary_and_no_control_characters(ended):
    lines = ended.stdout.splitlines()
    for step in range(1, STEPS + 1):
        assert sum(line.startswith(f"step {step}/{STEPS}  reward ") for line in lines) == 1
    assert any("What is " in line for line in lines)
    assert any(line.startswith(f"Done: {STEPS} of {STEPS} steps in ") for line in lines)
    unprintable = {char for char in ended.stdout + ended.stderr if not char.isprintable() and char != "\n"}
    assert not unprintable, ended.stderr


def test_nothing_but_the_run_speaks(ended):
    assert ended.stderr == ""


def test_no_process_is_left_behind(ended):
    assert ended.left_behind == []


def test_nothing_is_written_beside_the_run_folder(ended):
    assert {path.name for path in ended.place.iterdir()} == {"model", "run.yaml", "runs"}
    assert [path.name for path in (ended.place / "runs").iterdir()] == [ended.folder.name]


def test_the_run_folder_is_the_owners_alone_and_has_what_is_promised(ended):
    assert ended.folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in ended.folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "export",
        "logs",
        "metrics.jsonl",
        "rollouts",
        "tensorboard",
        "trace.json",
    }


def test_every_role_and_rank_has_a_log(plain, penalised):
    assert {path.name for path in (plain.folder / "logs").iterdir()} == {"actor-0.log", "rollout-0.log"}
    assert {path.name for path in (penalised.folder / "logs").iterdir()} == {
        "actor-0.log",
        "reference-0.log",
        "rollout-0.log",
    }


def test_the_configuration_written_is_the_one_that_ran_and_loads_again(ended):
    given = load_config(ended.place / "run.yaml")
    assert load_config(ended.folder / "config.yaml") == given


def test_the_environment_written_names_versions_and_no_secret(ended):
    text = (ended.folder / "environment.json").read_text()
    assert json.loads(text)["packages"]["ray"]
    assert "token" not in text.lower()


def test_every_step_has_its_metrics(ended):
    assert [(line["step"], line["version"]) for line in ended.metrics] == [(1, 1), (2, 2)]
    for line in ended.metrics:
        assert line.keys() >= ALWAYS
        assert not [key for key, value in line.items() if value is None]
        assert line["rollout/staleness_max"] == 0
        assert line["sync/logprob_gap_mean"] < 1e-4
        assert line["policy/grad_norm"] > 0
        parts_s = sum(value for key, value in line.items() if key.startswith("time/") and key != "time/step_s")
        assert parts_s <= line["time/step_s"] + 0.01


def test_a_penalty_measures_the_distance_to_the_reference_and_several_optimizer_steps_clip(plain, penalised):
    assert "time/reference_s" not in plain.metrics[0]
    first, second = penalised.metrics
    assert "time/reference_s" in first
    # Four optimizer steps: from the second on, the policy has left the reference and the policy that sampled.
    assert first["policy/kl_reference"] > 0
    assert second["policy/kl_reference"] > 0
    assert first["policy/clip_fraction"] > 0


def test_every_sample_is_recorded(ended):
    assert len(list((ended.folder / "rollouts").iterdir())) == STEPS
    for step in range(1, STEPS + 1):
        samples = ended.rollouts(step)
        assert len(samples) == PROMPTS * GROUP
        assert len({sample["prompt_id"] for sample in samples}) == PROMPTS
        for sample in samples:
            assert sample["prompt"].startswith("What is ")
            assert sample["reward"] == sample["reward_parts"]["number"]
            assert sample["reward"] in (0.0, 1.0)
            assert sample["finish_reason"] in ("stop", "length")
            assert sample["length"] == len(sample["token_ids"]) <= 16
            assert sample["versions"] == [[step - 1, sample["length"]]]
        line = ended.metrics[step - 1]
        assert line["reward/mean"] == pytest.approx(sum(sample["reward"] for sample in samples) / len(samples))
        assert line["rollout/tokens"] == sum(sample["length"] for sample in samples)


def test_the_advantages_of_a_group_sum_to_zero_and_grow_with_the_reward(ended):
    samples = ended.rollouts(1)
    for start in range(0, len(samples), GROUP):
        group = samples[start : start + GROUP]
        assert sum(sample["advantage"] for sample in group) == pytest.approx(0, abs=1e-4)
        for sample in group:
            assert sample["advantage"] == 0 or (sample["advantage"] > 0) == (sample["reward"] == 1)


def test_tensorboard_has_events(ended):
    (events,) = (ended.folder / "tensorboard").iterdir()
    assert "tfevents" in events.name
    assert b"reward/mean" in events.read_bytes()


def test_the_trace_shows_the_phases(ended):
    trace = json.loads((ended.folder / "trace.json").read_text())
    events = trace["traceEvents"] if isinstance(trace, dict) else trace
    names = {event["name"] for event in events}
    assert names >= {"start", "rollout", "train", "sync", "export", "step 1", "step 2"}


def test_the_export_is_the_trained_model_in_hugging_face_format(ended):
    from safetensors.numpy import load_file

    before, after = (
        load_file(folder / "model.safetensors") for folder in (ended.place / "model", ended.folder / "export")
    )
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before)
    assert any((before[name] != after[name]).any() for name in before)
    assert {path.name for path in (ended.folder / "export").iterdir()} >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_second_run_into_the_same_folder_is_refused(plain):
    before = {path: path.stat().st_mtime_ns for path in plain.folder.rglob("*")}
    again = run(plain.place)
    assert again.code == 2
    assert again.stderr.startswith("ray-rl: error: run.name=plain: runs/plain exists already")
    assert {path: path.stat().st_mtime_ns for path in plain.folder.rglob("*")} == before


def test_a_run_that_is_told_to_end_ends_all_its_processes_and_says_how_far_it_came(tmp_path):
    terminated = run(place_for(tmp_path, "terminated"), "run.steps=100000", end_after_step=1)
    assert terminated.code == 128 + signal.SIGTERM
    assert terminated.left_behind == []
    assert "of 100000 after " in terminated.stdout.split("Stopped in step ")[1]
    assert terminated.metrics[0]["step"] == 1
    assert not (terminated.folder / "export").exists()
    assert "Traceback" not in terminated.stderr
