import json
import os
import stat
import sys
from pathlib import Path

import pytest

import ray_rl
from ray_rl.config.loading.load import load_config
from ray_rl.errors import ConfigError, FolderHeld, RecordError
from ray_rl.metrics.environment import (
    cpu_model,
    describe_environment,
    git_state,
    memory_gib,
    package_versions,
)
from ray_rl.metrics.modes import make_folder
from ray_rl.metrics.whole_pieces import write_whole
from tests.run_folders import new_run_folder, reopened


def test_a_new_folder_is_private_and_holds_the_configuration_that_loads_back(make_config):
    config = make_config()
    folder = new_run_folder(config)
    assert folder.root == Path(config.run.dir) / "adds"
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700
    assert load_config(folder.config_yaml) == config


def test_every_path_is_inside_the_folder(make_config):
    folder = new_run_folder(make_config())
    names = ["config_yaml", "environment_json", "metrics_jsonl", "rollouts", "tensorboard", "checkpoints", "export"]
    paths = [getattr(folder, name) for name in (*names, "logs")] + [
        folder.trace(first_step=1),
        folder.trace(first_step=4),
    ]
    assert all(path.parent == folder.root for path in paths)
    assert len(set(paths)) == len(paths)


def test_an_existing_folder_is_refused_with_a_remedy_and_left_alone(make_config):
    folder = new_run_folder(make_config())
    folder.config_yaml.write_text("mine")
    with pytest.raises(ConfigError, match=r"run.name='adds'.*exists already.*choose another run.name"):
        new_run_folder(make_config())
    assert folder.config_yaml.read_text() == "mine"


def test_a_place_that_cannot_hold_a_folder_is_a_configuration_error(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run.dir=.*cannot create.*Not a directory.*set run.dir"):
        new_run_folder(make_config(dir=str(tmp_path / "file" / "below")))


def test_the_environment_names_versions_hardware_and_command_line(make_config):
    environment = json.loads(new_run_folder(make_config()).environment_json.read_text())
    assert environment["ray_rl"] == ray_rl.__version__
    assert environment["argv"] == sys.argv
    assert environment["cores"] >= 1
    assert environment["memory_gib"] > 0
    assert set(environment["packages"]) >= {"ray", "torch", "vllm", "deepspeed", "transformers", "numpy"}


def test_the_environment_holds_no_environment_variable(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_mine")
    assert "hf_secret_of_mine" not in json.dumps(describe_environment())


def test_the_command_line_is_recorded_without_secrets(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ray-rl", "train", "run.yaml", "rewards.0.options.api_key=sk-very-secret"])
    assert describe_environment()["argv"] == ["ray-rl", "train", "run.yaml", "rewards.0.options.api_key=***"]


def test_a_package_that_is_not_installed_has_no_version():
    assert package_versions(["pydantic", "no-such-package-here"])["no-such-package-here"] is None


def test_the_processor_is_named_as_the_kernel_names_it(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Example 9000: fast\n")
    assert cpu_model(cpuinfo) == "Example 9000: fast"
    assert cpu_model(tmp_path / "missing")


def test_a_container_limit_counts_as_the_memory(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text(f"{512 * 2**20}\n")
    assert memory_gib(limit) == 0.5
    limit.write_text("max\n")
    assert memory_gib(limit) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def test_a_folder_outside_of_git_has_no_commit(tmp_path):
    assert git_state(tmp_path) is None


@pytest.fixture
def ended(make_config):
    """A folder with the records of three steps, the last line torn."""
    folder = new_run_folder(make_config())
    lines = [json.dumps({"step": step, "reward/mean": step / 7}) for step in (1, 2, 3)]
    folder.metrics_jsonl.write_text("\n".join(lines) + '\n{"step": 4, "rew')
    make_folder(folder.rollouts)
    for step in (1, 2, 3, 4):
        (folder.rollouts / f"step_{step:06d}.jsonl").write_text(f"{step}\n")
    return folder


def test_records_after_the_checkpoint_are_moved_aside_and_no_others(make_config, ended):
    (ended.rollouts / "step_000004.failed.jsonl").write_text("failed")
    make_folder(ended.examples)
    for step in (2, 3):
        (ended.examples / f"step_{step:06d}.jsonl").write_text(f"example {step}")
    lines = ended.metrics_jsonl.read_bytes().splitlines(keepends=True)
    told = []
    reopened(make_config(), step=2, note=told.append)
    assert ended.metrics_jsonl.read_bytes() == b"".join(lines[:2])
    assert sorted(file.name for file in ended.rollouts.iterdir()) == ["step_000001.jsonl", "step_000002.jsonl"]
    (aside,) = (ended.root / "aside").iterdir()
    assert (aside / "metrics.jsonl").read_bytes() == b"".join(lines[2:])
    assert {file.name: file.read_text() for file in (aside / "rollouts").iterdir()} == {
        "step_000003.jsonl": "3\n",
        "step_000004.jsonl": "4\n",
        "step_000004.failed.jsonl": "failed",
    }
    assert [file.name for file in ended.examples.iterdir()] == ["step_000002.jsonl"]
    assert [file.read_text() for file in (aside / "examples").iterdir()] == ["example 3"]
    assert told == [f"the records after step 2 were moved to {aside}"]


def test_what_an_earlier_start_from_the_same_step_wrote_moves_with_its_records(make_config, ended):
    old = {"trace.from_step_3.json": "[]", "environment.from_step_3.json": "{}"}
    for name, text in old.items():
        (ended.root / name).write_text(text)
    reopened(make_config(), step=2)
    (aside,) = (ended.root / "aside").iterdir()
    assert {name: (aside / name).read_text() for name in old} == old
    assert json.loads((ended.root / "environment.from_step_3.json").read_text())["argv"] == sys.argv


def test_a_run_that_starts_over_moves_everything_aside(make_config, ended):
    ended.tensorboard.mkdir()
    (ended.tensorboard / "events").write_text("")
    reopened(make_config(), step=None)
    (aside,) = (ended.root / "aside").iterdir()
    assert {path.name for path in aside.iterdir()} == {"metrics.jsonl", "rollouts", "environment.json", "tensorboard"}
    assert not ended.has_records


def test_what_a_kill_left_half_written_is_removed(make_config, ended):
    torn = ["config.yaml.partial", "rollouts/step_000003.jsonl.partial", "examples/step_000003.jsonl.partial"]
    torn.append("aside/killed/metrics.jsonl.partial")
    (ended.root / "aside" / "killed").mkdir(parents=True)
    make_folder(ended.examples)
    for name in torn:
        (ended.root / name).write_text("torn")
    (ended.root / ".export.partial").mkdir()
    reopened(make_config(), step=2)
    assert [path.name for path in ended.root.rglob("*.partial")] == [".export.partial"]
    assert len(list((ended.root / "aside").iterdir())) == 1


def test_nothing_is_moved_where_there_are_no_later_records(make_config, ended):
    reopened(make_config(), step=2)
    reopened(make_config(), step=2)
    assert len(list((ended.root / "aside").iterdir())) == 1


def test_two_moves_within_a_second_do_not_mix(make_config, ended):
    reopened(make_config(), step=2)
    reopened(make_config(), step=1)
    reopened(make_config(), step=0)
    steps = [json.loads(file.read_bytes().splitlines()[0])["step"] for file in ended.root.glob("aside/*/metrics.jsonl")]
    assert sorted(steps) == [1, 2, 3]


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[3]\n", b'{"step": "3"}\n', b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_moved_aside_too(make_config, ended, damage):
    lines = ended.metrics_jsonl.read_bytes().splitlines(keepends=True)[:2]
    ended.metrics_jsonl.write_bytes(lines[0] + damage + lines[1])
    reopened(make_config(), step=9)
    assert ended.metrics_jsonl.read_bytes() == b"".join(lines)
    assert [file.read_bytes() for file in ended.root.glob("aside/*/metrics.jsonl")] == [damage]


def test_a_torn_line_at_the_end_is_moved_aside(make_config, ended):
    reopened(make_config(), step=4)
    assert [json.loads(line)["step"] for line in ended.metrics_jsonl.read_text().splitlines()] == [1, 2, 3]
    assert [file.read_text() for file in ended.root.glob("aside/*/metrics.jsonl")] == ['{"step": 4, "rew']


def test_the_configuration_before_is_kept_where_it_differs(make_config, ended):
    reopened(make_config(), step=2)
    assert not list(ended.root.glob("config.until*"))
    reopened(make_config(steps=9), step=2)
    assert load_config(ended.config_yaml).run.steps == 9
    assert load_config(ended.root / "config.until_step_2.yaml").run.steps == 3
    assert json.loads((ended.root / "environment.from_step_3.json").read_text())["argv"] == sys.argv


def test_a_configuration_that_was_kept_is_not_overwritten(make_config, ended):
    reopened(make_config(steps=9), step=2)
    reopened(make_config(steps=7), step=2)
    kept = {load_config(file).run.steps for file in ended.root.glob("config.until_step_2*.yaml")}
    assert kept == {3, 9}


def test_a_configuration_that_cannot_be_written_leaves_the_one_before(make_config, ended):
    before = ended.config_yaml.read_bytes()
    (ended.root / "config.yaml.partial").mkdir()  # as a full disk, an error of the file system
    with pytest.raises(RecordError, match=r"cannot write .*config\.yaml"):
        reopened(make_config(steps=9), step=2)
    assert ended.config_yaml.read_bytes() == before
    assert len(ended.metrics_jsonl.read_text().splitlines()) == 4


def test_a_run_killed_by_an_older_version_in_its_change_of_configuration_has_its_last_one(make_config, ended):
    os.rename(ended.config_yaml, ended.root / "config.until_step_2.yaml")
    assert ended.last_config == ended.root / "config.until_step_2.yaml"
    (ended.root / "config.until_step_2.yaml").unlink()
    assert ended.last_config is None


@pytest.fixture
def started(make_config):
    """A folder as it is when Ray could not be started."""
    folder = new_run_folder(make_config())
    folder.tensorboard.mkdir()
    folder.rollouts.mkdir()
    folder.examples.mkdir()
    for name in ("metrics.jsonl", "trace.json", "lock", "logs/actor-0.log", "tensorboard/events", "a.partial"):
        (folder.root / name.replace("a.partial", "config.yaml.partial")).write_text("")
    return folder


def test_a_start_that_failed_leaves_no_folder(started):
    assert started.remove_unless_of_value(are_logs_of_value=True)
    assert not started.root.exists()
    assert started.root.parent.exists()


@pytest.mark.parametrize(
    "name",
    [
        "rollouts/step_000001.failed.jsonl",
        "examples/step_000001.jsonl",
        "metrics.jsonl",
        "notes.txt",
        "checkpoints",
        "export",
    ],
)
def test_a_folder_with_anything_of_value_stays_as_it_is(started, name):
    (started.root / name).write_text("mine")
    before = sorted(started.root.rglob("*"))
    assert not started.remove_unless_of_value(are_logs_of_value=False)
    assert sorted(started.root.rglob("*")) == before


def test_logs_are_of_value_unless_the_message_says_it_all(started):
    (started.logs / "rollout-0.log").write_text("out of memory")
    assert not started.remove_unless_of_value(are_logs_of_value=True)
    assert started.remove_unless_of_value(are_logs_of_value=False)


def test_one_process_at_a_time_owns_a_folder(make_config):
    folder = new_run_folder(make_config())
    with folder.owned(), pytest.raises(FolderHeld, match=rf"pid {os.getpid()} on "), folder.owned():
        pass
    with folder.owned():
        pass


def test_a_run_folder_is_its_owners_alone_whatever_the_umask(make_config):
    before = os.umask(0)
    try:
        folder = new_run_folder(make_config())
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder.root, *folder.root.iterdir())}
    assert {mode & 0o077 for mode in modes.values()} == {0}, modes


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_group_reads_a_run_folder_that_says_so_and_what_is_written_into_it_later(make_config, umask):
    before = os.umask(umask)
    try:
        folder = new_run_folder(make_config(group_readable=True))
        make_folder(folder.rollouts)
        write_whole(folder.rollouts / "step_000001.jsonl", iter([b"{}\n"]))
        (folder.root / "trace.json").write_text("old")
        folder.root.joinpath("trace.json").chmod(0o600)
        with folder.owned():
            pass
        assert {path.stat().st_mode & 0o777 for path in (folder.root, folder.rollouts, folder.logs)} == {0o750}
        written = (folder.config_yaml, folder.rollouts / "step_000001.jsonl", folder.root / "lock")
        assert {path.stat().st_mode & 0o777 for path in written} == {0o640}
        reopened(make_config(group_readable=False), step=None)
        everything = [folder.root, *folder.root.rglob("*")]
        assert {path.stat().st_mode & 0o077 for path in everything} == {0}
        reopened(make_config(group_readable=True), step=None)
        assert {path.stat().st_mode & 0o777 for path in everything if path.is_file()} == {0o640}
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        ("metrics.jsonl", True),
        ("environment.json", True),
        ("rollouts", False),
        ("checkpoints", False),
        ("logs", False),
        ("aside", False),
    ],
)
def test_a_folder_where_a_file_should_be_is_one_sentence(make_config, name, is_folder):
    folder = new_run_folder(make_config())
    path = folder.root / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.mkdir() if is_folder else path.write_text("mine")
    with pytest.raises(ConfigError, match=f"{name}: is a (file|folder) where a run has a (file|folder); move it away"):
        reopened(make_config(), step=None)
    assert path.is_dir() == is_folder


@pytest.mark.parametrize("name", ["export", "logs", "aside", "metrics.jsonl"])
def test_a_link_that_leads_nowhere_is_found_at_the_start_and_not_when_it_is_needed(make_config, name):
    folder = new_run_folder(make_config())
    path = folder.root / name
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(folder.root / "gone")
    with pytest.raises(ConfigError, match=f"{name}: is a link to .*gone, which does not exist"):
        reopened(make_config(), step=None)
