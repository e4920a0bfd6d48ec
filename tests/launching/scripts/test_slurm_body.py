"""What an sbatch script does, with a scripted Slurm around it."""

import signal
import socket
from pathlib import Path

import pytest

from ray_rl.launching.slurm.script import render
from tests.launching.scripts.scheduler import UNTIL_USR1, Scheduler
from tests.unit.launching.test_slurm import job

DEMO = "configs/grpo_addition_smollm2-135m_cpu.yaml"
RETRIES = 1
ONCE_THERE_ARE = (
    'until [ ! -d "$SCRIPT" ] || [ "$(grep -c job-name=ray-workers "$SCRIPT/srun.calls")" = {} ]; do sleep 1; done\n'
)
"""A driver that ends well when so many steps of workers have begun."""


@pytest.fixture
def scheduler(tmp_path) -> Scheduler:
    return make_scheduler(tmp_path)


def make_scheduler(place: Path, *, nodes: int = 2, grace_s: int = 2, **launch) -> Scheduler:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    overrides = (f"cluster.nodes={nodes}", f"run.grace_s={grace_s}")
    text = render(job(*overrides, config=DEMO, retries=RETRIES, **launch))
    # A port that is free now, of the range that the configuration refuses.
    return Scheduler(place, text.replace("RAY_RL_PORT=6379", f"RAY_RL_PORT={port}"))


def test_a_run_that_ends_well_ends_the_job_and_leaves_no_token(scheduler):
    ended = scheduler.run(train="stat -c %a $RAY_AUTH_TOKEN_PATH >$SCRIPT/mode\necho $RAY_ADDRESS $RAY_AUTH_MODE\n")
    assert (ended.code, ended.outcome, ended.requeued) == (0, "done", False), ended.log
    assert (scheduler.place / "script" / "mode").read_text() == "600\n"
    folder = scheduler.place / "slurm-logs" / "run-7" / "attempt-0"
    assert (folder / "driver.log").read_text().startswith("127.0.0.1:")
    left = ["driver.log", "driver.pid", "head.log", "nodes.log", "outcome", "ready", "workers.log"]
    assert sorted(path.name for path in folder.iterdir()) == left


def test_all_workers_are_one_step_on_all_nodes_but_the_heads(tmp_path):
    scheduler = make_scheduler(tmp_path, nodes=5)
    assert scheduler.run(train=ONCE_THERE_ARE.format(1)).code == 0
    workers = [call for call in scheduler.calls("srun") if "--job-name=ray-workers" in call]
    assert len(workers) == 1
    assert "--nodes=4 --ntasks=4 --ntasks-per-node=1 --exclude=node1" in workers[0]
    assert any("ray_rl.cli.roll_call 5 " in call for call in scheduler.calls("srun"))


def test_one_node_has_no_workers(tmp_path):
    scheduler = make_scheduler(tmp_path, nodes=1)
    assert scheduler.run(train="exit 0\n").code == 0
    assert not [call for call in scheduler.calls("srun") if "ray-workers" in call]


def test_a_group_of_cpu_nodes_has_the_head_and_no_gpus(tmp_path):
    scheduler = make_scheduler(tmp_path, slurm={"cpu_nodes": 2})
    assert scheduler.run(train=ONCE_THERE_ARE.format(2)).code == 0
    calls = [call for call in scheduler.calls("srun") if "--job-name=ray-workers" in call]
    assert any(call.startswith("--nodes=2 --ntasks=2 --ntasks-per-node=1 --het-group=1") for call in calls)
    assert any(call.startswith("--nodes=1 --ntasks=1 --ntasks-per-node=1 --het-group=0 --exclude") for call in calls)
    assert any("ray_rl.cli.roll_call 4 " in call for call in scheduler.calls("srun"))


def test_a_wrong_configuration_is_not_tried_again(scheduler):
    ended = scheduler.run(train="echo train.workers=3: no >&2; exit 2\n")
    assert (ended.code, ended.outcome, ended.requeued) == (2, "refused", False)
    assert "train.workers=3: no" in ended.log


def test_a_failure_is_tried_again_as_often_as_configured(scheduler):
    first, second = scheduler.run(train="exit 1\n"), scheduler.run(train="exit 1\n")
    assert (first.code, first.outcome, first.requeued) == (1, "failed", True)
    assert (second.code, second.outcome, second.requeued) == (1, "failed", False)
    assert "failed: retry 1 of launch.retries=1; queued again" in first.log
    assert "failed 2 times, more than launch.retries=1 allows; not queued again. See the logs in " in second.log
    assert "slurm-logs/run-7/attempt-1, then submit the job again" in second.log


def test_an_attempt_that_saved_is_always_tried_again_and_does_not_count(scheduler):
    saved = [scheduler.run(train="exit 75\n") for _ in range(RETRIES + 2)]
    assert all((ended.code, ended.outcome, ended.requeued) == (75, "saved", True) for ended in saved)
    assert scheduler.run(train="exit 1\n").requeued


def test_an_attempt_that_was_cut_off_counts_as_a_failure(scheduler):
    scheduler.run(train="exit 75\n")
    (scheduler.place / "slurm-logs" / "run-7" / "attempt-0" / "outcome").unlink()
    assert not scheduler.run(train="exit 1\n").requeued


def test_a_job_that_slurm_brings_back_too_often_does_not_begin(scheduler):
    for attempt in range(RETRIES + 1):
        (scheduler.place / "slurm-logs" / "run-7" / f"attempt-{attempt}").mkdir(parents=True)
    scheduler.attempt = RETRIES + 1
    ended = scheduler.run(train="exit 0\n")
    assert (ended.code, ended.requeued) == (1, False)
    assert f"See the logs in {scheduler.folder.parent}, then submit the job again" in ended.log
    assert scheduler.calls("srun") == []


def test_usr1_reaches_the_driver_which_saves_and_the_job_is_queued_again(scheduler):
    def warn(process):
        scheduler.wait_for_driver(process)
        process.send_signal(signal.SIGUSR1)

    ended = scheduler.run(train=UNTIL_USR1.format(code=75), then=warn)
    assert (ended.code, ended.outcome, ended.requeued) == (75, "saved", True), ended.log


def test_term_reaches_the_driver_which_saves_and_the_job_ends(scheduler):
    def stop(process):
        scheduler.wait_for_driver(process)
        process.send_signal(signal.SIGTERM)

    ended = scheduler.run(train=UNTIL_USR1.format(code=75), then=stop)
    assert (ended.code, ended.outcome, ended.requeued) == (75, "stopped", False), ended.log


def test_a_stop_that_could_not_save_ends_the_job_too(scheduler):
    def stop(process):
        scheduler.wait_for_driver(process)
        process.send_signal(signal.SIGTERM)

    ended = scheduler.run(train=UNTIL_USR1.format(code=1), then=stop)
    assert (ended.code, ended.requeued) == (1, False)


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_while_nodes_start_ends_the_attempt_before_the_driver(scheduler, number, requeued):
    def tell(process):
        scheduler.wait(process, lambda: any("roll-call" in call for call in scheduler.calls("srun")))
        process.send_signal(number)

    ended = scheduler.run(roll_call="exec /bin/sleep 60\n", train="exit 0\n", then=tell)
    assert (ended.code, ended.requeued) == (75, requeued), ended.log
    assert scheduler.calls("ray-rl") == []


@pytest.mark.parametrize("step", ["ray_head", "ray_workers", "roll_call"])
def test_a_step_that_ends_ends_the_attempt_and_counts_though_the_driver_saved(scheduler, step):
    ready = "touch $ready\n" if step == "roll_call" else ""
    wait = "" if step == "ray_head" else "until [ ! -d $SCRIPT ] || [ -e $SCRIPT/listens ]; do sleep 1; done\n"
    dies = f"{ready}{wait}echo died; exit 1\n"
    ended = scheduler.run(train=UNTIL_USR1.format(code=75), **{step: dies})
    assert (ended.outcome, ended.requeued) == ("failed", True), ended.log
    assert "is lost; the last lines of" in ended.log
    assert "    died" in ended.log
    assert not scheduler.run(train="exit 1\n").requeued, "it counted"


def test_a_driver_that_hangs_when_a_node_is_lost_has_its_grace_and_no_more(scheduler):
    dies = "until [ ! -d $SCRIPT ] || [ -e $SCRIPT/listens ]; do sleep 1; done; exit 1\n"
    hangs = 'trap "" USR1\ntouch "$SCRIPT/listens"\nexec /bin/sleep 60\n'
    ended = scheduler.run(train=hangs, ray_workers=dies)
    assert (ended.outcome, ended.requeued) == ("failed", True), ended.log
    assert "the driver has run.grace_s=2 seconds to save" in ended.log


def test_nodes_that_do_not_come_end_the_attempt_at_the_time_limit(scheduler):
    # The clock of the script jumps once the head has answered, so that a slow machine cannot miss the limit before.
    at_limit = "start_workers && SECONDS=$((READY_S - 1)) && wait_for"
    assert scheduler.text.count("start_workers && wait_for") == 1
    scheduler.text = scheduler.text.replace("start_workers && wait_for", at_limit)
    ended = scheduler.run(roll_call="exec /bin/sleep 60\n", train="exit 0\n")
    assert (ended.outcome, ended.requeued) == ("failed", True)
    assert "2 nodes: not ready within launch.slurm.ready_timeout_s=600; see the logs in /" in ended.log
    assert scheduler.calls("ray-rl") == []


def test_a_head_that_does_not_answer_ends_the_attempt_at_the_time_limit(scheduler):
    assert scheduler.text.count("READY_S=600") == 1
    scheduler.text = scheduler.text.replace("READY_S=600", "READY_S=1")
    ended = scheduler.run(ray_head="exec /bin/sleep 60\n", train="exit 0\n")
    assert (ended.outcome, ended.requeued) == ("failed", True)
    assert "Ray head: not ready within launch.slurm.ready_timeout_s=1; see the logs in /" in ended.log
    assert [call for call in scheduler.calls("srun") if "job-name=ray-workers" in call or "roll-call" in call] == []
    assert scheduler.calls("ray-rl") == []


def test_a_preflight_that_fails_is_the_end_of_the_attempt(tmp_path):
    scheduler = make_scheduler(tmp_path, preflight=True)
    ended = scheduler.run(doctor="echo node2: no GPUs; exit 1\n", train="exit 0\n")
    assert (ended.code, ended.requeued) == (1, True)
    assert [call.split()[0] for call in scheduler.calls("ray-rl")] == ["doctor"]
    assert scheduler.run(doctor="exit 0\n").code == 0
    assert [call.split()[0] for call in scheduler.calls("ray-rl")] == ["doctor", "doctor", "train"]


def test_nothing_that_the_script_started_outlives_it(scheduler):
    assert scheduler.run(train="exit 0\n").left_behind == []


def test_a_token_of_the_submitting_shell_is_not_the_attempts(scheduler):
    scheduler.text = scheduler.text.replace("set -euo", "export RAY_AUTH_TOKEN=old RAY_ADDRESS=old:1\nset -euo", 1)
    scheduler.run(train='echo "token ${RAY_AUTH_TOKEN-none}"\n')
    log = scheduler.place / "slurm-logs" / "run-7" / "attempt-0" / "driver.log"
    assert log.read_text() == "token none\n"
