"""A pipeline of two runs that is killed in the second one, and started again."""

import json
import math
import shutil

import pytest
import yaml
from safetensors.torch import load_file

from ray_rl.checkpoint.export_marks import exported_step
from tests.system.e2e.command import place_for, run, steps_done, wait_until
from tests.tiny_model import write_tiny_model

FIRST_STEPS, SECOND_STEPS = 2, 5


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_pipeline_that_is_killed_in_its_second_stage_continues_there(tmp_path):
    place = place_for(tmp_path, "alone", steps=FIRST_STEPS, checkpoint={"every_steps": 1})
    second = [f"run.steps={SECOND_STEPS}", "model.path={stage: first}"]
    stages = [
        {"name": "first", "config": "run.yaml"},
        {"name": "second", "config": "run.yaml", "overrides": second, "show": ["reward/mean", "policy/entropy"]},
    ]
    (place / "pipeline.yaml").write_text(yaml.safe_dump({"name": "two", "stages": stages}))
    folder = place / "runs" / "two"

    def kill_in_second(process):
        wait_until(process, lambda: steps_done(folder / "second") >= 2)
        process.kill()

    killed = run(place, "pipeline", "pipeline.yaml", then=kill_in_second)
    assert killed.code == -9
    assert "two: 2 stages in runs/two\n  first: new\n  second: new\nstage first (1 of 2)\n" in killed.stdout
    trained_at = (folder / "first" / "metrics.jsonl").stat().st_mtime_ns

    ended = run(place, "pipeline", "pipeline.yaml")
    assert ended.code == 0, ended.stderr + ended.stdout
    assert "  first: done, is not trained again\n  second: was interrupted, is resumed\n" in ended.stdout
    assert "runs/two/second: resuming after step " in ended.stdout
    assert (folder / "first" / "metrics.jsonl").stat().st_mtime_ns == trained_at
    records = [json.loads(line) for line in (folder / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, SECOND_STEPS + 1))
    assert exported_step(folder / "first" / "export") == FIRST_STEPS
    assert exported_step(folder / "second" / "export") == SECOND_STEPS
    trained_from = yaml.safe_load((folder / "second" / "config.yaml").read_text())["model"]["path"]
    assert trained_from == "runs/two/first/export"
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert ["first", "done", "before", str(FIRST_STEPS)] in [row[:4] for row in rows]
    assert ["second", "resumed", str(SECOND_STEPS)] in [row[:3] for row in rows]
    assert any(row[:1] == ["policy/entropy"] for row in rows)

    assert run(place, "pipeline", "pipeline.yaml").code == 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_preferences_continue_the_adapters_of_supervised_fine_tuning(tmp_path):
    write_tiny_model(tmp_path / "model")
    pairs = [
        {"prompt": f"What is {i}+1?", "chosen": f"the sum is {i + 1}", "rejected": f"a number {i}"} for i in range(40)
    ]
    shown = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    files = {"sft": "run.yaml", "dpo": "dpo.yaml"}
    for name, rows in (("sft", shown), ("dpo", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "run": {"name": "alone", "steps": 4},
            "model": {"path": "./model", "dtype": "float32", "adapter": {"rank": 4}}
            if name == "sft"
            else {"path": {"stage": "sft"}, "dtype": "float32"},
            "data": {"kind": "jsonl", "path": f"{name}.jsonl", "max_tokens": 64},
            "algorithm": {"kind": name, "batch_size": 8},
            "train": {"learning_rate": 1e-2},
            "checkpoint": {"export_adapter": "peft", "every_steps": 2},
            "cluster": {"accelerator": "cpu"},
        }
        (tmp_path / files[name]).write_text(yaml.safe_dump(config))
    stages = [{"name": name, "config": file} for name, file in files.items()]
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"name": "two", "stages": stages}))
    folder = tmp_path / "runs" / "two"

    dry = run(tmp_path, "pipeline", "pipeline.yaml", "--dry-run")
    assert dry.code == 0, dry.stderr + dry.stdout
    ended = run(tmp_path, "pipeline", "pipeline.yaml")
    assert ended.code == 0, ended.stderr + ended.stdout
    sft, dpo = (load_file(folder / name / "export" / "adapter_model.safetensors") for name in ("sft", "dpo"))
    assert sft.keys() == dpo.keys() and all(sft[name].abs().max() > 0 for name in sft)
    changed = max(float((sft[name] - dpo[name]).abs().max()) for name in sft)
    assert changed > 1e-3
    first, *_, last = (json.loads(line) for line in (folder / "dpo" / "metrics.jsonl").read_text().splitlines())
    # The policy starts as its reference: with the adapters of the first stage, and not with the bare model.
    assert first["dpo/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["dpo/loss"] < 0.6
    (header, *_) = map(json.loads, (folder / "dpo" / "reference.jsonl").read_text().splitlines())
    assert header["adapter"].startswith("blake2b-sampled:")
    assert run(tmp_path, "pipeline", "pipeline.yaml").code == 0, "nothing has changed"

    # The adapters of the reference must stay: other ones in their place end a resume.
    shutil.copyfile(folder / "dpo/export/adapter_model.safetensors", folder / "sft/export/adapter_model.safetensors")
    refused = run(tmp_path, "resume", str(folder / "dpo"), "run.steps=6")
    assert refused.code == 2
    assert "model.adapter.path=" in refused.stderr and "the reference has those adapters" in refused.stderr
