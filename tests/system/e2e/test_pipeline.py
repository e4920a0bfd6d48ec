"""A pipeline of two runs that is killed in the second one, and started again."""

import json

import pytest
import yaml

from ray_rl.checkpoint.export_marks import exported_step
from tests.system.e2e.command import place_for, run, steps_done, wait_until

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
