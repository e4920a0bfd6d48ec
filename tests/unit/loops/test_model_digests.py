"""Models that change under a run: the same folder, other weights."""

import shutil

import pytest

from ray_rl.config import RunConfig
from ray_rl.errors import DataError
from ray_rl.loops.model_digests import digests_of, require_same_models
from tests.algorithm import algorithm
from tests.tiny_model import write_tiny_model


def config(*, frozen_layers=0, adapter=None, **sections):
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "model": {"path": "tiny", "adapter": adapter},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "train": {"frozen_layers": frozen_layers},
        }
        | sections
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two models of the same architecture with other weights: as before and after another training."""
    place = tmp_path_factory.mktemp("two")
    return [write_tiny_model(place / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture
def folder(two, tmp_path):
    return shutil.copytree(two[0], tmp_path / "model")


def retrained(folder, two):
    shutil.copyfile(two[1] / "model.safetensors", folder / "model.safetensors")


def compared_adapters(folder, tmp_path, two, **sections):
    """What is said when the adapters that a run continues have changed, for the roles that started with them."""
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    shutil.copyfile(two[0] / "model.safetensors", adapters / "adapter_model.safetensors")
    folders = {role: (str(folder), str(adapters)) for role in ("actor", "critic")}
    before, said = digests_of(folders), []
    shutil.copyfile(two[1] / "model.safetensors", adapters / "adapter_model.safetensors")
    continuing = config(adapter={"path": str(adapters)}, **sections)
    require_same_models(continuing, before, digests_of(folders), note=said.append)
    return said


def test_changed_adapters_of_the_reference_are_refused(folder, tmp_path, two):
    with pytest.raises(
        DataError, match=r"^model\.adapter\.path=.*adapters: its weights have changed since .*, and the "
    ):
        compared_adapters(folder, tmp_path, two, algorithm=algorithm(kl={"coefficient": 0.1}))


def test_changed_adapters_from_which_a_run_only_started_are_noted(folder, tmp_path, two):
    said = compared_adapters(folder, tmp_path, two, algorithm=algorithm(kl={"coefficient": 0.0}))
    assert len(said) == 2 and all("the run continues with those of the checkpoint" in text for text in said)


def compared(role, folder, change, **settings):
    folders = {role: (str(folder),), "rollout": (str(folder),)}
    before, said = digests_of(folders), []
    change()
    require_same_models(config(**settings), before, digests_of(folders), note=said.append)
    return said


@pytest.mark.parametrize("role", ["reference", "reward"])
def test_a_frozen_model_that_was_trained_meanwhile_is_refused_with_both_digests(folder, two, role):
    with pytest.raises(DataError) as caught:
        compared(role, folder, lambda: retrained(folder, two))
    key = {"reference": "reference.path", "reward": "rewards"}[role]
    assert str(caught.value).startswith(
        f"{key}={folder}: its weights have changed since the checkpoint (blake2b-sampled:"
    )
    assert "put back the weights that the run started with, or start a new run" in str(caught.value)
    assert "1024 bytes at three places of each" in str(caught.value)


def test_the_policy_is_refused_only_where_layers_are_frozen(folder, two):
    with pytest.raises(DataError, match=r"train.frozen_layers=1: these layers would change"):
        compared("actor", folder, lambda: retrained(folder, two), frozen_layers=1)


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_the_model_under_adapters_must_stay_the_same(folder, two, role):
    with pytest.raises(
        DataError, match=r"the checkpoint has only the adapters, which belong to those weights; put back"
    ):
        compared(role, folder, lambda: retrained(folder, two), adapter={"kind": "lora"})


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_weights_that_the_checkpoint_holds_are_noted(folder, two, role):
    (line,) = compared(role, folder, lambda: retrained(folder, two))
    assert "its weights have changed since the checkpoint" in line
    assert line.endswith("the run continues with those of the checkpoint")


@pytest.mark.parametrize("role", ["actor", "critic", "reference", "reward"])
def test_the_same_weights_under_other_settings_and_times_are_the_same(folder, role):
    def touch():
        (folder / "README.md").write_text("new")
        shutil.copyfile(folder / "model.safetensors", folder / "copy")
        (folder / "copy").rename(folder / "model.safetensors")

    assert compared(role, folder, touch) == []


def test_a_model_of_the_hub_that_is_not_here_and_a_checkpoint_of_an_older_version_are_not_compared(folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    now = digests_of({"actor": ("some/model-that-is-not-cached",), "reward": (str(folder),)})
    assert now["actor"] == [["some/model-that-is-not-cached", None]]
    require_same_models(config(), {}, now, note=pytest.fail)
    require_same_models(config(), now, now, note=pytest.fail)


def test_another_path_is_a_change_of_the_configuration_and_not_of_the_model(two):
    before, now = (digests_of({"reference": (str(folder),)}) for folder in two)
    require_same_models(config(), before, now, note=pytest.fail)
