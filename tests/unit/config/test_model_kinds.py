"""The kind of each model that a run loads: folders of the wrong kind are refused."""

import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.config.rules.check import check
from ray_rl.errors import ConfigError

LANGUAGE, SEQUENCES, STEPS = "Qwen2ForCausalLM", "Qwen2ForSequenceClassification", "Qwen2ForTokenClassification"
JUDGED = "rewards=[{kind: model, paths: [given]}]"
SCORER = """\
run: {name: test, steps: 10}
model: {path: given}
data: {kind: jsonl, path: rows.jsonl}
algorithm: {kind: reward_model}
cluster: {accelerator: cpu}
"""


@pytest.fixture
def given(write_model, tmp_path):
    """Writes the model folder `given` with an architecture, and a file of rows."""
    (tmp_path / "rows.jsonl").write_text("{}\n")

    def write(architecture, **settings):
        write_model("given", {"architectures": [architecture], **settings})

    return write


@pytest.mark.parametrize("architecture", [LANGUAGE, "GPT2LMHeadModel", "Gemma3ForConditionalGeneration"])
def test_a_language_model_gives_no_rewards(refused, given, architecture):
    given(architecture)
    assert refused(JUDGED) == (
        f"rewards.0.paths.0=given: is a language model ({architecture}) and no classifier, so it has no head that "
        "scores; train it with algorithm.kind=reward_model, and set rewards.0.paths.0 to the export of that run"
    )


def test_a_packaged_language_model_gives_no_rewards(refused):
    message = refused("rewards=[{kind: model, paths: [smollm2-135m-instruct]}]")
    assert message.startswith("rewards.0.paths.0=smollm2-135m-instruct: is a language model and no classifier")


def test_the_start_of_a_reward_model_that_is_trained_later_may_be_a_language_model(load, given):
    given(LANGUAGE)
    check(load(JUDGED), visible_gpus=0, stand_ins=["given"])


@pytest.mark.parametrize("key", ["model.path", "reference.path"])
@pytest.mark.parametrize(("architecture", "kind"), [(SEQUENCES, "a reward model"), (STEPS, "a process reward model")])
def test_a_model_that_scores_is_no_policy_and_no_reference(refused, given, key, architecture, kind):
    given(architecture)
    message = refused(f"{key}=given", "algorithm={kind: grpo, kl: {coefficient: 0.1}}")
    assert f"{key}=given: is {kind} ({architecture}), and " in message
    assert f" takes a language model; set {key} to the model of a run that trains one" in message


@pytest.mark.parametrize(
    ("kind", "own", "other"),
    [("reward_model", SEQUENCES, STEPS), ("process_reward_model", STEPS, SEQUENCES)],
)
def test_a_reward_model_starts_from_a_language_model_or_its_own_kind(write, given, kind, own, other):
    config = load_config(write(SCORER), [f"algorithm.kind={kind}"])
    for architecture in (LANGUAGE, own):
        given(architecture)
        check(config, visible_gpus=0)
    given(other)
    with pytest.raises(ConfigError) as caught:
        check(config, visible_gpus=0)
    wanted = f"algorithm.kind={kind} takes a language model or a {kind.replace('_', ' ')}; "
    assert wanted in str(caught.value)


def test_a_model_of_an_unknown_kind_is_left_to_transformers(passes, given):
    given("OwnModel")
    passes("model.path=given")
    given(SEQUENCES, num_labels=1)
    passes(JUDGED)
