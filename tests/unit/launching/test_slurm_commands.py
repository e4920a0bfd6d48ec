"""Slurm's commands, which here are small programs that say what a test wants."""

import os
from pathlib import Path

import pytest

from ray_rl.errors import OutsideError, UserError
from ray_rl.launching.slurm import commands as slurm_commands
from ray_rl.launching.slurm.commands import logs, status, stop, submit
from tests.unit.launching.test_slurm import job

SHOWN = (
    "JobId=7 JobName=run UserId=me(1) Priority=1 JobState={state} Reason={reason} Dependency=(null) Restarts=2 "
    "ExitCode={code} RunTime=00:01:00 TimeLimit=1-00:00:00 StartTime=2026-01-02T03:04:05 NodeList=node[1-2] "
    "StdErr={log} StdOut={log} Power= "
)
FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes commands; a call of each is a line of `<name>.calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def make(**bodies: str) -> None:
        for name, body in bodies.items():
            (folder / name).write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/{name}.calls\n{body}\n')
            (folder / name).chmod(0o755)

    return make


def calls(name: str) -> list[str]:
    file = Path(f"{name}.calls")
    return file.read_text().splitlines() if file.exists() else []


def shown(state: str, *, reason: str = "None", code: str = "0:0", log: str = "slurm-logs/run-7.log") -> str:
    return f"echo '{SHOWN.format(state=state, reason=reason, code=code, log=log)}'"


def test_a_script_goes_to_sbatch_and_is_kept_beside_the_logs(programs):
    programs(sbatch="cat >script; echo '12;cluster'")
    assert submit(job("run.name=mine"), "#!/bin/bash\n") == "12"
    assert Path("script").read_text() == "#!/bin/bash\n"
    assert Path("slurm-logs/mine-12.sbatch").read_text() == "#!/bin/bash\n"
    assert calls("sbatch") == ["--parsable"]


def test_a_script_is_submitted_where_the_project_is(programs, tmp_path):
    programs(sbatch="pwd >$HOME_OF_TEST/seen; echo 12".replace("$HOME_OF_TEST", str(tmp_path)))
    submit(job("run.name=mine", workdir=str(tmp_path / "project")), "text")
    assert (tmp_path / "seen").read_text().strip() == str(tmp_path / "project")
    assert (tmp_path / "project" / "slurm-logs" / "mine-12.sbatch").is_file()


def test_what_slurm_refuses_is_the_users_to_mend(programs):
    programs(sbatch="echo 'sbatch: error: invalid partition specified: h100' >&2; exit 1")
    with pytest.raises(UserError, match="sbatch refuses: sbatch: error: invalid partition specified: h100"):
        submit(job(), "text")


def test_a_controller_that_does_not_answer_is_not_the_users_fault(programs):
    programs(sbatch="echo 'sbatch: error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    with pytest.raises(OutsideError, match="controller does not answer"):
        submit(job(), "text")


def test_a_command_that_hangs_is_given_up(programs, monkeypatch):
    monkeypatch.setattr(slurm_commands, "COMMAND_S", 0.2)
    programs(scontrol="exec sleep 60")
    with pytest.raises(OutsideError, match=r"scontrol: no answer from Slurm within 0\.2 s"):
        status("7")


def test_without_slurm_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="sbatch: not found; call this on a login node"):
        submit(job(), "text")


def test_status_says_state_reason_restarts_exit_code_and_logs(programs):
    programs(scontrol=shown("FAILED", reason="NonZeroExitCode", code="75:0"))
    assert status("7").splitlines() == [
        "7 run: FAILED (NonZeroExitCode)",
        "  nodes: node[1-2]",
        "  restarts: 2",
        "  exit code: 75:0",
        "  started: 2026-01-02T03:04:05",
        "  time: 00:01:00",
        "  limit: 1-00:00:00",
        "  logs: slurm-logs/run-7.log",
    ]


def test_a_job_that_the_controller_forgot_is_asked_of_the_accounting(programs):
    answer = "echo 'run|CANCELLED by 0|None|node1|0:15|2026-01-02T03:04:05|00:01:00|01:00:00'"
    programs(scontrol=FORGOTTEN, sacct=answer)
    assert status("7").startswith("7 run: CANCELLED\n  nodes: node1\n  exit code: 0:15\n")


def test_a_job_that_nobody_knows_is_said_to_be(programs):
    programs(scontrol=FORGOTTEN, sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    with pytest.raises(UserError, match="Slurm does not know job 7"):
        status("7")


@pytest.mark.parametrize("name", ["", "7_1", "--all", "7 8"])
def test_what_is_no_number_never_reaches_slurm(programs, name):
    programs(scontrol=shown("RUNNING"))
    with pytest.raises(UserError, match="is not the number of a Slurm job"):
        status(name)
    assert calls("scontrol") == []


def test_a_running_job_is_stopped_by_a_word_to_its_script(programs):
    programs(scontrol=shown("RUNNING"), scancel="")
    assert "told to save and end" in stop("7")
    assert calls("scancel") == ["--batch --signal=TERM 7"]


@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED", "COMPLETING"])
def test_any_other_job_is_cancelled(programs, state):
    programs(scontrol=shown(state), scancel="")
    assert state in stop("7")
    assert calls("scancel") == ["7"]


def test_a_job_that_has_ended_cannot_be_stopped(programs):
    programs(scontrol=shown("COMPLETED"), scancel="")
    with pytest.raises(UserError, match="has ended already: COMPLETED"):
        stop("7")
    assert calls("scancel") == []


def write_logs(folder: Path) -> Path:
    log = folder / "slurm-logs" / "run-7.log"
    for attempt in (0, 1):
        driver = log.with_suffix("") / f"attempt-{attempt}" / "driver.log"
        driver.parent.mkdir(parents=True)
        driver.write_text(f"step {attempt}\n")
    log.write_text("attempt 0\nattempt 1\n")
    return log


def test_logs_are_the_scripts_and_the_drivers_of_all_attempts(programs, tmp_path):
    programs(scontrol=shown("RUNNING", log=str(write_logs(tmp_path))))
    assert list(logs("7", follow=False)) == ["attempt 0", "attempt 1", "step 0", "step 1"]


def test_followed_logs_grow_until_the_job_has_ended(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_commands, "POLL_S", 0.01)
    monkeypatch.setattr(slurm_commands, "ASK_EVERY_S", 0.0)
    log = write_logs(tmp_path)
    programs(scontrol=shown("RUNNING", log=str(log)))
    lines = logs("7", follow=True)
    assert [next(lines) for _ in range(4)][-1] == "step 1"
    with log.open("a") as opened:
        opened.write("whole\npart")
    assert next(lines) == "whole"
    with log.open("a") as opened:
        opened.write("ial")
    programs(scontrol=shown("COMPLETED", log=str(log)))
    assert list(lines) == ["partial"]


def test_logs_of_a_forgotten_job_are_found_in_its_folder(programs, tmp_path):
    programs(scontrol=FORGOTTEN, sacct="exit 1")
    with pytest.raises(UserError, match="call this in the folder where the job was submitted"):
        list(logs("7", follow=False))
    write_logs(tmp_path)
    assert list(logs("7", follow=True))[:2] == ["attempt 0", "attempt 1"]
