"""The scripts of `launch/` do what is rendered for the same configuration."""

import json
import subprocess
from pathlib import Path

import pytest

from ray_rl.config.loading.load import load_config
from ray_rl.launching import local
from ray_rl.launching.ray_job import entrypoint as ray_job
from tests.unit.launching.bash import called, options_of

LAUNCH = Path(__file__).parents[3] / "launch"
OVERRIDES = ["run.name=mine", "run.dir=/shared/my runs", "run.seed=3"]


@pytest.fixture
def mine(job):
    return job(*OVERRIDES)


def test_local_sh_does_what_is_rendered(mine, tmp_path):
    by_script = called("ray-rl", (LAUNCH / "local.sh").read_text(), tmp_path, "run.yaml", *OVERRIDES)
    by_us = called("ray-rl", local.render(mine), tmp_path)
    assert by_script.words == by_us.words
    assert by_script.environment.items() - {("SHLVL", "0")} == by_us.environment.items() - {("SHLVL", "0")}


def test_ray_job_sh_does_what_is_rendered(mine, tmp_path):
    text = (LAUNCH / "ray_job.sh").read_text()
    by_script, entrypoint = options_of(called("ray", text, tmp_path, "run.yaml", *OVERRIDES, ATTEMPT="2").words)
    by_us, rendered_entrypoint = options_of(called("ray", ray_job.render(mine, attempt=2), tmp_path).words)
    for name in ("--metadata-json", "--runtime-env-json"):
        by_script[name], by_us[name] = json.loads(by_script[name]), json.loads(by_us[name])
    by_us["--metadata-json"] = {"run": by_us["--metadata-json"]["run"]}
    assert by_script == by_us
    assert entrypoint == rendered_entrypoint


def test_ray_job_sh_turns_token_authentication_on_for_a_token(mine, tmp_path):
    text = (LAUNCH / "ray_job.sh").read_text()
    call = called("ray", text, tmp_path, "run.yaml", "run.name=mine", RAY_AUTH_TOKEN_PATH="token")
    assert call.environment["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("name", ["local.sh", "ray_job.sh"])
def test_a_script_without_arguments_says_what_it_takes(name):
    done = subprocess.run([LAUNCH / name], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_the_launch_file_is_one(mine):
    section = load_config("run.yaml", launch=LAUNCH / "ray_job.yaml").launch
    assert section.ray_job.address == "http://127.0.0.1:8265"
    assert section.ray_job.token_path == "~/.ray/auth_token"
