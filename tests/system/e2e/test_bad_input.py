"""Every wrong input ends within seconds with exit code 2, one message, and nothing written."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_S = 5.0
CONFIG = """\
run: {name: first, steps: 2}
model: {path: smollm2-135m-instruct}
data: {kind: jsonl, path: train.jsonl, max_prompt_tokens: 100}
rewards: [{kind: number}]
algorithm: {kind: grpo, reduction: token_mean, kl: {coefficient: 0}}
rollout: {max_tokens: 24}
cluster: {accelerator: cpu}
"""
FIRST_LINE = "first: training {model} on CPU, 2 steps; checking data and models, then starting Ray\n"
ROW = json.dumps({"prompt": "What is 1+2?", "answer": "3"}) + "\n"


@pytest.fixture
def place(tmp_path):
    """A folder with a configuration and data that are right."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "train.jsonl").write_text(ROW * 3)
    return tmp_path


def everything_below(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def model_of(overrides):
    given = [word.partition("=")[2] for word in overrides if word.startswith("model.path=")]
    return given[-1] if given else "smollm2-135m-instruct"


def train(place, *overrides):
    """Runs the command as a user does; returns its message after the checks that hold for every wrong input."""
    before = everything_below(place)
    started = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).with_name("ray-rl"), "train", "run.yaml", *overrides],
        cwd=place,
        env={**os.environ, "HOME": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    took_s = time.monotonic() - started
    assert done.returncode == 2, done.stderr
    assert took_s < LIMIT_S
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("ray-rl: error: ")
    assert done.stderr.count("error: ") == 1
    # What a glance at the configuration finds comes before the line that says what is checked next.
    assert done.stdout in ("", FIRST_LINE.format(model=model_of(overrides)))
    assert everything_below(place) == before
    return done.stderr.removeprefix("ray-rl: error: ").rstrip("\n")


def test_an_unknown_key_names_its_line_and_the_nearest_key(place):
    with (place / "run.yaml").open("a") as file:
        file.write("train:\n  lerning_rate: 1e-5\n")
    assert train(place) == (
        "run.yaml:9: train.lerning_rate: unknown key, its value is 1e-05; did you mean train.learning_rate?"
    )


def test_a_missing_configuration_is_named(place):
    (place / "run.yaml").unlink()
    assert train(place) == "run.yaml: no such file; give the path of a YAML file"


def test_a_missing_model_folder_is_named(place):
    message = train(place, "model.path=./models/nope")
    assert message.startswith("model.path=./models/nope: no such model folder; set model.path to ")


def test_weights_that_were_cut_off_are_refused_before_anything_starts(place):
    model = place / "model"
    model.mkdir()
    (model / "config.json").write_text('{"max_position_embeddings": 4096}')
    header = json.dumps({"head": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(10))
    assert train(place, "model.path=./model") == (
        f"model.path=./model: model.safetensors has {8 + len(header) + 10} bytes, and its header describes "
        f"{8 + len(header) + 16}: the weights are incomplete or damaged; copy or download them again"
    )


def test_a_missing_data_file_is_named(place):
    message = train(place, "data.path=nope.jsonl")
    assert message == f"data.path=nope.jsonl: no such file ({place}/nope.jsonl); set data.path to a file that exists"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "What is 1+2?", "answer": \n', "JSON"),
        ('{"question": "What is 1+2?"}\n', "prompt"),
        ('["What is 1+2?"]\n', "object"),
        ('{"prompt": "What is 1+2?", "answer": "3', "JSON"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(place, row, words):
    (place / "train.jsonl").write_text(ROW + row + (ROW if row.endswith("\n") else ""))
    message = train(place)
    assert "train.jsonl:2" in message
    assert words in message


def test_a_group_of_one_is_refused(place):
    assert train(place, "algorithm.group_size=1") == (
        "algorithm.group_size=1: algorithm.advantage.kind=group compares the completions of a prompt with "
        "each other; set algorithm.group_size to 2 or more"
    )


def test_lengths_beyond_the_context_of_the_model_are_refused(place):
    message = train(place, "data.max_prompt_tokens=9000")
    assert message.startswith("data.max_prompt_tokens=9000 + rollout.max_tokens=24: 9024 tokens do not fit into the ")


def test_prompts_that_are_all_too_long_are_refused(place):
    model = place / "model"
    model.mkdir()
    (model / "config.json").write_text('{"max_position_embeddings": 64}')
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "What": 1}, "unk_token": "[UNK]"},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (place / "train.jsonl").write_text(json.dumps({"prompt": "What " * 41, "answer": "3"}) + "\n")
    message = train(place, "model.path=./model", "data.max_prompt_tokens=40", "data.chat=false")
    assert message.startswith("train.jsonl:1: 41 tokens ")
    assert "data.max_prompt_tokens=40" in message


def test_more_gpus_than_the_cluster_has_are_refused(place):
    message = train(place, "cluster.accelerator=gpu", "cluster.address=auto", "train.workers=16")
    assert "the cluster has 8 GPUs, but 17 GPUs are needed: actor 16 (train.workers) + engines 1 " in message


def test_more_gpus_than_this_machine_has_are_refused(place):
    message = train(place, "cluster.accelerator=gpu", "cluster.gpus_per_node=100", "train.workers=63")
    assert "but 64 GPUs are needed: actor 63 (train.workers) + engines 1 " in message
    assert "set cluster.accelerator=cpu, or cluster.address to a Ray cluster with enough GPUs" in message


def test_a_run_folder_that_exists_is_never_overwritten(place):
    (place / "runs" / "first").mkdir(parents=True)
    (place / "runs" / "first" / "metrics.jsonl").write_text("{}\n")
    assert train(place) == (
        "run.name=first: runs/first exists already, and a run folder is never overwritten; set run.name to a new name"
    )
