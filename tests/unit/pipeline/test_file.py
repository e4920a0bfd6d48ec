"""The file of a pipeline: stages, overrides, and references to earlier stages."""

import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.errors import ConfigError
from ray_rl.pipeline.file import load_pipeline
from ray_rl.pipeline.stages import load_stages, makers_of, with_stand_ins
from tests.unit.pipeline.conftest import RUN

REWARD = """\
run: {name: alone, steps: 4}
model: {path: {stage: sft}}
data: {kind: jsonl, path: pairs.jsonl}
algorithm: {kind: reward_model, members: 3}
cluster: {accelerator: cpu}
"""
PPO = """\
run: {name: alone, steps: 4}
model: {path: {stage: sft}}
data: {kind: addition}
rewards:
  - {kind: number, weight: 0}
  - {kind: model, paths: {stage: reward}}
algorithm: {kind: ppo, kl: {coefficient: 0.1}}
critic: {path: {stage: sft}}
reference: {path: {stage: sft}}
cluster: {accelerator: cpu}
"""
STAGES = """\
name: rlhf
dir: all
stages:
  - {name: sft, config: run.yaml, overrides: [model.chat_template=chatml.jinja]}
  - {name: reward, config: reward.yaml}
  - {name: ppo, config: ppo.yaml, overrides: [run.steps=6]}
"""

STEPS = "reward.algorithm={kind: process_reward_model}"
"""Makes the second stage one whose model scores steps, and not completions."""


@pytest.fixture
def file(tmp_path):
    for name, text in (("run", RUN), ("reward", REWARD), ("ppo", PPO), ("pipeline", STAGES)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path / "pipeline.yaml"


def stages(file, *overrides):
    return load_stages(load_pipeline(file, overrides))


def test_a_reference_becomes_the_folders_that_the_stage_will_export(file):
    sft, reward, ppo = stages(file)
    assert (sft.sources, reward.sources, ppo.sources) == ((), ("sft",), ("sft", "reward"))
    assert reward.config.model.path == "all/rlhf/sft/export"
    assert ppo.config.model.path == ppo.config.critic.path == ppo.config.reference.path == "all/rlhf/sft/export"
    assert ppo.config.rewards[1].paths == [f"all/rlhf/reward/export/member_{index}" for index in range(3)]


def test_every_stage_is_a_run_in_the_folder_of_the_pipeline(file):
    folders = [str(stage.folder.root) for stage in stages(file, "dir=/there", "name=b")]
    assert folders == ["/there/b/sft", "/there/b/reward", "/there/b/ppo"]


def test_an_override_of_the_command_line_has_precedence_over_those_of_the_stage(file):
    assert [stage.config.run.steps for stage in stages(file)] == [4, 4, 6]
    assert [stage.config.run.steps for stage in stages(file, "ppo.run.steps=2")] == [4, 4, 2]


def test_models_of_an_entry_can_come_from_several_places(file):
    *_, ppo = stages(file, "ppo.rewards.1.paths=[judge, {stage: reward}]", "reward.algorithm.members=1")
    assert ppo.config.rewards[1].paths == ["judge", "all/rlhf/reward/export"]


def test_a_reference_can_be_an_override(file):
    _, reward, ppo = stages(file, "ppo.critic.path={stage: reward}", "reward.algorithm.members=1")
    assert ppo.config.critic.path == reward.models[0] == "all/rlhf/reward/export"


def test_a_later_stage_is_checked_with_the_models_from_which_its_models_are_trained(file):
    sft, reward, ppo = stages(file)
    checked, stand_ins = with_stand_ins(ppo.config, makers_of([sft, reward, ppo]))
    assert (checked.model.path, checked.model.chat_template) == ("smollm2-135m-instruct", "chatml.jinja")
    assert checked.critic.path is None
    assert checked.reference.path is None
    assert checked.rewards[1].paths == ["smollm2-135m-instruct"] * 3
    assert stand_ins == {"smollm2-135m-instruct"}


def test_models_that_exist_are_checked_themselves(file):
    _, reward, ppo = stages(file)
    checked, stand_ins = with_stand_ins(ppo.config, makers_of([reward, ppo]))
    assert checked.model.path == "all/rlhf/sft/export"
    assert stand_ins == {"all/rlhf/sft/export"}
    assert with_stand_ins(ppo.config, makers_of([ppo])) == (ppo.config, frozenset())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["ppo.model.path={stage: stf}"],
            "stage ppo: override 'model.path={stage: stf}': there is no earlier stage stf; the earlier stages are "
            "sft, reward",
        ),
        (
            ["sft.model.path={stage: sft}"],
            "stage sft: override 'model.path={stage: sft}': there is no earlier stage sft; this is the first stage",
        ),
        (
            ["ppo.model.path={stage: reward}"],
            "stage ppo: override 'model.path={stage: reward}': the stage makes 3 models, and model.path takes one; set "
            "it to one of all/rlhf/reward/export/member_0, all/rlhf/reward/export/member_1, "
            "all/rlhf/reward/export/member_2",
        ),
        (
            ["sft.checkpoint.export=false"],
            "stage reward: HERE/reward.yaml:2: model.path={stage: sft}: stage sft exports no model "
            "(checkpoint.export=false); set that to true",
        ),
        (
            ["pop.run.steps=3"],
            "override 'pop.run.steps=3': pop is not a stage; did you mean ppo.run.steps? Write STAGE.key=value; the "
            "stages are sft, reward, ppo",
        ),
        (["ppo.run.stepz=3"], "stage ppo: override 'run.stepz=3': unknown key; did you mean run.steps?"),
        (
            ["ppo.rewards.1.paths={stage: sft}"],
            "stage ppo: HERE/ppo.yaml: rewards.1.paths.0={stage: sft}: stage sft makes a language model "
            "(algorithm.kind=grpo), and a reward takes a reward model; set rewards.1.paths.0 to the model of a run "
            "with algorithm.kind=reward_model",
        ),
        (
            ["ppo.model.path={stage: reward}", "reward.algorithm.members=1"],
            "stage ppo: HERE/ppo.yaml: model.path={stage: reward}: stage reward makes a reward model "
            "(algorithm.kind=reward_model), and algorithm.kind=ppo takes a language model; set model.path to the "
            "model of a run that trains one, for example with algorithm.kind=sft",
        ),
        (
            ["ppo.reference.path={stage: reward}", "reward.algorithm.members=1"],
            "stage ppo: HERE/ppo.yaml: reference.path={stage: reward}: stage reward makes a reward model "
            "(algorithm.kind=reward_model), and a reference takes a language model",
        ),
        (
            ["ppo.rewards=[{kind: number}]", "ppo.critic.path={stage: reward}", STEPS],
            "stage ppo: HERE/ppo.yaml: critic.path={stage: reward}: stage reward makes a process reward model "
            "(algorithm.kind=process_reward_model), and a critic takes a language model or a reward model",
        ),
        (
            [STEPS],
            "stage ppo: HERE/ppo.yaml: rewards.1.paths.0={stage: reward}: stage reward makes a process reward model "
            "(algorithm.kind=process_reward_model), and a reward takes a reward model",
        ),
        (["nmae=b"], "override 'nmae=b': unknown key; did you mean name?"),
        (["name=a.b"], "override 'name=a.b': must match pattern"),
    ],
)
def test_what_is_wrong_in_a_pipeline_is_said_with_its_place(file, overrides, message):
    with pytest.raises(ConfigError) as caught:
        stages(file, *overrides)
    assert str(caught.value).startswith(message.replace("HERE", str(file.parent)))


def test_a_system_prompt_is_refused_if_the_reward_model_will_be_trained_on_plain_text(file):
    prompt = "ppo.data.system_prompt=Be brief."
    assert len(stages(file, prompt)) == 3
    with pytest.raises(ConfigError) as caught:
        stages(file, prompt, "reward.data.chat=false")
    assert str(caught.value) == (
        f"stage ppo: {file.parent}/ppo.yaml: data.system_prompt='Be brief.': the reward model of stage reward is "
        "trained on plain text (data.chat=false), and reads no system message; remove data.system_prompt, or set "
        "reward.data.chat=true"
    )
    # The policy may have been trained on plain text.
    assert len(stages(file, prompt, "sft.data={kind: jsonl, path: a.jsonl, chat: false}")) == 3


def test_two_stages_of_one_name_are_refused(file):
    file.write_text(STAGES.replace("name: ppo", "name: sft"))
    with pytest.raises(ConfigError, match=r"pipeline.yaml:6: stages.2.name=sft: an earlier stage has the same name"):
        load_pipeline(file)


@pytest.mark.parametrize(("name", "reason"), [("launch", "launch.key=value sets"), ("lock", "has a file lock, where")])
def test_a_stage_cannot_have_a_name_that_the_pipeline_uses_otherwise(file, name, reason):
    file.write_text(STAGES.replace("name: ppo", f"name: {name}"))
    with pytest.raises(ConfigError, match=rf"pipeline.yaml:6: stages.2.name={name}: .*{reason}.*; rename the stage"):
        load_pipeline(file)


def test_the_file_of_a_pipeline_is_not_that_of_a_run(file):
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file}:3: stages: this is the file of a pipeline, for `ray-rl pipeline {file}`"


def test_a_reference_outside_of_a_pipeline_is_explained(file):
    with pytest.raises(ConfigError) as caught:
        load_config(file.parent / "reward.yaml")
    message = "reward.yaml:2: model.path={'stage': 'sft'}: refers to a stage, which only `ray-rl pipeline` knows"
    assert message in str(caught.value)
