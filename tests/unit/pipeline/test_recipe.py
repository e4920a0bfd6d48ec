"""configs/rlhf_smollm2-135m_cpu: fine-tuning, a reward model and PPO on two cores."""

import json
import re
import runpy

import pytest

from ray_rl.pipeline.file import load_pipeline
from ray_rl.pipeline.stages import load_stages
from tests.test_architecture import ROOT

FOLDER = ROOT / "configs" / "rlhf_smollm2-135m_cpu"


@pytest.fixture
def stages():
    return {stage.name: stage for stage in load_stages(load_pipeline(FOLDER / "pipeline.yaml"))}


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def test_each_stage_starts_from_the_models_of_those_before(stages):
    assert {name: stage.sources for name, stage in stages.items()} == {
        "sft": (),
        "reward": ("sft",),
        "ppo": ("sft", "reward"),
    }
    assert [stage.config.algorithm.kind for stage in stages.values()] == ["sft", "reward_model", "ppo"]


def test_the_files_are_what_the_program_next_to_them_writes():
    program = runpy.run_path(str(FOLDER / "data.py"))
    assert list(program["demonstrations"](320)) == rows("demonstrations")
    assert list(program["comparisons"](480)) == rows("comparisons")


def test_the_rule_of_ppo_is_that_of_the_comparisons_and_has_no_part_in_the_reward(stages):
    model, rule = stages["ppo"].config.rewards
    assert (model.weight, rule.weight) == (1, 0)
    pairs = rows("comparisons")
    assert all(re.search(rule.pattern, pair["chosen"][0]["content"]) for pair in pairs)
    assert not any(re.search(rule.pattern, pair["rejected"][0]["content"]) for pair in pairs)


def test_half_of_the_demonstrations_follow_the_rule(stages):
    rule = stages["ppo"].config.rewards[1]
    answers = [row["messages"][1]["content"] for row in rows("demonstrations")]
    assert 0.4 < sum(bool(re.search(rule.pattern, answer)) for answer in answers) / len(answers) < 0.6
