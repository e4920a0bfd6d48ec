"""docs/first_hour.md as a newcomer follows it: every file of the page is written, every command of it is run.

The page trains a 135M model; here a tiny one takes its name. Numbers are compared by their places alone.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.e2e.command import kill_all, processes_of, steps_done
from tests.tiny_model import write_tiny_model

PAGE = Path(__file__).parents[3] / "docs" / "first_hour.md"
MODEL = "smollm2-135m-instruct"
TRAIN_AND_STOP = ("train", "mine.yaml")
"""The command that the one after it stops."""
LIMIT_S = 400
pytestmark = pytest.mark.timeout(1800)  # the fixture runs the whole page
CODES = {("validate", "mine.yaml", "data.path=trian.jsonl"): 2, TRAIN_AND_STOP: 75}


@dataclass(frozen=True)
class Command:
    """A command of the page, and what it prints according to the page."""

    words: tuple[str, ...]
    printed: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    command: Command
    code: int
    output: str


def files_of(page: str) -> dict[str, str]:
    """Blocks that a line ending in a file's name and a colon announces."""
    return dict(re.findall(r"`([\w.]+)`:\n```\w+\n(.*?)```", page, re.DOTALL))


def commands_of(page: str) -> list[Command]:
    commands: list[Command] = []
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *printed = part.splitlines()
            program, *words = shlex.split(line)
            assert program == "ray-rl"
            commands.append(Command(tuple(words), tuple(printed)))
    return commands


def shape_of(line: str) -> str:
    """A pattern for a line of the page: any numbers of any width, any text in the place of three dots."""
    words = re.sub(r"(\d+ (h|min) )*\d+ (h|min|s)\b", "DURATION", line)
    pattern = re.escape(re.sub(r"\s+", " ", words.replace(MODEL, "./model")))
    pattern = re.sub(r"(?<![\w-])-?[\d,.]*\d\b", "NUMBER", pattern.replace(r"\.\.\.", "ANYTHING").replace(r"\.", "."))
    pattern = pattern.replace(".", r"\.").replace("DURATION", r"[\d hmins]+ (?:s|min)").replace("ANYTHING", ".*")
    return pattern.replace("NUMBER", r"-?[\d,.]+").replace(r"\ ", r"\s+")


def missing_line(printed: tuple[str, ...], output: str) -> str | None:
    """The first line of the page that the output does not have behind the lines before it.

    Lines follow each other at once, where no line of three dots stands between.
    """
    lines = [line.rstrip() for line in output.splitlines()]
    at, may_skip = 0, False
    for expected in printed:
        if expected == "...":
            may_skip = True
            continue
        pattern = re.compile(r"\s*" + shape_of(expected).removeprefix(r"\s+"))
        places = range(at, len(lines)) if may_skip else range(at, min(at + 1, len(lines)))
        found = next((place for place in places if pattern.fullmatch(lines[place])), None)
        if found is None:
            return expected
        at, may_skip = found + 1, False
    return None if may_skip or at == len(lines) else f"the end, before {lines[at]!r}"


@pytest.fixture(scope="module")
def hour(tmp_path_factory):
    """Every command of the page with how it ended, in order."""
    place = tmp_path_factory.mktemp("hour")
    page = PAGE.read_text(encoding="utf-8")
    write_tiny_model(place / "model")
    for name, text in files_of(page).items():
        (place / name).write_text(text.replace(MODEL, "./model"))
    ran: list[Ran] = []
    commands = iter(commands_of(page))
    for command in commands:
        process = start(place, command.words)
        stopping = None
        if command.words == TRAIN_AND_STOP:
            wait_for_a_step(place / "runs" / "mine", process)
            stopping = next(commands)
            stopped = finish(start(place, stopping.words), stopping)
        ran.append(finish(process, command))
        if stopping is not None:
            ran.append(stopped)
    return {" ".join(one.command.words): one for one in ran}


def start(place: Path, words: tuple[str, ...]) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("ray-rl")), *words],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_a_step(folder: Path, process: subprocess.Popen) -> None:
    give_up_s = time.monotonic() + LIMIT_S
    while not steps_done(folder):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up_s, "no step in time"
        time.sleep(0.05)


def finish(process: subprocess.Popen, command: Command) -> Ran:
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None or processes_of(process.pid):
            kill_all(process.pid)
    return Ran(command, process.returncode, output)


COMMANDS = [" ".join(command.words) for command in commands_of(PAGE.read_text(encoding="utf-8"))]


@pytest.mark.long
@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_the_page_ends_and_prints_as_the_page_says(hour, words):
    ran = hour[words]
    assert ran.code == CODES.get(ran.command.words, 0), ran.output
    missing = missing_line(ran.command.printed, ran.output)
    assert missing is None, f"not printed: {missing}\n{ran.output}"


def test_a_page_that_says_something_else_would_be_noticed():
    output = "step  1/40  reward -0.313  12 tokens\nDone: 40 of 40 steps in 2 min 10 s\n"
    assert missing_line(("step 3/4  reward  0.5  1,000 tokens", "Done: 1 of 1 steps in 25 s"), output) is None
    assert missing_line(("...", "Done: 1 of 1 steps in 25 s"), output) is None
    assert missing_line(("step 3/4 ...", "..."), output) is None
    assert missing_line(("Done: 1 of 1 steps in 25 s",), output) == "Done: 1 of 1 steps in 25 s"
    assert missing_line(("step 3/4 ...", "Finished: 1 of 1 steps in 25 s"), output) == "Finished: 1 of 1 steps in 25 s"
    assert missing_line(("step 3/4 ...",), output) == "the end, before 'Done: 40 of 40 steps in 2 min 10 s'"
