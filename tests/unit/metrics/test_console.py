import io
import re
import time

import pytest

from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.text import Sample, Status

FIELDS = [("step", "3/40"), ("reward", "0.500"), ("seconds", " 13.9"), ("rollout", "  6.1")]
STATUS = Status(3, "waiting for rollouts", 45, "12 of 64 completions")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def pipe():
    return io.StringIO()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def test_a_step_is_one_plain_line(pipe):
    RunConsole(pipe).step(FIELDS)
    assert pipe.getvalue() == "step 3/40  reward 0.500  seconds  13.9  rollout   6.1\n"


@pytest.mark.parametrize(("columns", "shown"), [(80, FIELDS), (52, FIELDS[:3]), (30, FIELDS[:2]), (5, FIELDS[:1])])
def test_a_terminal_shows_the_columns_that_fit_into_one_line(terminal, monkeypatch, columns, shown):
    monkeypatch.setenv("COLUMNS", str(columns))
    RunConsole(terminal).step(FIELDS)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert text == "  ".join(f"{label} {value}" for label, value in shown) + "\n"


def test_a_long_line_is_not_wrapped(pipe):
    RunConsole(pipe).say("word " * 100)
    assert pipe.getvalue() == ("word " * 100).rstrip() + "\n"


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_pipe_gets_no_control_characters_and_no_trailing_blanks(pipe, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    console = RunConsole(pipe)
    console.watch(lambda: STATUS, steps=40, left_s=lambda: None)
    console.samples("step 10", [Sample("What?", "red \x1b[31m [bold]text\r\n", "\x1b[2J", 1.0, {"number": 1.0})])
    console.summary("Done", [("reward", "0.1")], failed=False)
    console.close()
    text = pipe.getvalue()
    assert all(char.isprintable() for char in text.replace("\n", ""))
    assert all(line == line.rstrip() for line in text.split("\n"))
    assert r"red \x1b[31m [bold]text\r\n" in text


def test_the_heartbeat_is_a_line_where_there_is_no_live_line(pipe, terminal):
    RunConsole(pipe).heartbeat(STATUS)
    assert pipe.getvalue() == "step 3: waiting for rollouts (45 s; 12 of 64 completions)\n"
    RunConsole(terminal).heartbeat(STATUS)
    assert terminal.getvalue() == ""


def test_a_sample_without_an_opinion_shows_no_reward(pipe):
    RunConsole(pipe).samples("step 10", [Sample("What is 17+25?", "42", None, None, {"number": None})])
    assert "| What is 17+25? | 42         | -      |      - | number - |" in pipe.getvalue()


def test_a_sample_shows_the_reference_answer_and_what_each_reward_function_said(pipe):
    sample = Sample("What is 17+25?", "It is 42.", "42", 0.95, {"number": 1.0, "length": -0.5})
    RunConsole(pipe).samples("step 10", [sample])
    assert pipe.getvalue().splitlines()[2:6] == [
        "| prompt         | completion | answer | reward | parts        |",
        "+----------------+------------+--------+--------+--------------+",
        "| What is 17+25? | It is 42.  | 42     |   0.95 | number 1.00  |",
        "|                |            |        |        | length -0.50 |",
    ]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_of_samples_fits_the_terminal(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    sample = Sample("What is it? " * 20, "It is this. " * 30, "the answer " * 10, 0.5, {"number": 0.5, "brevity": 0})
    RunConsole(terminal).samples("step 10", [sample])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= columns
    assert any("brevity 0.00" in line for line in lines)


def test_the_summary_lines_up_labels_and_values(pipe):
    RunConsole(pipe).summary(
        "Done: 3 of 3 steps in 9 s", [("reward", "0.1 -> 0.7"), ("run folder", "runs/a")], failed=False
    )
    assert pipe.getvalue() == "Done: 3 of 3 steps in 9 s\n  reward      0.1 -> 0.7\n  run folder  runs/a\n"


def test_a_terminal_has_a_live_line_that_goes_away(terminal):
    console = RunConsole(terminal)
    console.watch(lambda: STATUS, steps=40, left_s=lambda: 552.0)
    console.step(FIELDS)
    deadline = time.monotonic() + 10
    while "waiting for rollouts  45 s" not in terminal.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    console.close()
    text = terminal.getvalue()
    assert "waiting for rollouts  45 s  12 of 64 completions" in text
    assert "3/40" in text
    assert "9 min 12 s left" in text
    assert text.rstrip().endswith("\x1b[2K")  # the line is erased


def test_a_dumb_terminal_is_a_pipe(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert not RunConsole(terminal).is_live
