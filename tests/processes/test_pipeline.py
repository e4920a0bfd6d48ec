"""A pipeline whose stages are scripted: what is trained, skipped, resumed and refused, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from ray_rl.app.own_process import train_command
from ray_rl.cli.main import main
from ray_rl.errors import ConfigError
from ray_rl.metrics.folder_lock import locked
from ray_rl.pipeline import drive
from ray_rl.pipeline.summary import course
from tests.unit.pipeline.conftest import RUN

STAGES = """\
name: two
stages:
  - {name: first, config: run.yaml, show: [reward/mean, policy/entropi]}
  - {name: second, config: run.yaml, overrides: ["model.path={stage: first}"]}
"""
TRAIN = """
import json, os, re, signal, sys, time
from pathlib import Path
assert "SET_BY_A_CHECK" not in os.environ
assert os.getsid(0) == os.getpid(), "Ctrl-C in a terminal would reach the stage twice"
config = Path(sys.argv[1])
name, model = config.stem, re.search("^model: {path: ([^,]*)", config.read_text(), re.MULTILINE)[1]
folder = Path("runs/two", name)
folder.mkdir(exist_ok=True)
with open("log", "a") as log:
    print(name, model, " ".join(sys.argv[2:]), file=log)
codes = json.loads(Path("codes").read_text()) if Path("codes").exists() else {}
code = codes.get(name, 0)
if code in ("save", "finish"):
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(signal.Signals(number).name))
    print("up", flush=True)
    give_up_s = time.monotonic() + 30
    while not asked and time.monotonic() < give_up_s:
        time.sleep(0.01)
    time.sleep(0.2)
    with open("log", "a") as log:
        print(f"{code} {name}:", *asked, file=log)
    code = 75 if code == "save" else 0
if code < 0:
    os.kill(os.getpid(), -code)
records = [{"step": i, "reward/mean": i / 8, "policy/entropy": 1.0, "time/step_s": 30.0} for i in range(1, 9)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in records))
if code == 0:
    (folder / "export").mkdir(exist_ok=True)
sys.exit(code)
"""


@contextmanager
def scripted_command(config, *, resume):
    with train_command(config, resume=resume) as command:
        assert command[:4] == [sys.executable, "-m", "ray_rl.cli.main", "train"]
        yield [sys.executable, "-S", "-c", TRAIN, *command[4:]]


class Place:
    """A folder with a pipeline of two stages."""

    def __init__(self, folder):
        self.folder = folder
        self.checked = []

    def ends(self, **codes):
        """Sets the exit code of each stage from now on."""
        (self.folder / "codes").write_text(json.dumps(codes))

    def trained(self):
        """The stages that were started since the last call, with their model and further arguments."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "two.yaml").write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)

    def check(config, *, is_full, progress, **options):
        place.checked.append((config.run.name, config.model.path, is_full))
        if config.run.seed == 13:
            progress("data: 3 rows")
            raise ConfigError("run.seed=13: unlucky")

    monkeypatch.setattr(drive, "train_command", scripted_command)
    monkeypatch.setattr(drive, "check_before_start", check)
    return place


FIRST, SECOND = "first smollm2-135m-instruct --resume auto", "second runs/two/first/export --resume auto"


def test_stages_are_trained_in_order_once_and_the_summary_shows_their_course(place, capsys):
    assert main(["pipeline", "two.yaml"]) == 0
    assert place.trained() == [FIRST, SECOND]
    assert place.checked == [("first", "smollm2-135m-instruct", False), ("second", "smollm2-135m-instruct", True)]
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == ["two: 2 stages in runs/two", "  first: new", "  second: new"]
    table = [
        "STAGE   STATE        STEPS  TIME         METRIC          FIRST   LAST  COURSE",
        "first   trained      8      4 min 00 s   reward/mean     0.188  0.938  _.-=+*#@",
        "                                         policy/entropi                no such metric; policy/entropy?",
        "second  trained      8      4 min 00 s   reward/mean     0.188  0.938  _.-=+*#@",
    ]
    shown = [line.replace("\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "_.-=+*#@") for line in out[5:9]]
    assert [line.split() for line in shown] == [line.split() for line in table]
    assert out[-2:] == ["model of first: runs/two/first/export", "model of second: runs/two/second/export"]

    assert main(["pipeline", "two.yaml"]) == 0
    assert place.trained() == []
    out = capsys.readouterr().out
    assert "  first: done, is not trained again\n  second: done, is not trained again\n" in out
    assert "first   done before" in out


def test_a_stage_that_was_interrupted_is_resumed_and_the_others_are_not_trained_again(place, capsys):
    place.ends(second=-9)
    assert main(["pipeline", "two.yaml", "dir=runs"]) == 1
    error = "ray-rl: error: stage second: its run failed (killed by SIGKILL), see above; `ray-rl pipeline two.yaml "
    assert capsys.readouterr().err == f"{error}dir=runs` continues there\n"
    place.ends()
    place.trained()
    assert main(["pipeline", "two.yaml"]) == 0
    assert place.trained() == [SECOND]
    out = capsys.readouterr().out
    assert "  first: done, is not trained again\n  second: was interrupted, is resumed\nstage second (2 of 2)\n" in out
    assert "second  resumed" in out


@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [
        (75, 75, "ray-rl: stopped in stage first; `ray-rl pipeline two.yaml` continues there"),
        (-15, 75, "ray-rl: stopped in stage first; `ray-rl pipeline two.yaml` continues there"),
        (
            2,
            2,
            "ray-rl: error: stage first: its input is wrong, see above; correct it, then continue with `ray-rl "
            "pipeline two.yaml`",
        ),
        (
            1,
            1,
            "ray-rl: error: stage first: its run failed (exit code 1), see above; `ray-rl pipeline two.yaml` continues "
            "there",
        ),
        (130, 130, "ray-rl: interrupted"),
    ],
)
def test_the_pipeline_ends_as_its_stage_did(place, capsys, code, exit_code, message):
    place.ends(first=code)
    assert main(["pipeline", "two.yaml"]) == exit_code
    assert capsys.readouterr().err == f"{message}\n"
    assert place.trained() == [FIRST]


def test_a_problem_of_a_later_stage_is_found_before_the_first_one_starts(place, capsys):
    assert main(["pipeline", "two.yaml", "second.run.seed=13"]) == 2
    assert capsys.readouterr().err == (
        "ray-rl: stage second: data: 3 rows\nray-rl: error: stage second: run.seed=13: unlucky\n"
    )
    assert place.trained() == []
    assert not (place.folder / "runs").exists()


def test_what_a_check_sets_in_the_environment_does_not_reach_the_stages(place, monkeypatch):
    monkeypatch.setattr(drive, "check_before_start", lambda *_, **options: monkeypatch.setenv("SET_BY_A_CHECK", "1"))
    assert main(["pipeline", "two.yaml"]) == 0
    assert os.environ["SET_BY_A_CHECK"] == "1"


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGTERM, 75, "ray-rl: stopped by SIGTERM; `ray-rl pipeline two.yaml` continues\n"),
        (signal.SIGINT, 130, "ray-rl: interrupted\n"),
    ],
)
def test_a_signal_before_the_first_stage_ends_the_pipeline(place, capsys, monkeypatch, number, code, message):
    monkeypatch.setattr(drive, "check_before_start", lambda *arguments, **options: os.kill(os.getpid(), number))
    handler = signal.getsignal(number)
    assert main(["pipeline", "two.yaml"]) == code
    assert capsys.readouterr().err == message
    assert place.trained() == []
    assert signal.getsignal(number) is handler


def test_a_dry_run_checks_every_stage_in_full_and_prints_its_plan(place, capsys):
    assert main(["pipeline", "two.yaml", "--dry-run"]) == 0
    assert [is_full for _, _, is_full in place.checked] == [True, True]
    out = capsys.readouterr().out
    assert "stage first:\nplan: fits" in out
    assert "stage second:\nplan: fits" in out
    assert place.trained() == []
    assert not (place.folder / "runs").exists()


def test_a_stage_that_is_done_must_keep_its_configuration(place, capsys):
    main(["pipeline", "two.yaml"])
    place.trained()
    capsys.readouterr()
    assert main(["pipeline", "two.yaml", "first.train.learning_rate=0.5", "first.cluster.nodes=2"]) == 2
    assert capsys.readouterr().err == (
        "ray-rl: error: stage first: it is done, and its configuration has changed since:\n"
        "  train.learning_rate: 1e-06 -> 0.5\n"
        "Change it back; or, to train the stage again, move runs/two/first runs/two/second to another place (or delete "
        "them); or set another `name` to start a new pipeline\n"
    )
    assert main(["pipeline", "two.yaml", "second.run.seed=1"]) == 2
    assert "move runs/two/second to another place (or delete it)" in capsys.readouterr().err
    (place.folder / "runs/two/second").rename(place.folder / "elsewhere")
    assert main(["pipeline", "two.yaml", "first.run.seed=1"]) == 2
    assert "move runs/two/first to another place (or delete it)" in capsys.readouterr().err
    assert place.trained() == []


def test_a_stage_is_not_continued_with_the_model_of_a_stage_that_is_trained_again(place, capsys):
    main(["pipeline", "two.yaml"])
    place.trained()
    (place.folder / "runs/two/first").rename(place.folder / "elsewhere")
    assert main(["pipeline", "two.yaml"]) == 2
    assert capsys.readouterr().err == (
        "ray-rl: error: stage second: it was started with the model of stage first, which is not done now; to train "
        "second with the new model, move runs/two/second to another place (or delete it)\n"
    )
    (place.folder / "runs/two/second").rename(place.folder / "elsewhere as well")
    assert main(["pipeline", "two.yaml"]) == 0
    assert place.trained() == [FIRST, SECOND]


def test_a_stage_without_its_model_or_its_record_is_not_done(place):
    main(["pipeline", "two.yaml"])
    place.trained()
    (place.folder / "runs/two/second/export").rmdir()
    assert main(["pipeline", "two.yaml"]) == 0
    assert place.trained() == [SECOND]
    (place.folder / "runs/two/second.done.yaml").unlink()
    assert main(["pipeline", "two.yaml"]) == 0
    assert place.trained() == [SECOND]


def test_a_stage_that_exports_nothing_is_done_without_a_model(place, capsys):
    asked = ["pipeline", "two.yaml", "second.checkpoint.export=false"]
    main(asked)
    assert place.trained() == [FIRST, SECOND]
    (place.folder / "runs/two/second/export").rmdir()
    assert main(asked) == 0
    assert place.trained() == []
    assert "model of second" not in capsys.readouterr().out


def test_the_summary_has_a_row_for_a_stage_without_records(place, capsys):
    main(["pipeline", "two.yaml"])
    (place.folder / "runs/two/second/metrics.jsonl").unlink()
    capsys.readouterr()
    assert main(["pipeline", "two.yaml"]) == 0
    assert "second  done before  0      0 s" in capsys.readouterr().out


def test_a_pipeline_that_another_process_trains_is_left_alone(place, capsys):
    (place.folder / "runs/two").mkdir(parents=True)
    with locked(place.folder / "runs/two"):
        assert main(["pipeline", "two.yaml"]) == 1
    assert "another process (pid" in capsys.readouterr().err
    assert place.trained() == []


def test_a_stage_that_still_ends_after_its_pipeline_was_killed_is_waited_for(place, capsys, monkeypatch):
    monkeypatch.setattr(drive, "TEARDOWN_S", 0.0)
    folder = place.folder / "runs/two/first"
    folder.mkdir(parents=True)
    with locked(folder):
        assert main(["pipeline", "two.yaml", "first.run.grace_s=0.01"]) == 0
    waits = [line for line in capsys.readouterr().out.splitlines() if "waiting" in line]
    assert waits == [f"runs/two/first: process {os.getpid()} still trains there; waiting at most 0.01 s for its end"]
    assert place.trained() == [FIRST, SECOND]


@pytest.mark.parametrize(("overrides", "mode"), [([], 0o700), (["second.run.group_readable=true"], 0o750)])
def test_the_group_can_reach_a_run_folder_that_it_may_read(place, overrides, mode):
    assert main(["pipeline", "two.yaml", *overrides]) == 0
    assert (place.folder / "runs/two").stat().st_mode & 0o777 == mode


def test_an_error_shows_no_secret_of_a_stage(place, capsys, monkeypatch):
    def check(config, **options):
        if config.launch.environment:
            raise ConfigError(f"the server refuses {config.launch.environment['API_KEY']}")

    monkeypatch.setattr(drive, "check_before_start", check)
    assert main(["pipeline", "two.yaml", "second.launch.environment={API_KEY: swordfish}"]) == 2
    assert capsys.readouterr().err == "ray-rl: error: stage second: the server refuses ***\n"


def test_the_course_of_many_steps_is_a_line_of_means():
    assert course([0.0] * 24 + [7.0] * 24, encoding="ascii") == "_" * 12 + "@" * 12
    assert course([5.0, 5.0], encoding="utf-8") == "\u2581\u2581"


PIPELINE = """
import signal, sys
from contextlib import contextmanager
signal.signal(signal.SIGINT, signal.default_int_handler)
from ray_rl.app.own_process import train_command
from ray_rl.cli.main import main
from ray_rl.pipeline import drive
@contextmanager
def scripted_command(config, *, resume):
    with train_command(config, resume=resume) as command:
        yield [sys.executable, "-S", "-c", PROGRAM, *command[4:]]
drive.train_command = scripted_command
drive.check_before_start = lambda *arguments, **options: None
raise SystemExit(main(["pipeline", "two.yaml"]))
""".replace("PROGRAM", repr(TRAIN))


def started(place, *, then):
    """A pipeline in a process and a group of its own, whose first stage waits for a signal."""
    place.ends(first=then)
    pipeline = subprocess.Popen(
        [sys.executable, "-c", PIPELINE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while pipeline.stdout.readline() != "up\n":
        assert pipeline.poll() is None
    return pipeline


@pytest.mark.parametrize(
    ("number", "then", "message"),
    [
        (signal.SIGINT, "save", "stopped in stage first; `ray-rl pipeline two.yaml` continues there"),
        (signal.SIGTERM, "finish", "stopped by SIGTERM after stage first; `ray-rl pipeline two.yaml` continues"),
    ],
    ids=["a stage that saves", "a stage that trains to its end"],
)
def test_a_signal_of_the_terminal_reaches_the_stage_and_no_further_stage_starts(place, number, then, message):
    pipeline = started(place, then=then)
    os.killpg(pipeline.pid, signal.SIGHUP)  # a terminal that closes ends nothing
    os.killpg(pipeline.pid, number)
    _, err = pipeline.communicate(timeout=20)
    assert (pipeline.returncode, err) == (75, f"ray-rl: {message}\n")
    assert place.trained() == [FIRST, f"{then} first: {number.name}"]


def test_a_stage_saves_and_ends_when_its_pipeline_is_killed(place):
    pipeline = started(place, then="save")
    pipeline.kill()
    pipeline.communicate(timeout=20)
    give_up_s = time.monotonic() + 20
    while (lines := (place.folder / "log").read_text().splitlines()) != [FIRST, "save first: SIGTERM"]:
        assert time.monotonic() < give_up_s, lines
        time.sleep(0.02)
