"""Secrets stay out of configurations, command lines and messages that are written."""

from typing import get_args

import pytest

from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.config.loading.redact import (
    hidden_keys,
    hide,
    is_secret,
    secrets_of,
    without_arguments,
    without_credentials,
    without_secrets,
)
from ray_rl.config.loading.schema import bare, sections_of
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "api_key", "apiKey", "db.password", "PGPASSWORD"),
        *("secret", "api_keys", "access_tokens", "headers", "bearer", "Authorization", "Proxy-Authorization"),
        *("passphrase", "cookie", "Set-Cookie", "private_key", "private_key_pem", "client_secret", "X-Api-Key", "auth"),
        *("GITHUB_PAT", "AZURE_STORAGE_CONNECTION_STRING", "connection_string", "creds", "GCP_CRED"),
    ],
)
def test_a_name_that_says_secret_is_one(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("max_tokens", "eos_token_id", "tokenizer", "monkey", "keys", "SSH_AUTH_SOCK", "eos_token", "per_token"),
        *("prompt_key", "chosen_key", "reward_fn_key"),
        *("api_key_env", "token_path", "private_key_file", "header", "pass", "author", "stop_token", "sort_key"),
        *("PWD", "OLDPWD", "pat", "url_pat", "connection", "strings"),
    ],
)
def test_a_name_that_only_sounds_alike_is_none(name):
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("argument", "written"),
    [
        ("rewards.0.options.api_key=sk-123", "rewards.0.options.api_key=***"),
        (
            "rewards=[{kind: custom, options: {token: 'a b', n: 3}}]",
            "rewards=[{kind: custom, options: {token: ***, n: 3}}]",
        ),
        ('rewards.0.options={"password": "x,y"}', 'rewards.0.options={"password": ***}'),
        ("rollout.max_tokens=24", "rollout.max_tokens=24"),
        ("algorithm.shaping.per_token=true", "algorithm.shaping.per_token=true"),
        ("model.path=https://me:pw@hub.example/m?key=abc", "model.path=https://***@hub.example/m?key=***"),
        ("rewards.0.options.api_key=[sk-1, sk-2]", "rewards.0.options.api_key=***"),
        ("rewards.0.options.api_key=123456", "rewards.0.options.api_key=***"),
        ("rewards.0.options.api_key.judge=sk 1 # 2", "rewards.0.options.api_key.judge=***"),
        ("rewards.0.options.headers.X-Any=abc", "rewards.0.options.headers.X-Any=***"),
        (
            "rewards=[{options: {api_key: [sk-1, 22], headers: {A: b c, D: {e: 1}}, n: 3}}]",
            "rewards=[{options: {api_key: [***, ***], headers: {A: ***, D: {e: ***}}, n: 3}}]",
        ),
        ("rewards=[{options: {passphrase: a #b}}]", "rewards=[{options: {passphrase: ***}}]"),
        ("rewards=[{options: {api_key: [sk-1, sk-2}}]", "rewards=[{options: {api_key: ***"),
        ("rewards.0.options.url=https://j.example/?a=1&api_key=k#x", None),
        ("rewards.0.options.note=Bearer abc123def456", "rewards.0.options.note=Bearer ***"),
        ("--hub-token=abc", "--hub-token=***"),
        ("data.system_prompt=" + "x" * 100_000, "data.system_prompt=" + "x" * 100_000),
    ],
)
def test_a_command_line_is_written_without_secrets(argument, written):
    expected = "rewards.0.options.url=https://j.example/?a=1&api_key=***#x" if written is None else written
    assert without_arguments([argument]) == [expected]


def test_the_word_behind_an_option_that_names_a_secret_is_hidden():
    assert without_arguments(["train", "--hub-token", "hf_1", "--resume", "auto"]) == [
        *("train", "--hub-token", "***", "--resume", "auto")
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://hf_abc@hub.example/x", "https://***@hub.example/x"),
        ("postgres://me:p@ss:w@db.example/x", "postgres://***@db.example/x"),
        ("GET https://j.example/v1?x=1&api_key=abc&y=2 failed", "GET https://j.example/v1?x=1&api_key=***&y=2 failed"),
        ("https://j.example/?token=abc", "https://j.example/?token=***"),
        (
            "https://s3.example/x?X-Amz-Signature=0a1b&X-Amz-Date=2",
            "https://s3.example/x?X-Amz-Signature=***&X-Amz-Date=2",
        ),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("used hf_ABCDEFGHIJKLMNOPQRSTUVWX here", "used *** here"),
        ("POST https://hooks.slack.com/services/T0/B0/abcdefgh12345678", "POST https://hooks.slack.com/services/***"),
        ("ssh://git@github.com/a/b and a basic understanding", "ssh://git@github.com/a/b and a basic understanding"),
        ("https://x.example/?max_tokens=5&page=2", "https://x.example/?max_tokens=5&page=2"),
    ],
)
def test_text_loses_what_has_the_form_of_a_secret(text, shown):
    assert without_credentials(text) == shown


def test_a_message_loses_the_values_of_certain_names_and_secrets_in_other_writings():
    assert hide("bad request: {'api_key': 'k1', 'n': 3}", set()) == "bad request: {'api_key': ***, 'n': 3}"
    assert hide("password=hunter2; max_tokens=5", set()) == "password=***; max_tokens=5"
    assert hide("HF_TOKEN=abc123 python train.py", set()) == "HF_TOKEN=*** python train.py"
    assert hide("AccountName=a;AccountKey=abc123;", set()) == "AccountName=a;AccountKey=***;"
    assert hide("ran `x --api-key abc123 --n 5`", set()) == "ran `x --api-key *** --n 5`"
    assert hide("--api-key needs a value", set()) == "--api-key needs a value"
    assert hide("override 'a.api_key=***': unknown key", set()) == "override 'a.api_key=***': unknown key"
    assert hide("GET /?q=a%2Fb%20c%2Bd", {"a/b c+d"}) == "GET /?q=***"


def test_every_leaf_below_the_name_of_a_secret_is_hidden_and_found():
    tree = {
        "api_key": ["sk-111111", 222222, {"deep": "sk-333333"}],
        "headers": {"X": "sk-444444"},
        "n": 5,
        "flag": True,
    }
    assert without_secrets(tree) == {"api_key": ["***", "***", {"deep": "***"}], "headers": {"X": "***"}, "n": 5} | {
        "flag": True
    }
    assert secrets_of(tree) == {"sk-111111", "222222", "sk-333333", "sk-444444"}
    assert hidden_keys(without_secrets(tree)) == ["api_key.0", "api_key.1", "api_key.2.deep", "headers.X"]


def test_no_field_of_the_schema_is_taken_for_a_secret():
    def names(model, seen):
        for name, field in model.model_fields.items():
            yield name
            for annotation in (field.annotation, *get_args(bare(field.annotation))):
                for section in sections_of(annotation).values():
                    if section not in seen:
                        yield from names(section, seen | {section})

    found = set(names(RunConfig, frozenset()))
    assert len(found) > 150
    assert [name for name in found if is_secret(name)] == []


def test_an_address_without_a_login_stays():
    assert without_credentials("see https://example.org/a@b and http://localhost:80") == (
        "see https://example.org/a@b and http://localhost:80"
    )


def test_running_text_loses_secrets_that_are_long_enough_to_be_told_from_words():
    secrets = secrets_of({"HF_TOKEN": "hf_abcdef", "HOME": "/root", "A_KEY": "the"})
    assert hide("401 for hf_abcdef in /root, the end", secrets) == "401 for *** in /root, the end"


CONFIG = """\
run: {name: first, steps: 2}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
algorithm: {kind: grpo}
rewards:
- kind: custom
  function: "mine:judge"
  options: {api_key: sk-very-secret, url: "https://me:pw@judge.example", top_k: 5}
"""


def test_a_configuration_is_written_without_secrets_and_says_so_when_it_is_read_again(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    config = load_config(path)
    assert config.rewards[0].options["api_key"] == "sk-very-secret"
    text = dump_config(config)
    assert "sk-very-secret" not in text
    assert "me:pw" not in text
    assert "top_k: 5" in text
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    missing = "rewards.0.options.api_key, rewards.0.options.url=***: a secret that was left out "
    assert str(raised.value).startswith(missing)
    again = load_config(
        path, ["rewards.0.options.api_key=sk-very-secret", "rewards.0.options.url=https://me:pw@judge.example"]
    )
    assert again.rewards[0].options["api_key"] == "sk-very-secret"


def test_an_unknown_key_that_names_a_secret_is_refused_without_its_value(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + "  api_key: sk-very-secret\n")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert "rewards.0.api_key: unknown key, its value is ***" in str(raised.value)
    assert "very-secret" not in str(raised.value)
