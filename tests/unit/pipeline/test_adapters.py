"""A stage that continues the adapters of an earlier one."""

import pytest

from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.config.roles import keeps_start
from ray_rl.errors import ConfigError
from ray_rl.pipeline.file import load_pipeline
from ray_rl.pipeline.stages import load_stages, makers_of, with_stand_ins

SFT = """\
run: {name: alone, steps: 4}
model: {path: smollm2-135m-instruct, adapter: {kind: lora, rank: 8, targets: [q_proj, v_proj]}}
data: {kind: jsonl, path: rows.jsonl}
algorithm: {kind: sft}
checkpoint: {export_adapter: peft}
cluster: {accelerator: cpu}
"""
DPO = """\
run: {name: alone, steps: 4}
model: {path: {stage: sft}}
data: {kind: jsonl, path: pairs.jsonl}
algorithm: {kind: dpo}
checkpoint: {export_adapter: peft}
cluster: {accelerator: cpu}
"""
PPO = """\
run: {name: alone, steps: 4}
model: {path: {stage: dpo}}
data: {kind: addition}
rewards: [{kind: number}]
algorithm: {kind: ppo, kl: {coefficient: 0.1}}
cluster: {accelerator: cpu}
"""
STAGES = """\
name: three
dir: all
stages:
  - {name: sft, config: sft.yaml}
  - {name: dpo, config: dpo.yaml}
  - {name: ppo, config: ppo.yaml}
"""
PLACE = "all/three"


@pytest.fixture
def stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("sft", SFT), ("dpo", DPO), ("ppo", PPO), ("pipeline", STAGES)):
        (tmp_path / f"{name}.yaml").write_text(text)

    def load(*overrides):
        return load_stages(load_pipeline(tmp_path / "pipeline.yaml", overrides))

    return load


def test_a_stage_starts_from_the_adapters_over_their_model(stages):
    sft, *later = stages()
    for stage, before in zip(later, ("sft", "dpo"), strict=True):
        model = stage.config.model
        assert (model.path, model.adapter.path) == ("smollm2-135m-instruct", f"{PLACE}/{before}/export")
        assert (model.adapter.rank, model.adapter.alpha, model.adapter.targets) == (8, 32.0, ["q_proj", "v_proj"])
        assert keeps_start(stage.config)
        assert stage.sources == (before,)
    assert later[0].config.train.learning_rate == 1e-5, "that of DPO with adapters"
    assert not keeps_start(sft.config)


def test_its_configuration_is_the_same_before_and_after_the_adapters_exist(stages, tmp_path):
    from tests.unit.config.test_continuing import write_folder

    before = [stage.config for stage in stages()]
    folder = tmp_path / PLACE / "sft" / "export"
    folder.parent.mkdir(parents=True)
    names = [
        f"base_model.model.model.layers.0.self_attn.{n}.lora_{p}.weight" for n in ("q_proj", "v_proj") for p in "AB"
    ]
    write_folder(folder, names=names, r=8, lora_alpha=32, use_rslora=False)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert [stage.config for stage in stages()] == before
    (tmp_path / "own.yaml").write_text(dump_config(before[1]))
    assert load_config(tmp_path / "own.yaml") == before[1], "as the process of the stage reads it"


def test_before_they_exist_the_stage_is_checked_with_new_adapters_of_their_size(stages):
    all_stages = stages()
    checked, _ = with_stand_ins(all_stages[2].config, makers_of(all_stages))
    assert checked.model.path == "smollm2-135m-instruct"
    assert (checked.model.adapter.path, checked.model.adapter.rank) == (None, 8)


def test_a_template_that_a_stage_changes_comes_with_its_adapters(stages):
    all_stages = stages("sft.model.chat_template=chatml.jinja")
    templates = [stage.config.model.chat_template for stage in all_stages]
    assert templates == [
        "chatml.jinja",
        f"{PLACE}/sft/export/chat_template.jinja",
        f"{PLACE}/dpo/export/chat_template.jinja",
    ]
    for stage in all_stages:
        assert with_stand_ins(stage.config, makers_of(all_stages))[0].model.chat_template == "chatml.jinja"
    assert stages("dpo.model.chat_template=own.jinja")[1].config.model.chat_template == "own.jinja"


def test_the_reference_of_a_later_stage_can_be_named(stages):
    _, dpo, _ = stages("dpo.reference.path={stage: sft}")
    assert dpo.config.reference.path == dpo.config.model.adapter.path
    assert keeps_start(dpo.config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "dpo.model.adapter={rank: 16}",
            "stage dpo: model.adapter.rank=16: the adapters of stage sft have 8, and their values mean nothing without "
            "it; remove it",
        ),
        (
            "ppo.critic.path={stage: sft}",
            "stage ppo: override 'critic.path={stage: sft}': critic.path=all/three/sft/export: the stage exports "
            "adapters without their model; set its checkpoint.export_adapter to merged",
        ),
        (
            "ppo.reference.path={stage: sft}",
            "stage ppo: override 'reference.path={stage: sft}': reference.path=all/three/sft/export: the stage exports "
            "adapters without their model; set its checkpoint.export_adapter to merged",
        ),
    ],
)
def test_what_does_not_fit_is_refused(stages, override, message):
    with pytest.raises(ConfigError) as caught:
        stages(override)
    assert str(caught.value) == message


def test_a_stage_with_a_merged_export_is_a_whole_model_as_before(stages):
    _, dpo, _ = stages("sft.checkpoint.export_adapter=merged", "dpo.checkpoint.export_adapter=merged")
    assert (dpo.config.model.path, dpo.config.model.adapter) == (f"{PLACE}/sft/export", None)
