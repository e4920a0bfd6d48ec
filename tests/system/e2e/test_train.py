"""`ray-rl train` as a user runs it, on a model small enough for every machine: what it prints, leaves and ends."""

import json
import re
import tempfile
from pathlib import Path

import pytest

from ray_rl.config.loading.load import load_config
from tests.system.e2e.command import GROUP, PROMPTS, place_for, require_trained, run

STEPS = 2

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


@pytest.fixture(scope="module")
def temporary():
    """A folder for temporary files that is empty; its path is short enough for sockets below it."""
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, temporary):
    place = place_for(tmp_path_factory.mktemp("plain"), "plain", steps=STEPS)
    return run(place, environment={"TMPDIR": str(temporary)})


@pytest.fixture(scope="module")
def penalised(tmp_path_factory):
    algorithm = {"kl": {"coefficient": 0.1}, "update_epochs": 2, "minibatches": 2}
    return run(place_for(tmp_path_factory.mktemp("penalised"), "penalised", steps=STEPS, algorithm=algorithm))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """Adapters, for which the learning rate of the other runs would be small."""
    place = place_for(
        tmp_path_factory.mktemp("adapted"),
        "adapted",
        steps=STEPS,
        algorithm={"kl": {"coefficient": 0.1}},
        model={"adapter": {"kind": "lora", "rank": 4}},
        train={"learning_rate": 1e-2},
        checkpoint={"export_adapter": "peft"},
    )
    return run(place)


@pytest.fixture(scope="module", params=["plain", "penalised"])
def ended(request):
    return request.getfixturevalue(request.param)


def test_the_run_succeeds_and_every_step_trains_and_publishes(ended):
    require_trained(ended, STEPS)


def test_the_output_has_a_line_a_step_a_table_and_a_summary_and_no_control_characters(ended):
    lines = ended.stdout.splitlines()
    name = ended.folder.name
    assert lines[0] == f"{name}: training ./model on CPU, {STEPS} steps; checking data and models, then starting Ray"
    for step in range(1, STEPS + 1):
        assert sum(line.startswith(f"step {step}/{STEPS}  reward ") for line in lines) == 1
    steps = [line for line in lines if re.match(r"step \d/", line)]
    columns = {tuple(re.findall(r"[a-z][a-z/ ]*[a-z]", line)) for line in steps}
    assert len(columns) == 1
    assert any("What is " in line and " number " in line for line in lines)
    assert [re.split(r"\s{2,}", line)[-1] for line in lines[-4:]] == [
        f"vllm serve runs/{name}/export",
        f"ray-rl export runs/{name} --to my-model",
        f"tensorboard --logdir runs/{name}/tensorboard",
        f"ray-rl resume runs/{name} run.steps={2 * STEPS}",
    ]
    assert any(line.startswith(f"Done: {STEPS} of {STEPS} steps in ") for line in lines)
    unprintable = {char for char in ended.stdout + ended.stderr if not char.isprintable() and char != "\n"}
    assert not unprintable, ended.stderr


def test_nothing_but_the_run_speaks(ended):
    assert ended.stderr == ""


def test_no_process_is_left_behind(ended):
    assert ended.left_behind == []


def test_nothing_is_left_in_the_folder_for_temporary_files_and_in_shared_memory(plain, temporary):
    assert plain.code == 0
    # torch's own cache of compiled kernels is for later runs, too.
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
    assert [path.name for path in Path("/dev/shm").glob(f"*ray_rl-{plain.pid}-*")] == []


def test_nothing_is_written_beside_the_run_folder(ended):
    assert {path.name for path in ended.place.iterdir()} == {"model", "run.yaml", "runs"}
    assert [path.name for path in (ended.place / "runs").iterdir()] == [ended.folder.name]


def test_the_run_folder_is_the_owners_alone_and_has_what_is_promised(ended):
    assert ended.folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in ended.folder.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "environment.json",
        "export",
        "lock",
        "logs",
        "metrics.jsonl",
        "newest_checkpoint.json",
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


def test_adapters_are_trained_over_a_model_that_is_the_reference_and_merged_for_the_engines(plain, adapted):
    require_trained(adapted, STEPS)
    assert {path.name for path in (adapted.folder / "logs").iterdir()} == {"actor-0.log", "rollout-0.log"}
    first, second = adapted.metrics
    assert abs(first["policy/kl_reference"]) < 1e-6 < second["policy/kl_reference"]
    for line, of_plain in zip(adapted.metrics, plain.metrics, strict=True):
        assert line["sync/logprob_gap_mean"] < 1e-4
        assert line["sync/bytes"] < of_plain["sync/bytes"]


def test_checkpoints_and_exports_of_adapters_are_small_and_belong_to_the_model(plain, adapted):
    import torch
    from transformers import AutoModelForCausalLM

    small, large = (
        sum(file.stat().st_size for file in ended.folder.glob(f"checkpoints/step_{STEPS}/actor/*"))
        for ended in (adapted, plain)
    )
    assert small * 10 < large
    export = adapted.folder / "export"
    assert (export / "adapter_model.safetensors").is_file() and not (export / "model.safetensors").exists()
    assert (
        "vllm serve ./model --enable-lora --max-lora-rank 8 --lora-modules policy=runs/adapted/export" in adapted.stdout
    )
    tokens = torch.arange(4, 16)[None]
    with torch.no_grad():
        start, policy = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
            for folder in (adapted.place / "model", export)
        )
    assert (policy - start).abs().max() > 1e-3


@pytest.mark.long
def test_engines_sample_with_the_values_of_weights_in_4_bits(tmp_path):
    ended = run(
        place_for(
            tmp_path,
            "quantised",
            steps=STEPS,
            algorithm={"kl": {"coefficient": 0.1}},
            model={"adapter": {"kind": "lora", "rank": 4, "quantise": "nf4"}},
            train={"learning_rate": 1e-2},
        )
    )
    require_trained(ended, STEPS)
    first, second = ended.metrics
    assert abs(first["policy/kl_reference"]) < 1e-6 < second["policy/kl_reference"]
    assert max(line["sync/logprob_gap_mean"] for line in ended.metrics) < 1e-4
    assert (ended.folder / "export" / "model.safetensors").is_file()


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
