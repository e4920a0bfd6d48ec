import json

from ray_rl.launching.ray_job.entrypoint import render, submission_of
from tests.unit.launching.bash import called, options_of

AWKWARD = ['data={kind: jsonl, path: "it\'s here.jsonl"}', "run.dir=/a b/$HOME/`x`", "rollout.stop=['\\n', '\"']"]


def test_bash_reads_the_rendering_as_the_submission(job, tmp_path):
    made = job("launch.ray_job.address=http://head:8265", commit="abc")
    call = called("ray", render(made), tmp_path, RAY_ADDRESS="other", RAY_API_SERVER_ADDRESS="http://other:1")
    options, entrypoint = options_of(call.words)
    assert call.words[:2] == ["job", "submit"]
    assert entrypoint == list(made.entrypoint)
    assert options.pop("--address") == "http://head:8265"
    assert options.pop("--submission-id") == "test-1"
    assert options.pop("--working-dir") == "."
    assert options.pop("--entrypoint-num-cpus") == "1"
    assert json.loads(options.pop("--metadata-json")) == {
        "run": "test",
        "length": "10 steps",
        "gpus": "0",
        "config_hash": made.config_hash,
        "git_sha": "abc",
    }
    assert json.loads(options.pop("--runtime-env-json")) == {"env_vars": made.environment}
    assert options == {}
    # They would go before --address.
    assert not {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"} & call.environment.keys()


def test_paths_and_overrides_with_spaces_and_quotes_survive_bash(job, tmp_path):
    made = job(path="it's a run.yaml")
    made = type(made)(
        config=made.config, config_path=made.config_path, overrides=tuple(AWKWARD), plan=made.plan, commit=None
    )
    _, entrypoint = options_of(called("ray", render(made), tmp_path).words)
    assert entrypoint == ["ray-rl", "train", "it's a run.yaml", *AWKWARD, "cluster.address=auto", "--resume", "auto"]


def test_without_an_address_it_is_left_to_the_environment(job, tmp_path):
    call = called("ray", render(job()), tmp_path, RAY_API_SERVER_ADDRESS="http://mine:8265")
    assert "--address" not in call.words
    assert call.environment["RAY_API_SERVER_ADDRESS"] == "http://mine:8265"


def test_the_token_is_named_by_its_file_and_is_not_in_the_text(job, tmp_path):
    token = tmp_path / "my token"
    token.write_text("s3cret")
    text = render(job(f"launch.ray_job.token_path={token}"))
    call = called("ray", text, tmp_path, RAY_AUTH_TOKEN="of another cluster")
    assert "s3cret" not in text
    assert call.environment["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert call.environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in call.environment


def test_a_preflight_goes_before_the_run_in_one_command(job, tmp_path):
    made = job("launch.preflight=true")
    _, entrypoint = options_of(called("ray", render(made), tmp_path).words)
    assert entrypoint == ["bash", "-c", made.shell_line]
    assert made.shell_line.startswith("ray-rl doctor --cluster run.yaml cluster.address=auto && ray-rl train run.yaml ")


def test_attempts_differ_in_their_names_alone(job):
    first, second = render(job(), attempt=1), render(job(), attempt=2)
    assert first.replace("test-1", "test-2") == second


def test_a_job_installs_nothing(job):
    assert submission_of(job()).runtime_env.keys() == {"working_dir", "env_vars"}
