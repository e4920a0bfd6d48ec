"""A resume whose data or models have changed is refused before anything is written."""

from functools import partial

import numpy as np
import pytest

from ray_rl.app import run as app
from ray_rl.app.run import run_training
from ray_rl.checkpoint.store import write_json
from ray_rl.config import RunConfig
from ray_rl.data.examples.load import Examples
from ray_rl.data.examples.order import ExampleOrder
from ray_rl.data.opening import open_rows
from ray_rl.data.row_checks import CheckedRows
from ray_rl.data.source import row_order
from ray_rl.errors import ConfigError, DataError
from ray_rl.loops.examples import ExamplePosition
from ray_rl.loops.resuming import store_of
from ray_rl.rollout.collected import Collected
from ray_rl.types import Answer, Example
from tests.algorithm import algorithm
from tests.run_folders import new_run_folder
from tests.tiny_model import write_tiny_model

CHANGED = "data: the saved position belongs to another source: the content of rows.jsonl has changed"


@pytest.fixture(autouse=True)
def environment_unchanged(monkeypatch):
    monkeypatch.setattr(app, "prepare_environment", lambda local: None)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "one", "answer": "1"}\n')
    return path


def configured(rows, *, steps, **sections):
    return RunConfig.model_validate(
        {
            "run": {"name": "done", "dir": str(rows.parent / "runs"), "steps": steps},
            "model": {"path": "tiny"},
            "data": {"kind": "jsonl", "path": str(rows)},
            "checkpoint": {"every_steps": 1},
            "cluster": {"accelerator": "cpu"},
        }
        | sections
    )


offline = partial(configured, algorithm={"kind": "sft", "batch_size": 1})
online = partial(configured, algorithm=algorithm(), rewards=[{"kind": "number"}])


def trained(config, position, *, models=None):
    """Writes the folder of a run after its last step, and returns a function that reads all files but the lock."""
    folder = new_run_folder(config)
    store, step = store_of(config, folder), config.steps
    begun = store.begin(step)
    write_json(begun / "run.json", {"step": step, "version": step, "models": models or {}})
    position.write(begun)
    store.commit(step)

    def content():
        found = [path for path in folder.root.rglob("*") if path.is_file() and not path.name.startswith("lock")]
        return {str(path.relative_to(folder.root)): path.read_bytes() for path in found}

    return content


def examples(digest):
    answer = Answer(np.ones(2, np.int32), np.ones(2, np.bool_))
    one = Example(id="rows.jsonl:1", prompt_ids=(1,), answers=(answer,), prompt="one", texts=("1",))
    return Examples(kind="jsonl", train=[one], held_out=[], lines=[], digests={"rows.jsonl": digest})


def position_of(config, found):
    return ExamplePosition(ExampleOrder(found, shuffle=config.data.shuffle, seed=config.run.seed).state())


def collected(config):
    order = row_order(open_rows(config.data, seed=0), config.data, seed=0)
    position = {"source": order.fingerprint(), "epoch": 0, "index": 0}
    return Collected(position, admitted=0, accepted=0, in_flight=(), waiting=(), refused=(), stale=0)


def test_examples_that_changed_in_place_leave_a_finished_run_as_it_was(rows):
    before = offline(rows, steps=4)
    content = trained(before, position_of(before, examples("blake2b:then")))
    was = content()
    with pytest.raises(ConfigError, match=CHANGED):
        run_training(offline(rows, steps=5), resume="required", checked=examples("blake2b:now"))
    assert content() == was


@pytest.mark.parametrize("is_checked", [True, False])
def test_prompts_that_changed_in_place_leave_a_finished_run_as_it_was(rows, is_checked):
    before = online(rows, steps=4)
    content = trained(before, collected(before))
    was = content()
    rows.write_text('{"prompt": "two", "answer": "2"}\n')
    config = online(rows, steps=5)
    checked = CheckedRows(config.data, config.rewards, open_rows(config.data, seed=0)) if is_checked else None
    with pytest.raises(ConfigError, match=CHANGED):
        run_training(config, resume="auto", checked=checked)
    assert content() == was


@pytest.mark.parametrize("way", ["offline", "online"])
def test_a_model_that_changed_and_is_in_no_checkpoint_leaves_the_run_as_it_was(rows, tmp_path, way):
    model = write_tiny_model(tmp_path / "model")
    sections = {"model": {"path": str(model)}, "train": {"frozen_layers": 1}}
    make = {"offline": offline, "online": online}[way]
    before, config = make(rows, steps=4, **sections), make(rows, steps=5, **sections)
    found = examples("blake2b:then") if way == "offline" else None
    position = collected(before) if found is None else position_of(before, found)
    content = trained(before, position, models={"actor": [[str(model), "blake2b-sampled:then"]]})
    was = content()
    with pytest.raises(DataError, match=r"its weights have changed since the checkpoint .* put back the weights"):
        run_training(config, resume="required", checked=found)
    assert content() == was
