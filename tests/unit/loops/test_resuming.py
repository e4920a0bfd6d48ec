"""From a run folder in any state to where the run continues, or to a refusal that changes nothing."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from ray_rl.checkpoint.store import CheckpointStore, write_json
from ray_rl.cli.run_state import run_state
from ray_rl.config import RunConfig
from ray_rl.config.loading.load import load_config
from ray_rl.errors import CheckpointError, ClusterError, ConfigError, FolderHeld, Preempted, UserError
from ray_rl.loops.resuming import Opened, is_finished, newest_checkpoint, opened
from ray_rl.metrics import run_folder
from ray_rl.metrics.newest_checkpoint import Newest, read_newest, write_newest
from ray_rl.metrics.run_folder import RunFolder
from tests.algorithm import algorithm


class Place:
    """A run folder, and what is said when it is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = folder / "adds"
        self.said: list[str] = []

    def config(self, *, steps: int = 9, model: str = "tiny", export: bool = True) -> RunConfig:
        return RunConfig.model_validate(
            {
                "run": {"name": "adds", "dir": str(self._folder), "steps": steps},
                "model": {"path": model},
                "data": {"kind": "addition"},
                "rewards": [{"kind": "number"}],
                "algorithm": algorithm(),
                "checkpoint": {"every_steps": 3, "export": export},
            }
        )

    def open(self, *, resume: str | None = "auto", from_step: int | None = None, **config: object) -> Opened | None:
        self.said.clear()
        with ExitStack() as stack:
            return opened(self.config(**config), stack, resume=resume, from_step=from_step, note=self.said.append)

    def fail(self, error: BaseException, **config: object) -> None:
        """A start that ends with an error."""
        with pytest.raises(type(error)), ExitStack() as stack:
            opened(self.config(**config), stack, resume="auto", note=self.said.append)
            raise error

    def trained(self, *steps: int, checkpoints: tuple[int, ...] = ()) -> RunFolder:
        """A run with records of some steps and checkpoints of some."""
        folder = self.open().folder
        folder.metrics_jsonl.write_text("".join(f'{{"step": {step}}}\n' for step in steps))
        for step in steps:
            folder.rollouts.mkdir(exist_ok=True)
            (folder.rollouts / f"step_{step:06d}.jsonl").write_text(f"{step}")
        store = CheckpointStore(folder.checkpoints, keep_last=99, keep_every=None)
        for step in checkpoints:
            write_json(store.begin(step) / "run.json", {"step": step})
            store.commit(step)
            write_newest(folder.newest_checkpoint_json, step)
        return folder

    def exported(self, step: int | None) -> None:
        (self.root / "export").mkdir()
        if step is not None:
            (self.root / "export" / "ray_rl.json").write_text(json.dumps({"step": step}))

    def content(self) -> dict[str, bytes]:
        """Every file but the lock, which says who looked last."""
        files = [path for path in self.root.rglob("*") if path.is_file() and not path.name.startswith("lock")]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "describe_environment", dict)  # which asks git and the GPUs
    return Place(tmp_path)


def test_auto_starts_where_there_is_no_folder(there):
    run = there.open()
    assert run.since is None
    assert there.said == []
    assert {"config.yaml", "environment.json", "newest_checkpoint.json"} <= set(there.content())


@pytest.mark.parametrize("made", [(), ("lock", "config.yaml.partial"), ("environment.json",)])
def test_auto_starts_in_a_folder_that_a_kill_left_before_its_first_file(there, made):
    there.root.mkdir()
    for name in made:
        (there.root / name).write_text("")
    assert there.open().since is None
    assert load_config(there.root / "config.yaml") == there.config()


def test_a_start_that_failed_does_not_bind_the_next_one_to_its_values(there):
    there.open(model="misspelt")
    assert there.open(model="tiny").since is None
    assert load_config(there.root / "config.yaml").model.path == "tiny"
    assert "aside" not in os.listdir(there.root)


def test_a_folder_of_something_else_is_refused_and_left_alone(there):
    there.root.mkdir()
    (there.root / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds thesis.tex and no config.yaml, so it is not the folder of a run"):
        there.open()
    assert there.content() == {"thesis.tex": b"mine"}


def test_a_start_that_fails_with_the_whole_reason_in_its_message_leaves_no_folder(there):
    there.fail(UserError("rewards.0: no such function"))
    assert not there.root.exists()
    assert f"{there.root}: removed, since the run ended before its first step" in there.said


def test_a_run_whose_process_ends_without_a_word_was_killed_until_another_start_ends(there):
    child = os.fork()
    if child == 0:
        with ExitStack() as stack:
            opened(there.config(), stack, resume="auto", note=print)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert run_state(there.root).state == "killed"
    with pytest.raises(UserError, match="no complete checkpoint"):
        there.open(resume="required")
    assert run_state(there.root).state == "killed"  # a refused start changes nothing
    there.open()
    assert run_state(there.root).state == "stopped"


def test_a_start_that_fails_keeps_the_logs_that_say_why(there):
    folder = there.open().folder
    (folder.logs / "rollout-0.log").write_text("out of memory")
    there.fail(ClusterError("rollout-0 died"))
    assert there.said[-1].startswith(f"{there.root}: kept for its logs; `ray-rl train` with `--resume auto` starts")
    assert run_state(there.root).state == "failed"
    there.fail(Preempted("stopped"))
    assert run_state(there.root).state == "stopped"
    there.fail(UserError("another reason"))
    assert run_state(there.root).state == "failed"
    assert (folder.logs / "rollout-0.log").read_text() == "out of memory"
    assert there.open().since is None


def test_a_run_that_fails_after_a_step_keeps_its_folder(there):
    there.trained(1)
    there.fail(UserError("a reward returned nan"))
    assert (there.root / "metrics.jsonl").exists()


def test_killed_before_its_first_checkpoint_a_run_starts_over_and_its_records_are_aside(there):
    there.trained(1, 2)
    run = there.open()
    assert run.since is None
    assert there.said[0] == f"{there.root}: no checkpoint was completed; starting from step 0"
    (aside,) = (there.root / "aside").iterdir()
    assert (aside / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert {file.name for file in (aside / "rollouts").iterdir()} == {"step_000001.jsonl", "step_000002.jsonl"}


def test_it_continues_behind_the_newest_checkpoint(there):
    there.trained(1, 2, 3, 4, 5, checkpoints=(3,))
    run = there.open(steps=12)
    assert run.since.step == 3
    assert there.said[:2] == [f"{there.root}: resuming after step 3 of 12", "changed: run.steps: 9 -> 12"]
    assert (there.root / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def damage(place: Place) -> str:
    (place.root / "checkpoints" / "step_3" / "run.json").write_text("{}")
    return r"there are 1 that do not verify \(the newest: .*step_3: run.json: "


def unmount(place: Place) -> str:
    (place.root / "checkpoints").rename(place.root.parent / "elsewhere")
    return "the run completed one of step 3, says newest_checkpoint.json"


def unmount_under_a_mount_point(place: Place) -> str:
    unmount(place)
    (place.root / "checkpoints").mkdir()
    return "the run completed one of step 3, says newest_checkpoint.json"


def unmount_behind_a_link(place: Place) -> str:
    unmount(place)
    (place.root / "checkpoints").symlink_to(place.root.parent / "late")
    return "it is a link to .*late, which does not exist now"


def unmount_from_an_older_version(place: Place) -> str:
    unmount(place)
    (place.root / "newest_checkpoint.json").unlink()
    return "there are records of trained steps in "


@pytest.mark.parametrize(
    "lose", [damage, unmount, unmount_under_a_mount_point, unmount_behind_a_link, unmount_from_an_older_version]
)
@pytest.mark.parametrize("resume", ["auto", "required"])
def test_where_checkpoints_are_missing_it_refuses_and_changes_nothing(there, lose, resume):
    there.trained(1, 2, 3, 4, checkpoints=(3,))
    reason = lose(there)
    before = there.content()
    with pytest.raises(CheckpointError, match=reason):
        there.open(resume=resume)
    assert there.content() == before


def test_a_lost_worker_does_not_make_a_run_start_over_whose_checkpoints_are_gone(there):
    folder = there.trained(1, 2, 3, checkpoints=(3,))
    unmount(there)
    with pytest.raises(CheckpointError, match="the run completed one of step 3"):
        newest_checkpoint(there.config(), folder, there.said.append)


def test_a_newer_checkpoint_that_is_gone_is_mentioned(there):
    folder = there.trained(1, 2, 3, 4, 5, 6, checkpoints=(3, 6))
    (folder.checkpoints / "step_6").rename(folder.root.parent / "elsewhere")
    assert there.open().since.step == 3
    assert any("had a checkpoint of step 6, which is not usable now" in line for line in there.said)
    assert read_newest(folder.newest_checkpoint_json) == Newest(3)


def test_resume_needs_a_checkpoint_and_says_how_to_start(there):
    there.open()
    with pytest.raises(UserError, match=r"no complete checkpoint to resume from; `ray-rl train .*config.yaml --resume"):
        there.open(resume="required")
    assert (there.root / "config.yaml").exists()


def test_a_configuration_that_an_older_version_moved_away_is_found(there):
    there.trained(1, 2, 3, checkpoints=(3,))
    os.rename(there.root / "config.yaml", there.root / "config.until_step_3.yaml")
    assert there.open(steps=12).since.step == 3
    assert "changed: run.steps: 9 -> 12" in there.said
    assert load_config(there.root / "config.yaml").run.steps == 12


@pytest.mark.parametrize("text", ["run: {}\n", "rollout: 3\ncritic: null\n"])
def test_a_configuration_that_is_not_whole_is_an_error_with_a_remedy(there, text):
    there.trained(1, 2, 3, checkpoints=(3,))
    (there.root / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="not the whole configuration of a run"):
        there.open()


def test_a_changed_value_that_must_stay_is_refused_before_anything_is_written(there):
    there.trained(1, 2, 3, 4, checkpoints=(3,))
    before = there.content()
    with pytest.raises(ConfigError, match=r"model\.path"):
        there.open(model="other")
    assert there.content() == before


def test_going_back_to_a_step_moves_what_came_later_aside_and_deletes_nothing(there):
    folder = there.trained(*range(1, 10), checkpoints=(3, 6, 9))
    there.exported(9)
    before = there.content()
    run = there.open(resume="required", from_step=3)
    assert run.since.step == 3
    assert read_newest(folder.newest_checkpoint_json) == Newest(3)
    assert len(folder.metrics_jsonl.read_text().splitlines()) == 3
    (checkpoints,) = folder.checkpoints.glob("aside_*")
    assert {path.name for path in checkpoints.iterdir()} == {"step_6", "step_9"}
    assert CheckpointStore(folder.checkpoints, keep_last=1, keep_every=None).steps() == [3]
    assert not folder.export.exists()
    after = there.content().values()
    lost = {name for name, text in before.items() if text not in after}
    # Both are copies of what is now in two places.
    assert lost == {"metrics.jsonl", "newest_checkpoint.json"}
    assert there.open().since.step == 3


@pytest.mark.parametrize("kills_after", [0, 1])
def test_killed_while_it_goes_back_a_run_continues_from_the_end_as_before(there, monkeypatch, kills_after):
    """Which of the two is decided by the last rename."""
    folder = there.trained(*range(1, 10), checkpoints=(3, 6, 9))
    renames, rename = [], os.rename

    def rename_until_killed(source, target):
        if "aside_" in str(target):
            if len(renames) == kills_after:
                raise KeyboardInterrupt
            renames.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_until_killed)
    with pytest.raises(KeyboardInterrupt):
        there.open(resume="required", from_step=3)
    monkeypatch.setattr(os, "rename", rename)
    assert there.open(steps=12).since.step == 9
    assert len(folder.metrics_jsonl.read_text().splitlines()) == 9


def test_a_step_without_a_checkpoint_is_refused_with_those_that_there_are(there):
    there.trained(*range(1, 10), checkpoints=(3, 6))
    before = there.content()
    with pytest.raises(UserError, match=r"--step 4: .*no checkpoint of this step; it has those of steps 3, 6"):
        there.open(resume="required", from_step=4)
    assert there.content() == before


def test_a_checkpoint_to_go_back_to_that_does_not_verify_is_refused(there):
    there.trained(*range(1, 10), checkpoints=(3, 6))
    damage(there)
    before = there.content()
    with pytest.raises(CheckpointError, match=r"step_3: run.json: .*the other steps are 6"):
        there.open(resume="required", from_step=3)
    assert there.content() == before


@pytest.mark.parametrize(
    ("step", "exported", "steps", "is_done"),
    [
        (9, 9, 9, True),
        (12, 9, 12, False),  # extended, and killed before its export
        (9, None, 9, False),  # exported by an older version, which did not say what
        (9, 9, 12, False),
        (6, 9, 9, False),  # taken back
        (6, 9, 6, False),  # taken back to be exported there
        (9, 9, 6, True),  # run.steps was lowered afterwards
        (None, 9, 9, True),  # checkpoints were not made, or removed to save room
        (None, 9, 12, False),
    ],
)
def test_a_run_is_finished_when_the_last_step_is_trained_and_exported(there, step, exported, steps, is_done):
    folder = there.open().folder
    store = CheckpointStore(folder.checkpoints, keep_last=1, keep_every=None)
    if step is not None:
        write_json(store.begin(step) / "run.json", {})
        store.commit(step)
    there.exported(exported)
    since = None if step is None else store.load(step)
    assert is_finished(there.config(steps=steps), folder, since) is is_done


@pytest.mark.parametrize(("step", "is_done"), [(9, True), (6, False)])
def test_without_an_export_the_last_checkpoint_is_the_end(there, step, is_done):
    folder = there.trained(checkpoints=(step,))
    since = newest_checkpoint(there.config(), folder, there.said.append)
    assert is_finished(there.config(export=False), folder, since) is is_done


def test_a_run_that_is_done_is_left_as_it_is(there):
    there.trained(*range(1, 10), checkpoints=(9,))
    there.exported(9)
    before = there.content()
    assert there.open() is None
    assert there.said == [f"{there.root}: all 9 steps are done; raise run.steps to train on"]
    assert there.content() == before


def test_a_run_that_ended_without_checkpoints_is_not_overwritten_when_it_is_extended(there):
    there.trained(*range(1, 10))
    there.exported(9)
    with pytest.raises(UserError, match="has ended and left no checkpoint"):
        there.open(steps=12)


@pytest.mark.parametrize("resume", ["auto", "required"])
def test_a_folder_that_another_process_has_is_not_the_users_mistake(there, resume):
    folder = there.open().folder
    with folder.owned(), pytest.raises(FolderHeld, match="pid"):
        there.open(resume=resume)


def test_a_new_run_refuses_a_folder_that_exists(there):
    there.open()
    with pytest.raises(ConfigError, match="exists already"):
        there.open(resume=None)


def test_a_folder_whose_configuration_has_old_keys_names_the_command_that_rewrites_it(there):
    file = there.trained(1, 2, 3, checkpoints=(3,)).config_yaml
    file.write_text(file.read_text().replace("  kind: grpo\n", "  kind: grpo\n  preset: null\n"))
    with pytest.raises(ConfigError, match=r"algorithm.preset=null: a key of an older version; .* `ray-rl migrate /"):
        there.open()
