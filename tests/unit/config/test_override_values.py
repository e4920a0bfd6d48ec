"""What a command line says arrives: text as typed or a refusal with the advice to quote, never cut, never null."""

import pytest

from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.errors import ConfigError

PLAIN_TEXTS = [
    "Think first. Put the final answer after #### at the end.",
    "#### then the number",
    "# a comment?",
    "a #b",
    "Answer: yes",
    "- be short",
    "&x",
    "&x text",
    "*",
    "*x",
    "!tag text",
    "!!int 5",
    "@home",
    "`code`",
    "%TAG",
    "--- a",
    "? a",
    "| a",
    "> a",
    "{a: b}",
    "[INST] be short [/INST]",
    "yes",
    "no",
    "on",
    "off",
    "true",
    "1e-5",
    "0777",
    "007",
    "0x10",
    "1_000",
    "42",
    "-3",
    ".5",
    ".nan",
    "12:30",
    "2026-11-22",
    " leading and trailing ",
    '"A" or "B"',
    "it's",
    "'",
    '"',
    "first\nsecond # third",
    "tab\tinside",
    "a\\nb",
    "caf\u00e9 \U0001f600",
    "=",
    "a=b",
    "<<",
    ", ,",
    "x" * 5000,
]


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_text_for_a_text_field_arrives_as_typed_and_survives_the_run_folder(load, write, text):
    config = load(f"data.system_prompt={text}", f"run.dir={text}")
    assert (config.data.system_prompt, config.run.dir) == (text, text)
    assert load_config(write(dump_config(config), "again.yaml")) == config


@pytest.mark.parametrize("text", [text for text in PLAIN_TEXTS if text[:1] not in "{[" and text.strip() == text])
def test_options_get_text_as_typed_and_what_reads_as_a_number_as_one(load, text):
    config = load(
        "data={kind: custom, function: 'a.b:c'}",
        f"data.options.text={text}",
    )
    value = config.data.options["text"]
    if isinstance(value, str):
        assert value == text
    else:
        assert text in {"true", "1e-5", "0x10", "1_000", "42", "-3", ".5", ".nan"}


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ('"Answer: #1"', "Answer: #1"),
        ("'it''s #1'", "it's #1"),
        ('"a\\nb"', "a\nb"),
        ('"a\n b # c"', "a\n b # c"),
        ('"null"', "null"),
        ('""', ""),
        (' "x" ', "x"),
    ],
)
def test_quotes_around_the_whole_value_are_removed_and_nothing_in_them_is_a_comment(load, typed, text):
    assert load(f"data.system_prompt={typed}").data.system_prompt == text


@pytest.mark.parametrize("nothing", ["", "~", "null", "Null"])
def test_nothing_is_none_only_where_a_field_may_be_none(load, nothing):
    assert load("data.system_prompt=x", f"data.system_prompt={nothing}").data.system_prompt is None


def test_a_tilde_for_a_folder_is_the_home_folder(load):
    assert load("run.dir=~").run.dir == "~"


@pytest.mark.parametrize("word", ["null", "NULL"])
def test_the_word_null_for_a_text_that_must_be_is_refused_with_the_advice_to_quote(write, load, word):
    with pytest.raises(ConfigError, match=r"must be text; .* in quotes"):
        load(f"run.dir={word}")
    assert load(f'run.dir="{word}"').run.dir == word


def test_a_name_of_digits_is_a_name(load):
    assert load("run.name=007").run.name == "007"
    assert load("run.name=7").run.name == "7"
    assert load("run.name=1e5").run.name == "1e5"


def test_a_name_with_a_hash_is_refused_and_not_cut(load):
    with pytest.raises(ConfigError, match=r"override 'run.name=exp #2': must match pattern"):
        load("run.name=exp #2")


def test_a_variable_of_the_environment_is_text(load):
    assert load("launch.environment.NCCL_DEBUG_LEVEL=3").launch.environment == {"NCCL_DEBUG_LEVEL": "3"}


@pytest.mark.parametrize(
    ("typed", "pattern"),
    [
        ("rewards=[{kind: regex, pattern: ####}]", "####"),
        ("rewards=[{kind: regex, pattern: a # b}]", "a # b"),
        ("rewards=[{kind: regex, pattern: '#### (-?[0-9]+)'}]", "#### (-?[0-9]+)"),
        ('rewards=[{kind: regex, pattern: "####, #"}]', "####, #"),
        ("rewards.0={kind: regex, pattern: a #}", "a #"),
    ],
)
def test_nothing_is_a_comment_inside_a_structure(load, typed, pattern):
    assert load(typed).rewards[0].pattern == pattern


@pytest.mark.parametrize(
    "typed",
    [
        "rewards=[{kind: regex, pattern: #### (-?[0-9]+)}]",
        "rewards=[{kind: number}] # and no more",
        "rewards=[{kind: number}, #{kind: length, target: 5}]",
        "rewards=[{kind: regex, pattern: &x}]",
        "rewards=[{kind: regex, pattern: *}]",
        "rewards=[{kind: regex, pattern: @}]",
        "rewards=[{kind: regex, pattern: `}]",
        "rewards=[{kind: regex, pattern: a\n b}]",
        "rewards=[{kind: regex, pattern: 'a\n b'}]",
        "train.betas=[1, 2",
    ],
)
def test_what_yaml_would_change_or_cannot_read_is_refused_with_the_advice_to_quote(load, typed):
    with pytest.raises(ConfigError) as caught:
        load(typed)
    assert str(caught.value).startswith(f"override '{typed}': ")
    assert "in quotes" in str(caught.value) or "unknown kind" in str(caught.value)


@pytest.mark.parametrize(("typed", "seen"), [("5", "pattern=5"), ("true", "pattern=true")])
def test_a_number_where_text_is_wanted_inside_a_structure_is_refused_with_the_advice_to_quote(load, typed, seen):
    with pytest.raises(ConfigError, match=rf"{seen}: must be text; put it in quotes"):
        load(f"rewards=[{{kind: regex, pattern: {typed}}}]")


def test_a_choice_and_a_number_may_have_blanks_around_them(load):
    assert load("model.dtype= float32 ", "run.steps= 3 ").model.dtype == "float32"


def test_a_comment_behind_a_number_is_refused_and_not_dropped(load):
    with pytest.raises(ConfigError, match=r"override 'run.steps=3 # short': must be an integer"):
        load("run.steps=3 # short")


def test_a_section_may_be_given_in_either_style_and_be_removed(load):
    assert load("data=kind: addition").data.kind == "addition"
    assert load("reference=null").reference is None


def test_the_kind_that_was_set_before_decides_what_takes_text(load):
    config = load("data={kind: jsonl}", "data.path=1e3", "data.columns={gold: #1}", "data.columns.more=#2")
    assert (config.data.path, config.data.columns) == ("1e3", {"gold": "#1", "more": "#2"})


def test_text_that_is_not_utf_8_is_refused(load):
    with pytest.raises(ConfigError, match="not UTF-8"):
        load("data.system_prompt=caf\udce9")


def test_a_secret_in_an_override_is_not_repeated_by_its_error(load):
    with pytest.raises(ConfigError) as caught:
        load("rewards.0.api_key=sk-very-secret value")
    assert "very-secret" not in str(caught.value) and "value" not in str(caught.value).split(";")[0].split("': ")[0]


def test_a_key_of_a_thousand_parts_is_refused(load):
    with pytest.raises(ConfigError, match="at most 50 levels"):
        load(".".join(["a"] * 1000) + "=1")


def test_options_of_a_template_are_values_and_text_as_typed(load):
    config = load(
        "data.template_options.enable_thinking=false",
        "data.template_options.note=Answer: yes # no",
        "data.template_options.tools=[{name: a}]",
    )
    assert config.data.template_options == {
        "enable_thinking": False,
        "note": "Answer: yes # no",
        "tools": [{"name": "a"}],
    }
