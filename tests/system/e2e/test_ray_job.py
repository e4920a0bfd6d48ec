"""The example for Ray jobs, with a model that starts fast, on a Ray cluster with a token."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.custom_reward.rewards import score
from tests.system.e2e.command import steps_done
from tests.system.e2e.ray_head import BIN, ROOT, Head, processes_with, ray_head, write_token
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.launch

LIMIT_S = 200
EXAMPLE = "examples/ray_job/run.yaml"
REWARDS = (
    "[{kind: custom, function: 'examples.custom_reward.rewards:right_equation'}, "
    "{kind: custom, function: 'my_rewards:short'}]"
)
MY_REWARDS = "def short(completions, **columns):\n    return [1.0 / (1 + len(text)) for text in completions]\n"


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class User:
    """Somebody with a project and a cluster."""

    head: Head
    project: Path
    runs: Path

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        """A command, `ray-rl` if none is named."""
        command = words if words[0].startswith("/") else (str(BIN / "ray-rl"), *words)
        return subprocess.Popen(
            command,
            cwd=self.project,
            env=self.head.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **environment: str) -> Answer:
        return ended(self.start(*words, **environment))

    def config(self, name: str, *overrides: str) -> list[str]:
        own = [f"run.name={name}", f"run.dir={self.runs}", "model.path=./model", "model.dtype=float32"]
        own.append(f"launch.ray_job.address={self.head.address}")
        return [EXAMPLE, *own, "rollout.kv_cache_gib=0.05", f"rewards={REWARDS}", *overrides]


def ended(process: subprocess.Popen) -> Answer:
    try:
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    except BaseException:
        process.kill()
        raise
    return Answer(process.returncode, stdout, stderr)


def wait_until(condition: Callable[[], bool], follower: subprocess.Popen) -> None:
    give_up_s = time.monotonic() + LIMIT_S
    while not condition():
        assert follower.poll() is None, follower.communicate(timeout=LIMIT_S)
        assert time.monotonic() < give_up_s, "not in time"
        time.sleep(0.1)


def driver_of(run: str) -> int:
    (found,) = set(processes_with("bin/ray-rl\0train\0")) & set(processes_with(f"\0run.name={run}\0"))
    return found


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("cluster")
    project = folder / "project"
    shutil.copytree(ROOT / "examples", project / "examples", ignore=shutil.ignore_patterns("judge"))
    (project / "my_rewards.py").write_text(MY_REWARDS)
    write_tiny_model(project / "model")
    with ray_head(folder) as head:
        yield User(head, project, folder / "runs")


@dataclass(frozen=True)
class Story:
    """One run in three attempts."""

    folder: Path
    dry_run: Answer
    after_dry_run: Answer
    stopped: Answer
    """The command that stopped the second attempt."""
    checkpoints: list[str]
    """Once it had ended."""
    followed: Answer
    """The command that followed the first two."""
    last: Answer


@pytest.fixture(scope="module")
def story(user: User) -> Story:
    """The driver is told to save after step 1, as by a node that goes; its second attempt is stopped; a third ends."""
    folder = user.runs / "story"
    follower = user.start("submit", "ray-job", *user.config("story", "run.steps=500"), "--follow")
    wait_until(lambda: steps_done(folder) >= 1, follower)
    subprocess.run(["kill", f"-{signal.SIGUSR1.name}", str(driver_of("story"))], check=True, timeout=10)
    wait_until(lambda: any((folder / "checkpoints").glob("step_*")), follower)
    saved = steps_done(folder)
    wait_until(lambda: steps_done(folder) > saved + 1, follower)
    dry_run = user.run("stop", "ray-job", "story-2", "--dry-run")
    after_dry_run = user.run("status", "ray-job", "story-2")
    stopped = user.run("stop", "ray-job", "story-2")
    followed = ended(follower)
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    steps = steps_done(folder) + 2
    last = user.run("submit", "ray-job", *user.config("story", f"run.steps={steps}"), "--follow")
    return Story(folder, dry_run, after_dry_run, stopped, checkpoints, followed, last)


def test_a_driver_that_saved_and_asked_to_be_run_again_is(story: Story):
    assert "story-1: FAILED, exit code 75" in story.followed.stderr
    assert "story-1 saved, and is submitted again" in story.followed.stderr
    assert "ray-rl: submitted story-2" in story.followed.stderr
    assert "resuming after step" in story.followed.stdout


def test_the_log_is_shown_as_it_comes_and_once(story: Story):
    assert len(re.findall(r"^step +1/500 ", story.followed.stdout, re.MULTILINE)) == 1


def test_a_dry_run_of_stop_stops_nothing(story: Story):
    assert story.dry_run.code == 0
    assert story.dry_run.stdout.startswith("story-2: RUNNING")
    assert "nothing was done" in story.dry_run.stdout
    assert story.after_dry_run.stdout.startswith("story-2: RUNNING")


def test_a_job_that_is_stopped_has_time_to_save_and_says_so(story: Story):
    assert story.stopped.code == 0, story.stopped.stderr
    assert story.stopped.stdout.startswith("story-2: STOPPED")
    ending = r"stopped by SIG[A-Z0-9]+ after step (\d+) of \d+, saved; resume with: ray-rl resume "
    found = re.search(ending, story.stopped.stdout)
    assert found, story.stopped.stdout
    assert "warning" not in story.stopped.stderr
    assert f"step_{found[1]}" in story.checkpoints


def test_who_follows_a_stopped_job_is_told_to_submit_it_again(story: Story):
    assert story.followed.code == 75
    assert "story-2 was stopped; submit the run again" in story.followed.stderr
    assert "story-3" not in story.followed.stderr


def test_submitted_again_it_goes_on_to_success(story: Story):
    assert story.last.code == 0, story.last.stdout + story.last.stderr
    assert "ray-rl: submitted story-3" in story.last.stderr
    assert "resuming after step" in story.last.stdout
    assert "story-3: SUCCEEDED, exit code 0" in story.last.stderr


def test_the_run_folder_is_whole(story: Story):
    steps = [json.loads(line)["step"] for line in (story.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert (story.folder / "export" / "model.safetensors").is_file()
    assert (story.folder / "config.yaml").is_file()


def test_workers_find_the_code_of_the_project(story: Story):
    sample = json.loads((story.folder / "rollouts" / "step_000001.jsonl").read_text().splitlines()[0])
    assert sample["completion"]
    assert 0 < sample["reward_parts"]["short"] <= 1
    assert sample["reward_parts"]["right_equation"] == score(sample["completion"].strip(), sample["columns"]["answer"])


@pytest.fixture(scope="module")
def failing(user: User) -> subprocess.Popen:
    """More workers than the cluster has room for. It runs beside the misconfigured ones: a core each."""
    config = user.config("failing", "train.workers=16", "cluster.start_timeout_s=1", "launch.retries=1")
    return user.start("submit", "ray-job", *config, "--follow")


@pytest.fixture(scope="module")
def misconfigured(user: User, failing: subprocess.Popen) -> tuple[Answer, Answer, Answer]:
    """The rendered command run by bash, the same submitted, and where it stands."""
    config = user.config("wrong", "model.path=/only/on/the/cluster", "launch.retries=3")
    text = user.run("render", "ray-job", *config).stdout
    return (
        user.run("/bin/bash", "-c", text),
        user.run("submit", "ray-job", *config, "--follow"),
        user.run("status", "ray-job", "wrong-2"),
    )


def test_a_misconfigured_job_ends_with_2_and_is_never_tried_again(misconfigured):
    _, followed, status = misconfigured
    assert followed.code == 2
    assert "model.path=/only/on/the/cluster: no such model folder" in followed.stdout
    assert "submitted again" not in followed.stderr
    assert status.stdout == "wrong-2: FAILED, exit code 2\n"


def test_what_is_rendered_is_what_is_submitted(user: User, misconfigured):
    listed = user.run(str(BIN / "python"), "-c", LIST)
    by_command, by_us = (json.loads(listed.stdout)[f"wrong-{number}"] for number in (1, 2))
    assert by_command == by_us
    assert by_us["entrypoint"].startswith(f"ray-rl train {EXAMPLE} run.name=wrong ")
    assert by_us["entrypoint"].endswith(" cluster.address=auto --resume auto")
    assert by_us["metadata"]["run"] == "wrong"


LIST = """
import json
from ray.job_submission import JobSubmissionClient
keys = ("entrypoint", "runtime_env")
def seen(job):
    info = job.dict()
    metadata = {k: v for k, v in info["metadata"].items() if k not in ("job_name", "job_submission_id")}
    return {key: info[key] for key in keys} | {"metadata": metadata}
print(json.dumps({job.submission_id: seen(job) for job in JobSubmissionClient().list_jobs() if job.submission_id}))
"""


def test_a_job_that_fails_is_tried_again_as_often_as_asked_and_ends_with_1(failing: subprocess.Popen):
    followed = ended(failing)
    assert followed.code == 1
    assert "failing-1 failed, and is submitted again: 1 of launch.retries=1" in followed.stderr
    assert "failing-2: FAILED, exit code 1" in followed.stderr
    assert "failing-3" not in followed.stderr
    assert "placement was not possible within cluster.start_timeout_s=1" in followed.stdout


def test_stopping_a_job_that_gives_itself_no_time_to_save_warns(user: User):
    submit = [str(BIN / "ray"), "job", "submit", "--no-wait", "--submission-id", "foreign", "--", "sleep", "100"]
    assert user.run(*submit).code == 0
    stopped = user.run("stop", "ray-job", "foreign")
    assert stopped.code == 0, stopped.stderr
    assert "foreign: STOPPED" in stopped.stdout
    assert "Ray kills it 3 s after the signal, unless `ray start` of its head found RAY_JOB_STOP_WAIT_TIME_S" in (
        stopped.stderr
    )


def test_a_wrong_token_is_refused_and_shown_to_nobody(user: User, tmp_path: Path):
    token = write_token(tmp_path / "wrong")
    began_s = time.monotonic()
    answer = user.run("submit", "ray-job", *user.config("wrong-token"), f"launch.ray_job.token_path={token}")
    assert time.monotonic() - began_s < 20
    assert answer.code == 2
    assert "the cluster refuses the token; set launch.ray_job.token_path" in answer.stderr
    assert token.read_text() not in answer.stdout + answer.stderr


def test_a_job_that_is_not_there_is_named(user: User):
    answer = user.run("status", "ray-job", "nobody-1")
    assert answer.code == 2
    assert "Job nobody-1 does not exist" in answer.stderr
