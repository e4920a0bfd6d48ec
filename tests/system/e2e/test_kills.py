"""A run is killed at one point after the other, and `--resume auto` continues: nothing is lost, and no bit differs.

One run folder goes through it all: it is started, extended, and taken back to an earlier step. `make test-kills`.
"""

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ray_rl.checkpoint.export_marks import exported_step
from ray_rl.config.loading.load import load_config
from ray_rl.metrics.step_records import record_of
from tests.system.e2e.command import Ended, place_for, run, without_the_clock
from tests.system.e2e.kill_points import EXTEND, FIRST, GO_BACK, Point, chosen

HOUR_S = 3600
pytestmark = [pytest.mark.kills, pytest.mark.timeout(2 * HOUR_S)]

STEPS, EXTENDED = 4, 6
HOOK = Path(__file__).with_name("kill_hook")
AUTO = ("train", "run.yaml", "--resume", "auto")
RAY_IS_LATE, RAY_STARTS = "The current node timed out during startup", 3
LONGER = f"run.steps={EXTENDED}"


def place(folder: Path, name: str) -> Path:
    return place_for(
        folder,
        name,
        steps=STEPS,
        run={"name": name, "steps": STEPS, "deterministic": True},
        checkpoint={"every_steps": 2, "keep_last": 2},
    )


class Records:
    """Every record that was ever seen in a run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: set[bytes] = set()
        self._samples: set[bytes] = set()

    def lost(self) -> list[str]:
        """What was seen before and is not in the folder now, neither in its place nor aside; then looks again."""
        lines, samples = set(), set()
        for file in [self._folder / "metrics.jsonl", *self._folder.glob("aside/*/metrics.jsonl")]:
            if file.exists():
                lines |= {line for line in file.read_bytes().splitlines(keepends=True) if record_of(line) is not None}
        for pattern in ("rollouts/step_*.jsonl", "aside/*/rollouts/step_*.jsonl"):
            samples |= {file.read_bytes() for file in self._folder.glob(pattern)}
        gone = [f"line {line[:40]!r}" for line in self._lines - lines]
        gone += [f"samples {text[:40]!r}" for text in self._samples - samples]
        self._lines, self._samples = lines, samples
        return gone


class Victim:
    """A run that is killed again and again."""

    def __init__(self, place: Path, *, points: Sequence[Point] | None = None) -> None:
        """A run in a folder; without `points` it is killed at those whose turn it is."""
        self.place = place
        self.folder = place / "runs" / "kills"
        self.records = Records(self.folder)
        self._chosen = chosen() if points is None else points
        self.kills = 0

    def killed_at(self, points: list[Point], *arguments: str) -> None:
        """The command, killed at each of those of the points that are chosen."""
        for point in [point for point in points if point in self._chosen]:
            started_s = time.monotonic()
            environment = {"PYTHONPATH": str(HOOK), "KILL_AT": json.dumps(point.at)}
            ended = self._run(*arguments, environment=environment)
            assert ended.code == -signal.SIGKILL, f"{point}: not reached\n{ended.stdout}{ended.stderr}"
            assert ended.left_behind == [], point
            assert self.records.lost() == [], point
            self.kills += 1
            took_s = time.monotonic() - started_s
            print(f"kill {self.kills} of {len(self._chosen)}: {point.what}: {took_s:.0f} s", flush=True)

    def _run(self, *arguments: str, **options: Any) -> Ended:
        """The command; again where Ray was not up within the half minute that it gives itself on a busy machine."""
        for _ in range(RAY_STARTS):
            ended = run(self.place, *arguments, **options)
            if RAY_IS_LATE not in ended.stderr:
                break
        return ended

    def finish(self, *arguments: str) -> Ended:
        """The command to its end, and the folder as it is then."""
        ended = self._run(*arguments)
        assert ended.code == 0, ended.stdout + ended.stderr
        assert self.records.lost() == []
        kept = self.place / f"kept_{len(list(self.place.glob('kept_*')))}"
        shutil.copytree(self.folder, kept)
        return Ended(ended.command, self.place, kept, ended.code, ended.stdout, ended.stderr, ended.left_behind)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[int, Ended]:
    """A run of four steps that was extended to six, and left alone."""
    victim = Victim(place(tmp_path_factory.mktemp("alone"), "kills"))
    return {STEPS: victim.finish(*AUTO), EXTENDED: victim.finish(*AUTO, LONGER)}


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> Victim:
    return Victim(place(tmp_path_factory.mktemp("killed"), "kills"))


@pytest.fixture(scope="module")
def first(victim) -> Ended:
    """Killed at every point of the start, the first step, a save, a resume and the export."""
    victim.killed_at(FIRST, *AUTO)
    return victim.finish(*AUTO)


@pytest.fixture(scope="module")
def extended(victim, first) -> Ended:
    """Killed at every point of being extended."""
    victim.killed_at(EXTEND, *AUTO, LONGER)
    return victim.finish(*AUTO, LONGER)


@pytest.fixture(scope="module")
def taken_back(victim, extended) -> Ended:
    """Killed at every point of going back to step 4."""
    back = ("resume", "runs/kills", "--step", "4")
    victim.killed_at(GO_BACK, *back)
    return victim.finish(*back)


def assert_bits_are_equal(seen: Ended, expected: Ended, *, steps: int, but_for: tuple[str, ...] = ()) -> None:
    mine, theirs = (without_the_clock(ended.metrics, but_for) for ended in (seen, expected))
    assert [record["step"] for record in mine] == list(range(1, steps + 1))
    assert json.dumps(mine) == json.dumps(theirs)
    for step in range(1, steps + 1):
        assert seen.rollouts(step) == expected.rollouts(step)
    for name in (f"checkpoints/step_{steps}/actor/rank_0.safetensors", "export/model.safetensors"):
        assert (seen.folder / name).read_bytes() == (expected.folder / name).read_bytes()
    assert exported_step(seen.folder / "export") == steps


def assert_tidy(folder: Path, *, steps: int) -> None:
    """Every file that is not a record of the past is whole, and no half of anything lies around."""
    assert load_config(folder / "config.yaml").run.steps == steps
    for file in [*folder.glob("trace*.json"), *folder.glob("environment*.json"), folder / "newest_checkpoint.json"]:
        json.loads(file.read_text())
    hidden = [path.name for path in (*folder.iterdir(), *(folder / "checkpoints").iterdir()) if path.name[0] == "."]
    assert hidden == []
    assert list(folder.rglob("*.partial")) == []
    assert json.loads((folder / "newest_checkpoint.json").read_text()) == {"step": steps}


def test_a_run_killed_in_its_start_first_step_saves_resumes_and_export_is_the_run_left_alone(alone, first):
    assert_bits_are_equal(first, alone[STEPS], steps=STEPS)
    assert_tidy(first.folder, steps=STEPS)


def test_a_run_killed_while_it_is_extended_is_the_run_left_alone(alone, extended):
    assert_bits_are_equal(extended, alone[EXTENDED], steps=EXTENDED)
    assert_tidy(extended.folder, steps=EXTENDED)


def test_a_run_taken_back_to_an_earlier_step_and_killed_in_that_is_the_run_left_alone(alone, taken_back):
    assert_bits_are_equal(taken_back, alone[EXTENDED], steps=EXTENDED)
    assert_tidy(taken_back.folder, steps=EXTENDED)


def test_what_was_taken_back_is_aside(extended, taken_back):
    (old,) = taken_back.folder.glob("checkpoints/aside_*/step_6")
    there = extended.folder / "checkpoints" / "step_6" / "manifest.json"
    assert (old / "manifest.json").read_bytes() == there.read_bytes()
    (export,) = taken_back.folder.glob("aside/*/export")
    assert exported_step(export) == EXTENDED


def test_every_point_was_reached(victim, taken_back):
    assert victim.kills == len(chosen())
    print(f"{victim.kills} kills")
