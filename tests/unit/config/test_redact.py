"""Secrets stay out of configurations, command lines and messages that are written."""

import pytest

from ray_rl.config.load import dump_config, load_config
from ray_rl.config.redact import hide, is_secret, secrets_of, without_arguments, without_logins
from ray_rl.errors import ConfigError


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "api_key", "apiKey", "db.password", "PGPASSWORD", "secret"],
)
def test_a_name_that_says_secret_is_one(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["max_tokens", "eos_token_id", "tokenizer", "monkey", "keys", "SSH_AUTH_SOCK"])
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
    ],
)
def test_a_command_line_is_written_without_secrets(argument, written):
    assert without_arguments([argument]) == [written]


def test_an_address_without_a_login_stays():
    assert without_logins("see https://example.org/a@b and http://localhost:80") == (
        "see https://example.org/a@b and http://localhost:80"
    )


def test_running_text_loses_secrets_that_are_long_enough_to_be_told_from_words():
    secrets = secrets_of({"HF_TOKEN": "hf_abcdef", "HOME": "/root", "A_KEY": "the"})
    assert hide("401 for hf_abcdef in /root, the end", secrets) == "401 for *** in /root, the end"


CONFIG = """\
run: {name: first, steps: 2}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
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
    assert str(raised.value).startswith("rewards.0.options.api_key=***: a secret that was left out ")
    again = load_config(path, ["rewards.0.options.api_key=sk-very-secret"])
    assert again.rewards[0].options["api_key"] == "sk-very-secret"


def test_an_unknown_key_that_names_a_secret_is_refused_without_its_value(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + "  api_key: sk-very-secret\n")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert "rewards.0.api_key: unknown key, its value is ***" in str(raised.value)
    assert "very-secret" not in str(raised.value)
