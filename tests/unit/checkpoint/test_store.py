"""The checkpoint store. tests/processes/test_deaths_of_a_store.py has its death before every operation of it."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from ray_rl.checkpoint.store import (
    MANIFEST,
    Checkpoint,
    CheckpointStore,
    disk_errors_explained,
    read_json,
    write_json,
)
from ray_rl.errors import CheckpointError
from tests.small_checkpoints import commit, content_of, memory, names_in, refuse, store_in, tmp_path, write_files

__all__ = ["memory", "tmp_path"]


@pytest.fixture
def two(tmp_path) -> Path:
    """A run folder with checkpoints of the steps 2 and 3."""
    for step in (2, 3):
        commit(store_in(tmp_path), step)
    return tmp_path


# One checkpoint


def test_a_checkpoint_is_found_again_with_every_file(tmp_path):
    committed = commit(store_in(tmp_path), 12)
    assert committed == Checkpoint(12, tmp_path / "checkpoints" / "step_12")
    assert store_in(tmp_path).latest(refuse) == committed
    assert store_in(tmp_path).load(12) == committed
    assert content_of(committed) == "step 12"
    assert names_in(tmp_path) == ["step_12"]


def test_the_manifest_lists_every_file_with_its_size_and_hash(tmp_path):
    folder = store_in(tmp_path).begin(1)
    (folder / "sub").mkdir()
    (folder / "sub" / "abc").write_bytes(b"abc")
    assert json.loads((store_in(tmp_path).commit(1).folder / MANIFEST).read_text()) == {
        "format_version": 1,
        "step": 1,
        "files": {
            "sub/abc": {
                "size_bytes": 3,
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",  # FIPS 180-2, B.1
            }
        },
    }


def test_large_files_are_hashed_like_small_ones(tmp_path):
    folder = store_in(tmp_path).begin(1)
    for name in "abc":
        (folder / name).touch()
        os.truncate(folder / name, 6_000_000)
    committed = store_in(tmp_path).commit(1)
    assert store_in(tmp_path).latest(refuse) == committed
    with (committed.folder / "b").open("r+b") as file:
        file.seek(5_999_999)
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"step_1: b: SHA-256"):
        store_in(tmp_path).load(1)


def test_without_a_checkpoint_none_is_found(tmp_path):
    assert store_in(tmp_path).latest(refuse) is None
    assert store_in(tmp_path).steps() == []
    with pytest.raises(CheckpointError, match=r"step_5: no such checkpoint; there is no other checkpoint"):
        store_in(tmp_path).load(5)


def test_a_step_that_is_not_there_is_refused_with_those_that_are(two):
    with pytest.raises(CheckpointError, match=r"step_5: no such checkpoint; the other steps are 2, 3"):
        store_in(two).load(5)


def test_steps_are_numbers_and_not_names(tmp_path):
    for step in (0, 9, 10):
        commit(store_in(tmp_path, keep_last=3), step)
    for stranger in ("step_07", "step_", "step_1x", "my_step_3", "notes"):
        (tmp_path / "checkpoints" / stranger).mkdir()
    assert store_in(tmp_path).steps() == [0, 9, 10]
    assert store_in(tmp_path).latest(refuse).step == 10


def test_only_the_owner_can_enter_and_workers_get_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = CheckpointStore(Path("checkpoints"), keep_last=1, keep_every=None).begin(1)
    assert folder == tmp_path / "checkpoints" / ".step_1.writing"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700, 0o700]


def test_what_was_begun_is_no_checkpoint_and_can_be_abandoned(two):
    store = store_in(two)
    write_files(store.begin(4), "half")
    assert store.latest(refuse).step == 3
    store.abandon(4)
    store.abandon(4)
    assert names_in(two) == ["step_2", "step_3"]


def test_begin_makes_an_empty_folder_and_removes_what_others_left(two):
    write_files(store_in(two).begin(4), "a death")
    write_files(store_in(two).begin(5), "another")
    assert list(store_in(two).begin(5).iterdir()) == []
    assert names_in(two) == [".step_5.writing", "step_2", "step_3"]


def test_committing_a_step_again_replaces_it(two):
    assert content_of(commit(store_in(two), 3, "again")) == "again"
    assert content_of(store_in(two).latest(refuse)) == "again"
    assert names_in(two) == ["step_2", "step_3"]


def test_a_checkpoint_that_was_set_aside_is_put_back(two):
    folder = two / "checkpoints"
    write_files(store_in(two).begin(3), "never named")
    (folder / "step_3").rename(folder / ".step_3.replaced")
    assert content_of(store_in(two).latest(refuse)) == "step 3"
    (folder / "step_3").rename(folder / ".step_3.replaced")
    assert content_of(store_in(two).load(3)) == "step 3"


def add_link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")


UNFIT = {
    "nothing": (lambda folder: None, r"no file was written to it; .* set run\.dir to a folder they share"),
    "no folder": (shutil.rmtree, r"no such folder; begin\(4\) makes it"),
    "a link": (add_link, r"link: is no regular file; a checkpoint holds copies"),
    "its manifest": (lambda folder: (folder / MANIFEST).touch(), r"and not manifest\.json, .* under another name"),
    "no UTF-8": (lambda folder: Path(os.fsdecode(bytes(folder) + b"/\xff")).touch(), r"write it under another name"),
}


@pytest.mark.parametrize(("write", "complaint"), UNFIT.values(), ids=UNFIT)
def test_what_could_not_be_read_back_is_not_committed(two, write, complaint):
    store = store_in(two)
    write(store.begin(4))
    with pytest.raises(CheckpointError, match=complaint):
        store.commit(4)
    assert names_in(two) == ["step_2", "step_3"]


def test_numbers_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"keep_last=0, keep_every=4: must be >= 1"):
        store_in(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match=r"keep_last=2, keep_every=0: must be >= 1; keep_every may be None"):
        store_in(tmp_path, keep_every=0)
    with pytest.raises(ValueError, match=r"step=-1: must be >= 0"):
        store_in(tmp_path).begin(-1)


def test_small_state_goes_through_json(tmp_path):
    path = tmp_path / "data" / "state.json"
    write_json(path, {"epoch": 2, "rng": [2**80, 0.1], "note": None})
    assert read_json(path) == {"epoch": 2, "rng": [2**80, 0.1], "note": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    path.write_bytes(b'{"epoch": ')
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read as JSON .*resume from another"):
        read_json(path)
    with pytest.raises(CheckpointError, match=r"No such file.*resume from another"):
        read_json(tmp_path / "none.json")
    with pytest.raises(CheckpointError, match=r"Not a directory; \d+ bytes and \d+ inodes free .* can be written to"):
        write_json(path / "below" / "state.json", 1)


# Rotation


ROTATIONS = [
    (1, None, [1, 2, 3], [3]),
    (2, None, [1, 2, 3], [2, 3]),
    (5, None, [1, 2, 3], [1, 2, 3]),
    (1, 4, [2, 4, 6, 8, 10], [4, 8, 10]),
    (2, 3, [1, 2, 3, 4, 5, 6, 7], [3, 6, 7]),
    (3, 10, [8, 9, 10, 11, 12, 13, 14], [10, 12, 13, 14]),
    (1, 1, [1, 2, 3], [1, 2, 3]),
    (1, 5, [0, 1, 2], [0, 2]),
    (1, None, [3, 3, 3], [3]),
    (2, None, [8, 9, 10, 9], [9, 10]),
    (1, None, [6, 10, 7, 8], [8, 10]),
    (1, None, [6, 10, 7, 11], [11]),
]


@pytest.mark.parametrize(("keep_last", "keep_every", "committed", "left"), ROTATIONS)
def test_rotation_leaves(tmp_path, keep_last, keep_every, committed, left):
    store = store_in(tmp_path, keep_last=keep_last, keep_every=keep_every)
    for step in committed:
        commit(store, step)
    assert names_in(tmp_path) == sorted(f"step_{step}" for step in left)
    assert store.steps() == left


def test_a_corrupt_checkpoint_never_pushes_a_good_one_out(tmp_path):
    for step in (2, 3, 6):
        commit(store_in(tmp_path), step)
    (tmp_path / "checkpoints/step_6/state.json").write_text("corrupt")
    store = store_in(tmp_path, keep_last=1, keep_every=None)
    assert store.latest(lambda note: None).step == 3
    commit(store, 5)
    assert store.steps() == [5, 6]
    assert store.latest(lambda note: None).step == 5
    store = store_in(tmp_path, keep_last=2, keep_every=None)
    assert store.latest(lambda note: None).step == 5
    commit(store, 7)
    assert store.steps() == [5, 7]


# Corruption


def edit_manifest(edit):
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        edit(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return apply


def rename_entry(name: str):
    return edit_manifest(lambda manifest: manifest["files"].update({name: manifest["files"].pop("state.json")}))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model/rank_0.bin").read_bytes())
    content[5] ^= 1
    (folder / "model/rank_0.bin").write_bytes(content)


def turn_into_folder(folder: Path) -> None:
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()


def turn_into_link(folder: Path) -> None:
    (folder / "state.json").rename(folder.parent / "elsewhere")
    (folder / "state.json").symlink_to(folder.parent / "elsewhere")


def turn_manifest_into_pipe(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)


NO_PATH = r"manifest\.json: files\..*must be a path inside the checkpoint"
CORRUPTIONS = {
    "flipped bit": (flip_a_bit, r"model/rank_0\.bin: SHA-256 [0-9a-f]{64} expected, [0-9a-f]{64} seen"),
    "truncated": (lambda f: os.truncate(f / "state.json", 5), r"state\.json: 17 bytes expected, 5 seen"),
    "emptied": (lambda f: os.truncate(f / "state.json", 0), r"state\.json: 17 bytes expected, 0 seen"),
    "grown": (lambda f: os.truncate(f / "state.json", 30), r"state\.json: 17 bytes expected, 30 seen"),
    "missing": (lambda f: (f / "state.json").unlink(), r"state\.json: is missing; 17 bytes expected"),
    "missing folder": (lambda f: shutil.rmtree(f / "model"), r"model/rank_0\.bin: is missing"),
    "extra": (lambda f: (f / "model/rank_2.bin").touch(), r"model/rank_2\.bin: is not in manifest\.json"),
    "a folder": (turn_into_folder, r"state\.json: is missing"),
    "a link": (turn_into_link, r"state\.json: is no regular file"),
    "a pipe": (lambda f: os.mkfifo(f / "pipe"), r"pipe: is no regular file"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), r"manifest\.json: cannot be read \(No such file"),
    "a manifest pipe": (turn_manifest_into_pipe, r"manifest\.json: is no regular file"),
    "empty manifest": (lambda f: os.truncate(f / MANIFEST, 0), r"manifest\.json: content: Invalid JSON: EOF"),
    "torn manifest": (lambda f: os.truncate(f / MANIFEST, 99), r"manifest\.json: content: Invalid JSON: EOF"),
    "garbage": (lambda f: (f / MANIFEST).write_bytes(b"\x80\x04\x95"), r"manifest\.json: content: Invalid JSON"),
    "a list": (lambda f: (f / MANIFEST).write_text("[]"), r"manifest\.json: content: .* \[\] seen"),
    "deep": (lambda f: (f / MANIFEST).write_text("[" * 100_000), r"manifest\.json: content: Invalid JSON: recursion"),
    "version": (
        edit_manifest(lambda m: m.update(format_version=2)),
        r"format_version: .* less than or equal to 1, 2 seen",
    ),
    "bool": (edit_manifest(lambda m: m.update(format_version=True)), r"format_version: .* a valid integer, True seen"),
    "other step": (edit_manifest(lambda m: m.update(step=2)), r"manifest\.json: step 3 expected, 2 seen"),
    "text step": (edit_manifest(lambda m: m.update(step="3")), r"step: Input should be a valid integer, '3' seen"),
    "real step": (edit_manifest(lambda m: m.update(step=3.0)), r"step: Input should be a valid integer, 3.0 seen"),
    "extra key": (edit_manifest(lambda m: m.update(pickle="x")), r"pickle: Extra inputs are not permitted"),
    "no files": (edit_manifest(lambda m: m.update(files={})), r"files: Dictionary should have at least 1 item"),
    "no hash": (edit_manifest(lambda m: m["files"]["state.json"].pop("sha256")), r"sha256: Field required"),
    "bad hash": (edit_manifest(lambda m: m["files"]["state.json"].update(sha256="..")), r"sha256: String should match"),
    "bad size": (
        edit_manifest(lambda m: m["files"]["state.json"].update(size_bytes=-1)),
        r"greater than or equal to 0",
    ),
    "parent": (rename_entry("../step_2/state.json"), NO_PATH),
    "inner parent": (rename_entry("model/../state.json"), NO_PATH),
    "absolute": (rename_entry("/etc/hostname"), NO_PATH),
    "itself": (rename_entry("."), NO_PATH),
    "nameless": (rename_entry(""), NO_PATH),
    "unusual": (rename_entry("model//state.json"), NO_PATH),
    "nul": (rename_entry("state\0.json"), r"state\0\.json: is missing"),
}


@pytest.mark.parametrize(("corrupt", "complaint"), CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_found(two, corrupt, complaint):
    folder = two / "checkpoints" / "step_3"
    corrupt(folder)
    notes = []
    assert store_in(two).latest(notes.append) == Checkpoint(2, two / "checkpoints" / "step_2")
    with pytest.raises(CheckpointError, match=complaint + r".*; the other steps? (is|are) 2") as caught:
        store_in(two).load(3)
    assert notes == [
        str(caught.value).replace("the other steps are 2", "the checkpoint is passed over for the one before")
    ]
    assert notes[0].startswith(f"{folder}: ")
    assert content_of(commit(store_in(two), 3, "again")) == "again"


def test_where_all_are_corrupt_none_is_found_and_each_is_named(two):
    for step in (2, 3):
        flip_a_bit(two / "checkpoints" / f"step_{step}")
    notes = []
    assert store_in(two).latest(notes.append) is None
    assert [f"step_{step}: model/rank_0.bin: SHA-256" in note for step, note in zip((3, 2), notes, strict=True)] == [
        True,
        True,
    ]


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A run folder on a file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"a small file system needs the command mount: {error}")
    if done.returncode:
        pytest.skip(f"a small file system needs root: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_disk_that_is_full_for_a_worker_costs_this_checkpoint_only(small_disk):
    store = store_in(small_disk)
    good = commit(store, 1)
    folder = store.begin(2)
    with (
        pytest.raises(CheckpointError, match=r"2\.writing/big: No space left on device; 0 bytes and .* free some room"),
        disk_errors_explained(folder / "big"),
    ):
        fill(folder / "big")
    store.abandon(2)
    assert names_in(small_disk) == ["step_1"]
    assert store.latest(refuse) == good
    assert commit(store, 2) == store.latest(refuse)


def test_a_disk_that_is_full_at_the_commit_costs_this_checkpoint_only(small_disk):
    store = store_in(small_disk)
    good = commit(store, 1)
    with pytest.raises(OSError, match="No space left"):
        fill(store.begin(1) / "big")
    with pytest.raises(CheckpointError, match=r"writing/manifest\.json: No space left on device; 0 bytes") as caught:
        store.commit(1)
    assert "lower checkpoint.keep_last, then resume: the checkpoints before this one are untouched" in str(caught.value)
    assert names_in(small_disk) == ["step_1"]
    assert content_of(good) == "step 1"
    assert store.latest(refuse) == good


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(CheckpointError, match=r"checkpoints: File exists; \d+ bytes .* can be written to, then resume"):
        store_in(tmp_path).begin(1)
