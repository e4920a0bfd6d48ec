"""The folder of adapters that a run continues, against the run's model."""

import shutil

import pytest

from ray_rl.app.adapter_checks import check_continued
from ray_rl.checkpoint.export_marks import write_step
from ray_rl.checkpoint.hugging_face import base_digest
from ray_rl.config import RunConfig
from ray_rl.errors import DataError
from tests.adapter_folder import write_adapters
from tests.algorithm import algorithm
from tests.unit.models.tiny import tiny_llama


@pytest.fixture
def model(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def checked(model, adapters, **adapter):
    config = RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "model": {"path": str(model), "adapter": {"path": str(adapters), **adapter}},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
        }
    )
    check_continued(config, lambda text: None)


def other(model, folder, *, width=32):
    """A model of other weights."""
    whole = tiny_llama(width=width)
    whole.model.norm.weight.data.add_(1.0)
    whole.save_pretrained(folder)
    return folder


def test_adapters_of_the_same_weights_fit_wherever_these_are(model, tmp_path):
    adapters = write_adapters(tmp_path / "adapters", tiny_llama(), base=str(model))
    checked(model, adapters)
    checked(shutil.copytree(model, tmp_path / "copy"), adapters)


def test_another_model_is_refused_where_both_are_here(model, tmp_path):
    adapters = write_adapters(tmp_path / "adapters", tiny_llama(), base=str(model))
    with pytest.raises(
        DataError, match=r"its adapters belong to \S+model \(blake2b.* set model\.path to the model that"
    ):
        checked(other(model, tmp_path / "other"), adapters)


def test_a_model_that_was_trained_on_since_is_refused_if_the_export_recorded_it(model, tmp_path):
    adapters = write_adapters(tmp_path / "adapters", tiny_llama(), base=str(model))
    write_step(adapters, 3, base=base_digest(str(model)))
    checked(model, adapters)
    other(model, model)
    with pytest.raises(DataError, match="its adapters belong to"):
        checked(model, adapters)


def test_names_decide_if_no_weights_are_here(tmp_path):
    adapters = write_adapters(tmp_path / "adapters", tiny_llama(), base="owner/one")
    checked("owner/one", adapters)
    with pytest.raises(DataError, match=r"belong to owner/one, and model\.path=owner/two is another model"):
        checked("owner/two", adapters)


def test_other_shapes_are_refused(model, tmp_path):
    adapters = write_adapters(tmp_path / "adapters", tiny_llama(), base=None)
    checked(model, adapters)
    with pytest.raises(DataError, match="does not fit the model"):
        checked(other(model, tmp_path / "wide", width=64), adapters)
