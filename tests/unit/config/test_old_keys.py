import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.config.loading.old_keys import doubt, migrated
from ray_rl.errors import ConfigError

RUN = "run: {name: test, steps: 10}\nmodel: {path: smollm2-135m-instruct}\ndata: {kind: addition}\n"
OLD_GRPO = "algorithm: {kind: grpo, reduction: token_mean, kl: {coefficient: 0.0}}\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("algorithm: {preset: dapo, group_size: 4}  # ours\n", "algorithm: {kind: dapo, group_size: 4}  # ours\n"),
        ("algorithm: {kind: ppo, preset: ppo}\n", "algorithm: {kind: ppo}\n"),
        ("algorithm:\n  # ours\n  kind: grpo\n  preset: gspo\n", "algorithm:\n  # ours\n  kind: gspo\n"),
        ("algorithm: {kind: grpo, preset: null}\n", OLD_GRPO),
        (
            "algorithm: {prompts_per_step: 4, kl: {coefficient: 0.1}}\n",
            "algorithm: {kind: grpo, prompts_per_step: 4, kl: {coefficient: 0.1}, reduction: token_mean}\n",
        ),
        ("", OLD_GRPO),
        ("algorithm: {kind: dapo}\n", "algorithm: {kind: dapo}\n"),
        # It may be of either version.
        ("algorithm: {kind: grpo}\n", "algorithm: {kind: grpo}\n"),
    ],
)
def test_a_file_is_rewritten_with_its_comments_and_layout(old, new):
    assert migrated(RUN + old, "run.yaml") == RUN + new
    assert migrated(RUN + new, "run.yaml") == RUN + new


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("algorithm: {kind: grpo}\n", OLD_GRPO),
        ("algorithm: {preset: grpo}\n", "algorithm: {kind: grpo}\n"),
        (
            "algorithm: {kind: ppo, advantage: {kind: gae}, kl: {coefficient: 0.1, place: reward}}\n",
            "algorithm: {kind: ppo, advantage: {kind: gae}, kl: {coefficient: 0.1, place: reward, estimator: k3}, "
            "group_size: 8, update_epochs: 1}\n",
        ),
    ],
)
def test_the_defaults_of_an_older_version_are_written_out_where_they_were_others(old, new):
    assert migrated(RUN + old, "run.yaml", is_from_0_1=True) == RUN + new


@pytest.mark.parametrize("text", ["extends: base.yaml\nalgorithm: {group_size: 4}\n", "queue: gpu\nretries: 1\n"])
def test_a_file_that_is_only_a_part_gets_no_defaults(text):
    assert migrated(text, "part.yaml", is_from_0_1=True) == text


def test_a_file_that_may_mean_something_else_now_is_told_of():
    assert doubt(RUN + "algorithm: {kind: grpo, reduction: token_mean}\n", "run.yaml") == (
        "run.yaml:4: algorithm.kind=grpo without these keys meant algorithm.kl.coefficient=0.0 in version 0.1; if the "
        "file was written for that version, run `ray-rl migrate --from 0.1 run.yaml`, which adds these values"
    )
    assert doubt(RUN + OLD_GRPO, "run.yaml") is None
    assert doubt(RUN + "algorithm: {preset: grpo}\n", "run.yaml") is None
    assert doubt(RUN + "algorithm: {kind: dapo}\n", "run.yaml") is None


def test_an_old_key_is_refused_with_the_new_one_and_the_command(write):
    write(RUN + "algorithm:\n  preset: dapo\n", "my run.yaml")
    write("extends: my run.yaml\n", "child.yaml")
    for file in ("my run.yaml", "child.yaml"):
        with pytest.raises(ConfigError) as caught:
            load_config(file)
        assert str(caught.value) == (
            "my run.yaml:5: algorithm.preset=dapo: a key of an older version; algorithm.kind now names the algorithm; "
            "set algorithm.kind=dapo, or rewrite the file with `ray-rl migrate 'my run.yaml'`"
        )


def test_an_old_key_in_an_override_is_refused_with_the_new_one(load):
    with pytest.raises(ConfigError) as caught:
        load("algorithm.preset=ppo")
    assert str(caught.value) == (
        "override 'algorithm.preset=ppo': a key of an older version; algorithm.kind now names the algorithm; set "
        "algorithm.kind=ppo"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "rewards: [{kind: number}]\nreward: {paths: [a/b], weight: 0.1}\ncluster: {nodes: 1}\n",
            "rewards: [{kind: number}, {kind: model, paths: [a/b], weight: 0.1}]\ncluster: {nodes: 1}\n",
        ),
        (
            "rewards:\n  - kind: number  # right\nreward:\n  paths: [a/b]\n  workers: 2\n",
            "rewards:\n  - kind: number  # right\n  - {kind: model, paths: [a/b], workers: 2}\n",
        ),
        ("rewards: [{kind: number}]\nreward: null\n", "rewards: [{kind: number}]\n"),
    ],
)
def test_reward_models_become_an_entry_of_rewards(old, new):
    assert migrated(RUN + OLD_GRPO + old, "run.yaml") == RUN + OLD_GRPO + new


def test_the_section_of_reward_models_is_refused_with_the_key_that_replaced_it(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(RUN + OLD_GRPO + "reward: {paths: [a/b]}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    assert "reward models are now an entry of rewards; move these settings to an entry with kind: model" in str(
        raised.value
    )


@pytest.mark.parametrize(
    "algorithm",
    [
        '{"algorithm": {"preset":"dapo","clip":[0.2,0.28]}}',
        'algorithm: {kind: "grpo" # a, b, c\n  , preset: dapo}\n',
        "? algorithm\n: preset: dapo\n? reward\n: paths: [a]\n",
    ],
    ids=["a key that would lose its space", "a comma in a comment", "an explicit key"],
)
def test_a_layout_that_an_edit_would_damage_is_refused(algorithm):
    with pytest.raises(ConfigError, match=r"run\.yaml: \S+ cannot be rewritten in this layout of the file"):
        migrated(algorithm, "run.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("reward: foo\n", "run.yaml:1: reward=foo is not a mapping; correct it"),
        ("reward: [a]\n", "run.yaml:1: reward=['a'] is not a mapping; correct it"),
        ("algorithm: {preset: {a: 1}}\n", "run.yaml:1: algorithm.preset={'a': 1} is not a name; correct it"),
        ("model: {path: a}\nalgorithm: grpo\n", "run.yaml: algorithm=grpo is not a mapping; correct it"),
    ],
)
def test_an_old_key_with_a_value_of_another_kind_is_refused(text, complaint):
    with pytest.raises(ConfigError) as caught:
        migrated(text, "run.yaml")
    assert str(caught.value) == complaint


def test_a_file_that_extends_another_gets_no_kind():
    text = "extends: base.yaml\nmodel: {path: a}\n"
    assert migrated(text, "run.yaml") == text
