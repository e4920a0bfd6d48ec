from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.config.loading.redact import is_secret
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError
from tests.algorithm import algorithm

SHIPPED = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
SMALLEST = {
    "run": {"name": "test", "steps": 10},
    "model": {"path": "smollm2-135m-instruct"},
    "data": {"kind": "addition"},
    "rewards": [{"kind": "number"}],
    "algorithm": algorithm(),
}
BASE = """\
run: {name: base, steps: 5}
model: {path: smollm2-135m-instruct}
data: {kind: addition, maximum: 9}
rewards: [{kind: number}, {kind: length, target: 20}]
algorithm: {kind: grpo}
"""


def error_of(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    assert (load_config(path).run.steps or 0) + (load_config(path).run.epochs or 0) > 0


class TestOverrides:
    def test_an_override_sets_a_nested_value(self, load):
        assert load("train.workers=2").train.workers == 2

    def test_an_exponent_without_a_point_is_a_float(self, load):
        assert load("train.learning_rate=1e-5").train.learning_rate == 1e-5
        assert load("train.deepspeed={stage3_max_live_parameters: 1e9}").train.deepspeed == {
            "stage3_max_live_parameters": 1e9
        }

    def test_an_override_reaches_into_a_list_by_index(self, load):
        assert load("rewards.0.weight=2").rewards[0].weight == 2.0

    def test_an_override_replaces_a_whole_section(self, load):
        assert load("data={kind: jsonl, path: a.jsonl}").data.path == "a.jsonl"

    def test_the_last_of_two_overrides_wins(self, load):
        assert load("run.steps=3", "run.steps=4").run.steps == 4

    def test_null_sets_none(self, load):
        assert load("cluster.address=auto", "cluster.address=null").cluster.address is None

    @pytest.mark.parametrize("text", ["train.workers", "=3", "train..workers=3", "train.=3"])
    def test_text_that_is_no_override_is_an_error_with_an_example(self, write, text):
        assert error_of(write(BASE), text) == (
            f"override '{text}': must have the form key=value, for example train.workers=2"
        )

    def test_a_wrong_value_names_its_override(self, write):
        assert error_of(write(BASE), "train.workers=0") == (
            "override 'train.workers=0': must be at least 1 (Number of data-parallel workers.)"
        )

    def test_an_index_past_the_end_says_how_many_there_are(self, write):
        assert error_of(write(BASE), "rewards.2.weight=1") == (
            "override 'rewards.2.weight=1': rewards has no entry '2'; its 2 entries are numbered from 0. "
            "To add or remove entries, set the whole list: rewards=[...]"
        )

    def test_a_key_below_a_scalar_is_an_error(self, write):
        assert error_of(write(BASE), "run.name.x=1") == (
            "override 'run.name.x=1': run.name=base has no keys; set run.name itself"
        )

    def test_a_value_that_is_not_yaml_names_its_override(self, write):
        assert error_of(write(BASE), "train.betas=[1, 2").startswith("override 'train.betas=[1, 2': not valid YAML (")


def test_a_value_in_place_of_the_file_is_told_from_a_file_that_is_not_there(write):
    assert error_of("run.steps=5") == (
        "run.steps=5: the YAML file of the run comes first, then values: CONFIG 'run.steps=5'"
    )
    assert load_config(write(BASE, "a=b.yaml")).run.name == "base"


class TestExtends:
    def test_mappings_merge_and_lists_replace(self, write):
        write(BASE, "base/base.yaml")
        child = write("extends: ../base/base.yaml\nrun: {name: child}\nrewards: [{kind: number}]\n", "child/c.yaml")
        config = load_config(child)
        assert (config.run.name, config.run.steps, len(config.rewards)) == ("child", 5, 1)

    def test_another_kind_replaces_the_whole_mapping(self, write):
        write(BASE, "base.yaml")
        child = write("extends: base.yaml\ndata: {kind: jsonl, path: a.jsonl}\n")
        assert load_config(child).data.kind == "jsonl"

    def test_an_error_names_the_file_it_was_written_in(self, write):
        write(BASE + "train:\n  workers: 0\n", "base.yaml")
        child = write("extends: base.yaml\nrun: {nam: x}\n")
        message = error_of(child)
        assert "base.yaml:7: train.workers=0: must be" in message
        assert "run.yaml:2: run.nam: unknown key, its value is x; did you mean run.name?" in message

    def test_a_circle_is_an_error_that_draws_it(self, write):
        write("extends: a.yaml\n", "b.yaml")
        assert error_of(write("extends: b.yaml\n", "a.yaml")) == (
            "b.yaml:1: extends=a.yaml: a circle of files (a.yaml extends b.yaml extends a.yaml); remove one `extends`"
        )

    def test_a_missing_base_names_the_line_and_where_it_was_looked_for(self, write):
        assert error_of(write("\nextends: nope.yaml\n", "sub/a.yaml")) == (
            "sub/a.yaml:2: extends=nope.yaml: no such file as sub/nope.yaml; the path starts at sub/a.yaml"
        )

    def test_extends_takes_one_path(self, write):
        assert error_of(write("extends: [a.yaml]\n")) == (
            "run.yaml:1: extends=['a.yaml']: must be the path of one YAML file"
        )


class TestRoundTrip:
    @pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
    def test_a_dumped_configuration_loads_to_an_equal_one(self, write, path):
        config = load_config(path)
        assert load_config(write(dump_config(config), "dumped.yaml")) == config

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        text=st.text(st.characters(exclude_categories=["Cs"])),
        number=st.floats(min_value=1e-30, max_value=1e30),
        options=st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda name: not is_secret(name)),
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            max_size=4,
        ),
    )
    def test_any_text_number_and_options_survive(self, tmp_path, text, number, options):
        config = RunConfig.model_validate(
            SMALLEST
            | {
                "train": {"learning_rate": number},
                "data": {"kind": "custom", "function": "a.b:c", "system_prompt": text, "options": options},
            }
        )
        path = tmp_path / "dumped.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config

    @pytest.mark.parametrize("text", ["1e-5", "no", "null", "~", "", "12:30", "0x10", "007", "2026-11-22", "<<", "="])
    def test_text_that_looks_like_something_else_stays_text(self, load, write, text):
        config = load()
        config = config.model_copy(update={"data": config.data.model_copy(update={"system_prompt": text})})
        assert load_config(write(dump_config(config), "dumped.yaml")).data.system_prompt == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=1" + "0" * 30, "must be at most 9007199254740992"),
        ("run.steps=9007199254740993", "must be at most 9007199254740992 (Number of training steps"),
        ("rollout.max_sequences=1" + "0" * 20, "must be at most 9007199254740992"),
        ("run.grace_s=1e300", "must be at most 1e+09 seconds"),
        ("train.timeout_s=2000000000", "must be at most 1e+09 seconds"),
        (r'run.dir="a\0b"', "must not have a NUL character"),
    ],
)
def test_values_that_would_fail_in_a_timer_or_a_library_are_refused_at_once(load, override, message):
    with pytest.raises(ConfigError) as raised:
        load(override)
    assert message in str(raised.value)


def test_a_run_may_have_a_million_million_steps(load):
    assert load("run.steps=1000000000000").run.steps == 10**12
