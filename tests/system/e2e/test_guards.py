"""Runs that go wrong half way: each ends with its message and exit code, and leaves whole files.

Three runs show everything: one whose disk fills up, one whose reward functions misbehave, one whose weights become nan.
"""

import ipaddress
import json
import os
import re
import shutil
import struct
from pathlib import Path

import pytest
import yaml

from tests.system.e2e.command import place_for, run
from tests.system.e2e.small_disk import run_on_small_disk

DISK_KIB = 1200
NOTES = 20_000
"""Size of the tmpfs, and characters of a column that is recorded with each of a step's 16 samples: room for a few
steps, and it is samples that there is no room for then."""

REWARDS = """\
import time

calls = {"hangs": 0}

def returns_nan(completions, **columns):
    return [float("nan")] * len(completions)

def raises(completions, **columns):
    raise ValueError("no such answer")

def too_few(completions, **columns):
    return [0.5] * (len(completions) - 1)

def hangs(completions, **columns):
    # Later than the first step's four calls.
    calls["hangs"] += 1
    time.sleep(3600 if calls["hangs"] > 4 else 0)
    return [float(len(text) % 3) for text in completions]
"""


def change(place, *, data=None, rewards=None, **sections):
    path = place / "run.yaml"
    config = yaml.safe_load(path.read_text())
    config |= {"data": data or config["data"], "rewards": rewards or config["rewards"]}
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    path.write_text(yaml.safe_dump(config))
    return place


def records(path):
    """Every line of a file of lines; each must be whole."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def error_of(ended):
    """The message of a run that failed, without the log lines below it."""
    assert ended.code == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.left_behind == []
    (message,) = [line for line in ended.stderr.splitlines() if line.startswith("ray-rl: error: ")]
    return message.removeprefix("ray-rl: error: ")


def listening(pids):
    """Addresses that processes listen at, by process."""
    inodes = {}
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes[target[8:-1]] = pid
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                raw = bytes.fromhex(address)
                words = struct.unpack(f"<{len(raw) // 4}I", raw)
                packed = struct.pack(f">{len(words)}I", *words)
                found.append((ipaddress.ip_address(packed), int(port, 16), inodes[fields[9]]))
    return found


def pids_that_see_the_mounts_of(pid):
    """All processes of a run that has a namespace of mounts, whatever became of their parents."""
    own = os.readlink(f"/proc/{pid}/ns/mnt")
    found = []
    for entry in Path("/proc").glob("[0-9]*/ns/mnt"):
        try:
            if os.readlink(entry) == own:
                found.append(int(entry.parts[2]))
        except OSError:
            continue
    return found


def is_loopback(address):
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """A run whose folder is a small tmpfs, what it left there, and what its processes listened at."""
    place = place_for(tmp_path_factory.mktemp("full"), "full", steps=100_000)
    data = {"kind": "jsonl", "path": "train.jsonl", "max_prompt_tokens": 32}
    (place / "train.jsonl").write_text(
        json.dumps({"prompt": "What is 1+2?", "answer": "3", "notes": "x" * NOTES}) + "\n"
    )
    change(place, data=data, checkpoint={"export": False}, run={"samples": 0})
    sockets = []

    def look(process, inside):
        metrics = inside / "full" / "metrics.jsonl"
        if not sockets and metrics.is_file() and metrics.stat().st_size:
            sockets.extend(listening(pids_that_see_the_mounts_of(process.pid)))

    ended = run_on_small_disk(place, kib=DISK_KIB, environment={"HF_TOKEN": "hf_very_secret"}, meanwhile=look)
    return ended, sockets


def test_a_full_disk_ends_the_run_with_the_file_the_room_left_and_where_its_samples_are(full_disk):
    ended, _ = full_disk
    message = error_of(ended)
    assert message.startswith("cannot write runs/full/rollouts/step_0000")
    assert re.search(
        r"\.jsonl: No space left on device; 0\.\d MiB are free there\. Make room, or set run\.dir", message
    )
    kept = Path(message.rpartition(" are in ")[2])
    assert kept.name == f"step_{len(ended.metrics) + 1:06d}.jsonl"
    assert len(records(kept)) == 16
    shutil.rmtree(kept.parent)


def test_all_that_was_written_before_the_disk_was_full_is_whole(full_disk):
    ended, _ = full_disk
    steps = [line["step"] for line in records(ended.folder / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 1
    files = sorted(path.name for path in (ended.folder / "rollouts").iterdir())
    assert files == [f"step_{step:06d}.jsonl" for step in steps]
    assert {len(records(ended.folder / "rollouts" / name)) for name in files} == {16}
    assert json.loads((ended.folder / "trace.json").read_text())


def test_every_socket_of_a_local_run_listens_on_loopback(full_disk):
    _, sockets = full_disk
    assert len(sockets) > 5, "Ray, the trainer's group and the transfer group listen"
    elsewhere = [f"{address}:{port} of process {pid}" for address, port, pid in sockets if not is_loopback(address)]
    assert elsewhere == []


def test_the_run_folder_and_all_below_are_the_owners_alone(full_disk):
    ended, _ = full_disk
    folders = [path for path in (ended.folder, *ended.folder.rglob("*")) if path.is_dir()]
    assert {str(path): oct(path.stat().st_mode & 0o777) for path in folders} == {str(path): "0o700" for path in folders}


def test_no_secret_is_written_anywhere(full_disk):
    ended, _ = full_disk
    for path in (path for path in ended.folder.rglob("*") if path.is_file()):
        assert b"hf_very_secret" not in path.read_bytes(), path
    assert "hf_very_secret" not in ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def bad_rewards(tmp_path_factory):
    place = place_for(tmp_path_factory.mktemp("rewards"), "rewards", steps=2)
    (place / "users.py").write_text(REWARDS)
    skipping = [
        {"kind": "custom", "name": name, "function": f"users:{name}", "on_error": "skip"}
        for name in ("returns_nan", "raises", "too_few")
    ]
    hanging = {"kind": "custom", "name": "hangs", "function": "users:hangs", "timeout_s": 2}
    change(place, rewards=[*skipping, hanging], checkpoint={"export": False})
    return run(place, "rewards.0.options.api_key=sk-very-secret")


def test_rewards_that_misbehave_are_counted_where_they_may_be_skipped(bad_rewards):
    (line,) = bad_rewards.metrics
    for name in ("returns_nan", "raises", "too_few"):
        assert line[f"reward/{name}_errors"] == 16
    assert {sample["reward_parts"]["too_few"] for sample in bad_rewards.rollouts(1)} == {None}
    assert None not in {sample["reward"] for sample in bad_rewards.rollouts(1)}


def test_a_reward_that_hangs_is_killed_at_its_limit_and_its_samples_are_saved(bad_rewards):
    message = error_of(bad_rewards)
    assert message.startswith("reward 'hangs', prompt addition/")
    assert "users:hangs did not return within 2 s; its process was killed. Correct the function" in message
    file = bad_rewards.place / message.rpartition("The samples of the prompt are in ")[2]
    assert file.name == "step_000002.failed.jsonl"
    samples = records(file)
    assert len(samples) % 4 == 0
    assert {sample["reward"] for sample in samples} == {None}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        pytest.param(
            "returns_nan", "users:returns_nan returned nan. Correct the function or the data", marks=pytest.mark.long
        ),
        ("raises", "ValueError: no such answer"),
        pytest.param(
            "too_few",
            "users:too_few returned 3 values for 4 completions, not one for each. Correct the function",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_reward_that_misbehaves_ends_the_run_with_its_samples_saved(tmp_path, name, complaint):
    place = place_for(tmp_path, "fatal", steps=1)
    (place / "users.py").write_text(REWARDS)
    change(place, rewards=[{"kind": "custom", "name": name, "function": f"users:{name}"}], checkpoint={"export": False})
    ended = run(place)
    message = error_of(ended)
    assert message.startswith(f"reward '{name}', prompt addition/")
    assert complaint in message
    file = ended.place / message.rpartition("The samples of the prompt are in ")[2]
    assert file.name == "step_000001.failed.jsonl"
    assert {sample["reward"] for sample in records(file)} == {None}
    assert ended.metrics == []


def test_a_secret_in_the_configuration_is_not_in_its_record(bad_rewards):
    for path in (path for path in bad_rewards.folder.rglob("*") if path.is_file()):
        assert b"sk-very-secret" not in path.read_bytes(), path
    assert "api_key: '***'" in (bad_rewards.folder / "config.yaml").read_text()


@pytest.fixture(scope="module")
def nan_weights(tmp_path_factory):
    place = place_for(tmp_path_factory.mktemp("nan"), "nan", steps=9)
    train = {"learning_rate": 1e18, "on_nonfinite": "skip", "max_skips": 1}
    return run(change(place, train=train, checkpoint={"export": False}))


def test_weights_that_become_nan_skip_a_step_and_then_end_the_run(nan_weights):
    message = error_of(nan_weights)
    assert message.startswith("2 steps in a row had numbers that are not finite (train.max_skips=1); the last one: ")
    assert "the engine's log-probability of token 0, sampled by version 2, is nan; " in message
    assert [line["guard/skipped_steps"] for line in nan_weights.metrics] == [0, 1]
    assert "step 2 is skipped (1 in a row): prompt addition/" in nan_weights.stdout
    saved = nan_weights.place / message.rpartition("The step's samples are in ")[2]
    assert saved.name == "step_000003.failed.jsonl"
    assert len(records(saved)) == 16
