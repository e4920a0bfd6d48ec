import pytest
import yaml

from ray_rl.config.loading.load import dump_config
from ray_rl.config.rules import resume as resume_rules
from ray_rl.errors import ConfigError


def changes(before, now):
    """Against what the run folder says."""
    return resume_rules.changes(yaml.safe_load(dump_config(before)), now)


def test_an_equal_configuration_has_no_changes_wherever_its_folder_is(load):
    assert changes(load(), load("run.name=moved", "run.dir=elsewhere")) == []


def test_every_change_is_listed_with_both_values(load):
    now = load("run.steps=20", "train.learning_rate=3e-5", "algorithm.kl={coefficient: 0.1}", "train.workers=2")
    assert changes(load(), now) == [
        "run.steps: 10 -> 20",
        "algorithm.kl.coefficient: 0.0 -> 0.1",
        "train.workers: 1 -> 2",
        "train.learning_rate: 1e-06 -> 3e-05",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.path=other",
            "model.path=other: the run had smollm2-135m-instruct, and the checkpoint has the weights",
        ),
        ("data={kind: reasoning_gym, task: chain_sum}", "data.kind=reasoning_gym: the run had addition, and the saved"),
        ("data.maximum=7", "data.maximum=7: the run had 50, and the saved position belongs to these prompts"),
        ("run.seed=1", "run.seed=1: the run had 0, and it determines the order of the prompts"),
        ("algorithm.prompts_per_step=3", "algorithm.prompts_per_step=3: the run had "),
        ("critic={}", "a critic must be trained from the first step on, or not at all"),
    ],
)
def test_what_would_make_nonsense_of_the_checkpoint_is_refused_with_the_reason(load, override, message):
    with pytest.raises(ConfigError) as caught:
        changes(load(), load(override))
    assert message in str(caught.value)
    assert "keep that, or start another run" in str(caught.value)


def test_the_group_size_may_change_unless_rollouts_may_be_in_the_checkpoint(load):
    assert changes(load("algorithm.group_size=8"), load("algorithm.group_size=4")) == ["algorithm.group_size: 8 -> 4"]
    with pytest.raises(ConfigError, match="may contain groups of that size"):
        changes(load("algorithm.group_size=8", "rollout.max_staleness=1"), load("algorithm.group_size=4"))


def test_another_critic_is_refused_and_its_learning_rate_is_not(load):
    with pytest.raises(ConfigError, match=r"critic.path=b: the run had a, and the checkpoint has"):
        changes(load("critic={path: a}"), load("critic={path: b}"))
    assert changes(load("critic={}"), load("critic={learning_rate: 0.5}"))[0].startswith("critic.learning_rate: ")


def test_several_problems_are_told_at_once(load):
    with pytest.raises(ConfigError, match="2 problems"):
        changes(load(), load("run.seed=1", "data.maximum=7"))


def test_a_secret_that_the_run_folder_does_not_hold_is_no_change(load):
    judge = "rewards=[{kind: custom, function: 'judge:score', options: {api_key: abcdefgh}}]"
    assert changes(load(judge), load(judge)) == []


def test_a_key_that_an_older_release_did_not_write_is_no_change_at_its_default(load):
    written = yaml.safe_load(dump_config(load("data={kind: jsonl, path: a.jsonl}")))
    for key in ("format", "drop_last_answer", "check_s"):
        del written["data"][key]
    assert resume_rules.changes(written, load("data={kind: jsonl, path: a.jsonl}")) == []
    with pytest.raises(ConfigError, match=r"data.format=verl: the run had null"):
        resume_rules.changes(written, load("data={kind: jsonl, path: a.jsonl, format: verl}"))


def test_a_run_that_a_row_has_stopped_may_leave_it_out(load):
    data = "data={kind: jsonl, path: a.jsonl}"
    assert changes(load(data), load(data, "data.on_bad_row=skip")) == ["data.on_bad_row: stop -> skip"]
