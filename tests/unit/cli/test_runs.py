"""Runs of this machine by their folders: the list, where one stands, and its end."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ray_rl.cli.main import main
from ray_rl.cli.run_state import owner_of, run_state
from ray_rl.config.loading.load import dump_config, load_config
from ray_rl.metrics.folder_lock import mark_ending

CONFIG = """\
run: {name: test, dir: somewhere, steps: 4, grace_s: 5}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
rewards: [{kind: number}]
algorithm: {kind: grpo, reduction: token_mean, kl: {coefficient: 0}}
cluster: {accelerator: cpu}
"""

OF_A_LATER_VERSION = """\
run: {name: a, steps: 3, gone: 1}
model: {path: a}
data: {kind: addition}
algorithm: {kind: grpo}
"""
OWNER = """\
import fcntl, json, os, signal, socket, sys, time
lock = open(sys.argv[1] + "/lock", "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(json.dumps({"pid": os.getpid(), "host": sys.argv[2] or socket.gethostname()}))
lock.flush()
def save(*_):
    os.makedirs(sys.argv[1] + "/checkpoints/step_3")
    open(sys.argv[1] + "/checkpoints/step_3/manifest.json", "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[3] else save)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def make(tmp_path):
    """Makes a run folder after some steps."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    config = dump_config(load_config(tmp_path / "config.yaml"))
    (tmp_path / "config.yaml").unlink()

    def folder(name, *, steps=2, saved=(), exported=None):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(config)
        (run / "environment.json").write_text("{}")
        lines = [json.dumps({"step": step, "reward/mean": step / 8}) + "\n" for step in range(1, steps + 1)]
        (run / "metrics.jsonl").write_text("".join(lines))
        for step in saved:
            (run / "checkpoints" / f"step_{step}").mkdir(parents=True)
            (run / "checkpoints" / f"step_{step}" / "manifest.json").write_text("{}")
        if exported is not None:
            (run / "export").mkdir()
            (run / "export" / "ray_rl.json").write_text(json.dumps({"step": exported}))
        return run

    return folder


@pytest.fixture
def owned():
    """Starts a process that has a folder as `ray-rl train` does, and ends it."""
    started = []

    def own(folder, *, host="", ignores=False):
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder), host, "1" if ignores else ""], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield own
    for process in started:
        process.kill()
        process.wait(timeout=10)
        process.stdout.close()


def test_the_list_has_state_steps_reward_and_what_comes_next(make, owned, tmp_path, capsys):
    new, saved = make("new", steps=0), make("saved", saved=[1, 2])
    done, live = make("done", steps=4, saved=[4], exported=4), make("deep/live", steps=3)
    extended = make("extended", steps=4, saved=[4], exported=2)
    failed, killed = make("failed", steps=0), make("killed", saved=[2])
    mark_ending(failed, "failed")
    mark_ending(killed, "killed")
    (tmp_path / "runs" / "no-run").mkdir()
    owned(live)
    assert main(["runs", str(tmp_path / "runs")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["RUN", "STATE", "STEP", "REWARD", "AGE", "NEXT"]
    rows = {line.split()[0]: line.split() for line in lines}
    assert {folder: row[1:4] for folder, row in rows.items()} == {
        str(new): ["stopped", "0/4", "-"],
        str(saved): ["stopped", "2/4", "0.250"],
        str(failed): ["failed", "0/4", "-"],
        str(killed): ["killed", "2/4", "0.250"],
        str(done): ["done", "4/4", "0.500"],
        str(live): ["running", "3/4", "0.375"],
        str(extended): ["stopped", "4/4", "0.500"],
    }
    assert {folder: " ".join(row[row.index("ray-rl") :]) for folder, row in rows.items()} == {
        str(new): f"ray-rl train {new}/config.yaml --resume auto",
        str(saved): f"ray-rl resume {saved}",
        str(failed): f"ray-rl train {failed}/config.yaml --resume auto",
        str(killed): f"ray-rl resume {killed}",
        str(done): f"ray-rl export {done} --to DIR",
        str(live): f"ray-rl stop {live}",
        str(extended): f"ray-rl resume {extended}",
    }


def test_a_folder_without_runs_and_one_that_is_not_there(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert "no run folders in it" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_old_and_foreign_files_in_a_run_folder_are_no_traceback(make, capsys):
    run = make("strange", saved=[2])
    (run / "config.yaml").write_text("run: {steps: 9, of_an_older_release: 1}\nold: [1]\n")
    (run / "metrics.jsonl").write_bytes(
        b'not json\n{"step": 3, "reward/mean": 0.5}\n[1]\n{"step": "x"}\n\xff\xfe\n{"step": 4, "rew'
    )
    (run / "checkpoints" / "notes.txt").write_text("mine")
    (run / "checkpoints" / "step_x").mkdir()
    (run / "checkpoints" / "step_7").write_text("a file")
    state = run_state(run)
    assert (state.state, state.step, state.steps, state.reward, state.checkpoint) == ("stopped", 3, 9, 0.5, 2)
    (run / "config.yaml").write_text("- a list\n")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{run}: unreadable, after step 0 of ?\n")
    assert "the file is a list; write a mapping" in said


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "config.yaml",
            "run: {name: a, steps: 3, gone: 1}\nmodel: {path: a}\ndata: {kind: addition}\nalgorithm: {kind: grpo}\n",
            "unknown key",
        ),
        ("config.yaml", "- a list\n", "the file is a list"),
        ("config.yaml", "\0", "is not allowed in YAML"),
        ("config.yaml", None, "config.yaml"),
    ],
)
def test_a_resume_in_a_folder_of_old_or_foreign_files_is_one_sentence_and_exit_code_2(
    make, name, content, says, capsys
):
    run = make("strange", saved=[2])
    (run / name).unlink()
    if content is None:
        (run / name).mkdir()
    else:
        (run / name).write_text(content)
    assert main(["resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert says in said and said.startswith("ray-rl: error: ") and said.count("\n") == 1


def test_a_running_run_is_named_with_its_process(make, owned, capsys):
    run = make("live")
    process = owned(run)
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"{run}: running (pid {process.pid} on {os.uname().nodename}), step 2 of 4 is on record" in said
    assert "reward 0.250 (mean of the last step)" in said
    assert said.endswith(f"next: ray-rl stop {run}\n")


def test_stop_ends_the_owner_and_says_what_it_left(make, owned, capsys):
    run = make("live", steps=3)
    process = owned(run)
    assert main(["stop", str(run), "--dry-run"]) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert owner_of(run).pid == process.pid
    assert main(["stop", str(run)]) == 0
    assert process.wait(timeout=10) == 75
    said = capsys.readouterr()
    assert said.out == (
        f"{run}: ended, stopped, after step 3 of 4; its newest checkpoint is of step 3\n  next: ray-rl resume {run}\n"
    )
    assert main(["stop", str(run)]) == 0
    assert f"{run}: not running; stopped, after step 3 of 4" in capsys.readouterr().out


def test_stop_does_not_wait_for_ever(make, owned, monkeypatch, capsys):
    run = make("live")
    process = owned(run, ignores=True)
    monkeypatch.setattr("ray_rl.cli.runs.TEARDOWN_S", -4.5)
    assert main(["stop", str(run)]) == 1
    assert (
        f"process {process.pid} has not ended 0.5 s after SIGTERM; `kill -9 {process.pid}`" in capsys.readouterr().err
    )
    assert process.poll() is None


def test_a_process_of_another_machine_is_not_signalled(make, owned, monkeypatch, capsys):
    run = make("live")
    owned(run, host="elsewhere")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("signalled"))
    assert main(["stop", str(run)]) == 2
    assert "on elsewhere, which is not this machine or container; run `ray-rl stop" in capsys.readouterr().err


def test_a_lock_that_does_not_say_whose_it_is_signals_nobody(make, owned, capsys):
    run = make("live")
    process = owned(run)
    (run / "lock").write_text("7")
    assert run_state(run).state == "running"
    assert main(["stop", str(run)]) == 2
    assert "its lock does not say where" in capsys.readouterr().err
    process.send_signal(signal.SIGTERM)


def test_logs_of_a_folder_are_those_of_its_driver(make, capsys):
    run = make("first")
    assert main(["logs", str(run)]) == 0
    nothing = f"{run}: no driver.log, because nothing unusual has happened; "
    assert capsys.readouterr().out == f"{nothing}its workers wrote no output\n"
    (run / "logs").mkdir()
    (run / "logs" / "actor-0.log").write_text("loaded")
    assert main(["logs", str(run), "--follow"]) == 0
    assert capsys.readouterr().out == f"{nothing}the output of its workers is in {run}/logs/\n"
    (run / "logs" / "driver.log").write_bytes(b"engine 0 was lost\n\xff\n")
    assert main(["logs", str(run), "--follow"]) == 0
    assert capsys.readouterr().out == "engine 0 was lost\n\\xff\n"


@pytest.mark.parametrize("command", ["status", "stop", "logs"])
def test_what_is_no_run_folder_is_refused(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_dry_run_checks_and_plans_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    assert main(["train", "run.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("plan: fits") and said.endswith("nothing was started or written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    assert main(["train", "run.yaml", "--dry-run", "data={kind: jsonl, path: none.jsonl}"]) == 2
    assert "none.jsonl" in capsys.readouterr().err


OFFLINE = """\
run: {name: test, dir: somewhere, steps: 4, evaluate_every: 1, patience: 1}
model: {path: smollm2-135m-instruct}
data: {kind: jsonl, path: rows.jsonl, held_out: 0.1}
algorithm: {kind: sft}
checkpoint: {keep_best: eval/loss}
cluster: {accelerator: cpu}
"""


def test_a_run_that_learns_from_examples_shows_its_loss_and_is_done_when_it_ended_early(make, capsys):
    run = make("sft", steps=0, saved=(3,), exported=2)
    (run / "config.yaml").write_text(OFFLINE)
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "sft/loss": {4 / step}}}\n' for step in (1, 2, 3)))
    evaluations = run / "checkpoints" / "step_3" / "evaluation.json"
    evaluations.write_text('{"step": 2, "value": 1.5, "since": 1, "is_kept": true}')
    state = run_state(run)
    assert (state.state, state.loss, state.reward) == ("done", pytest.approx(4 / 3), None)
    assert main(["runs", str(run.parent)]) == 0
    assert "loss 1.333" in capsys.readouterr().out
    assert main(["status", str(run)]) == 0
    assert "\n  loss 1.333 (mean of the last step)\n" in capsys.readouterr().out
    evaluations.write_text('{"step": 2, "value": 1.5, "since": 0, "is_kept": true}')
    assert run_state(run).state == "stopped"
