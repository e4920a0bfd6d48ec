"""The checkpoint store dies, or meets an error, before every operation that it makes: nothing is lost.

Run as a program, `test_deaths_of_a_store.py <folder>`, this file is the victim: it commits once for every operation of
a commit, and meets a fault there. It is a process of its own: it forks, and pytest has threads.

`commit i` is the i-th of a scenario, and also what its files contain.
"""

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from ray_rl.checkpoint.store import MANIFEST
from ray_rl.errors import CheckpointError
from tests.small_checkpoints import commit, content_of, memory, names_in, refuse, store_in, tmp_path

__all__ = ["memory", "tmp_path"]

SCENARIOS = {"fall_back": (2, 4, 6, 4, 8), "leftovers": (4, 4)}
"""Steps in the order in which they are committed, keeping 2 and multiples of 4. The first of `leftovers` is done."""
PASSED, STRUCK, FAILED = 0, 1, 2
"""Exit codes: the operation was never reached; the fault struck; the test itself is wrong."""
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def prepare(scenario: str, folder: Path) -> int:
    """Makes what the scenario starts from; returns how many of its commits are done."""
    if scenario == "fall_back":
        return 0
    store, inside = store_in(folder, keep_last=4), folder / "checkpoints"
    for step in (1, 2, 3):
        commit(store, step)
    commit(store, 4, "commit 0")
    shutil.copytree(inside / "step_3", inside / ".step_3.replaced")
    (inside / "step_1").rename(inside / ".step_1.removing")
    (inside / ".step_1.removing" / MANIFEST).unlink()
    shutil.copytree(inside / "step_4", inside / ".step_4.writing")
    (inside / "step_4").rename(inside / ".step_4.replaced")
    return 1


def strike_at(operation: int, fault: str, journal: int) -> list[int]:
    """From now on, this process meets the fault before its `operation`-th change or flush of the disk.

    Returns:
        A list with the operation as soon as it was struck. The journal gets a line for every operation before it.
    """
    counter, struck = itertools.count(1), []
    real_fsync, real_write = os.fsync, os.write

    def before_operation(line: str) -> None:
        if next(counter) == operation:
            if fault == "death":
                os._exit(STRUCK)
            struck.append(operation)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real_write(journal, f"{line}\n".encode())

    def audit(event: str, arguments: tuple) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            paths = [str(argument) for argument in arguments if isinstance(argument, str | Path)]
            before_operation(" ".join([event, *paths]))

    def fsync(descriptor: int) -> None:
        before_operation("flush")
        real_fsync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        real_write(journal, f"flushed {os.fstat(descriptor).st_ino} {path}\n".encode())

    def write(descriptor: int, data: bytes) -> int:
        before_operation("write")
        return real_write(descriptor, data)

    sys.addaudithook(audit)
    os.fsync, os.write = fsync, write
    return struck


def live(folder: Path, step: int, number: int, *, operation: int, fault: str) -> int:
    """Finds the latest checkpoint and commits another, again after an error; returns STRUCK or PASSED."""
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    record = os.write
    struck = strike_at(operation, fault, journal)
    store = store_in(folder)
    while True:
        try:
            store.latest(refuse)
            commit(store, step, f"commit {number}")
        except CheckpointError as error:
            assert "Input/output error; " in str(error)
            store.abandon(step)
        else:
            record(journal, b"committed %d\n" % number)
            return STRUCK if struck else PASSED


def live_in_child(*arguments, **settings) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(live(*arguments, **settings))
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copy_run(source: Path, to: Path) -> Path:
    """Copies all but the journal by links: no file of a checkpoint is ever written twice."""
    shutil.copytree(
        source, to, copy_function=lambda a, b: (shutil.copy if Path(a).name == "journal" else os.link)(a, b)
    )
    return to


def live_many_times(scenario: str, fault: str, base: Path) -> None:
    """For every commit, a life for every operation of it, until one does not reach the operation; then the next."""
    (base / "start").mkdir(parents=True)
    done = prepare(scenario, base / "start")
    files = [path for path in (base / "start").rglob("*") if path.is_file()]
    old = [f"flushed {path.stat().st_ino}\n" for path in files] + [f"committed {number}\n" for number in range(done)]
    (base / "start" / "journal").write_text("".join(old))
    start, lives = base / "start", itertools.count(1)
    for number, step in list(enumerate(SCENARIOS[scenario]))[done:]:
        for operation in itertools.count(1):
            folder = copy_run(start, base / f"{next(lives)}")
            code = live_in_child(folder, step, number, operation=operation, fault=fault)
            if code == PASSED:
                break
            if code != STRUCK:
                sys.exit(f"commit {number} of {scenario!r}, operation {operation}: exit code {code}")
        start = folder


@pytest.fixture(scope="module")
def victims(memory) -> Path:
    """`<fault>/<scenario>/<number>`: what a life left, for each operation and for each commit that was spared."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    base = memory / "victims"
    done = subprocess.run([sys.executable, __file__, base], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return base


def lives(folder: Path) -> list[Path]:
    """In the order in which they were lived; the last one was spared."""
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def journal_of(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "journal").read_text().splitlines()]


def lose_power(folder: Path, dice: random.Random) -> int:
    """Cuts every file that was not flushed to a random shorter length; returns how many those are."""
    flushed = {int(line[1]) for line in journal_of(folder) if line[0] == "flushed"}
    torn = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_ino not in flushed]
    torn = [path for path in torn if path.name != "journal" and path.stat().st_size]
    for path in torn:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: dice.randrange(len(content))])
    return len(torn)


def check_that_it_goes_on(folder: Path, steps: tuple[int, ...]) -> None:
    """Whatever is visible verifies, nothing that was committed is lost, and the next life leaves no trace of this."""
    committed = [int(line[1]) for line in journal_of(folder) if line[0] == "committed"]
    store = store_in(folder)
    found = store.latest(refuse)
    before = store.steps()
    for step in before:
        content_of(store.load(step))
    if committed:
        assert found is not None and found.step >= steps[committed[-1]]
        number = int(content_of(found).removeprefix("commit "))
        assert number in [*[done for done in committed if steps[done] == found.step][-1:], len(committed)]
    after = sorted({*before, found.step + 1 if found else 1})
    assert commit(store, after[-1]) == store_in(folder).latest(refuse)
    assert store.steps() == [step for step in after if step % 4 == 0 or step in after[-2:]]
    assert names_in(folder) == sorted(f"step_{left}" for left in store.steps())


@pytest.mark.parametrize(("scenario", "at_least"), [("fall_back", 140), ("leftovers", 60)])
def test_a_death_before_any_operation_loses_nothing(victims, tmp_path, scenario, at_least):
    folders = lives(victims / "death" / scenario)
    points = len(folders) - len(SCENARIOS[scenario])
    print(f"{points} kill points in {scenario}")
    assert points >= at_least
    for folder in folders:
        check_that_it_goes_on(copy_run(folder, tmp_path / folder.name), SCENARIOS[scenario])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_loss_of_power_before_any_operation_loses_nothing(victims, tmp_path, scenario):
    torn = 0
    for folder in lives(victims / "death" / scenario):
        copy = copy_run(folder, tmp_path / folder.name)
        torn += lose_power(copy, random.Random(int(folder.name)))
        check_that_it_goes_on(copy, SCENARIOS[scenario])
    assert torn >= 20


def test_an_error_of_any_operation_is_explained_and_overcome(victims):
    for folder in lives(victims / "error" / "leftovers"):
        check_that_it_goes_on(folder, SCENARIOS["leftovers"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_everything_is_flushed_before_it_gets_a_name_and_the_name_before_the_next_change(victims, scenario):
    """What a death cannot show: the journal of the lives without one, read for what a loss of power would find."""
    journal = journal_of(lives(victims / "death" / scenario)[-1])
    trace = [line for line in journal if line[0] in {"os.mkdir", "os.rename", "flushed", "committed"}]
    made, flushed, published = set(), set(), 0
    for (event, path, *other), after in itertools.pairwise(trace):
        match event:
            case "os.mkdir" if path.endswith(".writing"):
                made, flushed = {path}, set()
            case "os.mkdir":
                made.add(path)
            case "flushed":
                flushed.update(other)
            case "os.rename" if path.endswith(".writing") and not other[0].endswith(".removing"):
                published += 1
                assert len(made) == 4
                assert made <= flushed
        if path.endswith("/checkpoints") or (event == "os.rename" and ".replaced" not in path + other[0]):
            assert [after[0], after[2]] == ["flushed", str(Path(path).parent)]
    assert published == {"fall_back": 5, "leftovers": 1}[scenario]


if __name__ == "__main__":
    for scenario in SCENARIOS:
        live_many_times(scenario, "death", Path(sys.argv[1], "death", scenario))
    live_many_times("leftovers", "error", Path(sys.argv[1], "error", "leftovers"))
