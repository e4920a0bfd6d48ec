import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_rl.config import RunConfig
from ray_rl.config.gpus import asked_gpus
from ray_rl.planner.plan import DeviceGroup, plan


def config(*, kl=0.0, references=1, actors=1, engines=1, tensor_parallel=1, **cluster):
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": {"kl": {"coefficient": kl}},
            "rollout": {"engines": engines, "tensor_parallel": tensor_parallel},
            "train": {"workers": actors},
            "reference": {"workers": references},
            "cluster": cluster,
        }
    )


@pytest.mark.parametrize(
    ("asked", "groups"),
    [
        pytest.param(
            {"actors": 4, "engines": 2},
            [DeviceGroup(("actor",), 4, 1, 1.0), DeviceGroup(("rollout",), 2, 1, 1.0)],
            id="one GPU a trainer worker, one an engine",
        ),
        pytest.param(
            {"engines": 2, "tensor_parallel": 4},
            [DeviceGroup(("actor",), 1, 1, 1.0), DeviceGroup(("rollout",), 2, 4, 4.0)],
            id="an engine's tensor-parallel GPUs are one bundle",
        ),
        pytest.param(
            {"references": 2},
            [DeviceGroup(("actor",), 1, 1, 1.0), DeviceGroup(("rollout",), 1, 1, 1.0)],
            id="no reference without a penalty",
        ),
        pytest.param(
            {"kl": 0.1, "references": 2},
            [
                DeviceGroup(("actor",), 1, 1, 1.0),
                DeviceGroup(("rollout",), 1, 1, 1.0),
                DeviceGroup(("reference",), 2, 1, 1.0),
            ],
            id="a reference of its own with a penalty",
        ),
        pytest.param(
            {"kl": 0.1, "actors": 2, "references": 2, "colocate": [["reference", "actor"]]},
            [DeviceGroup(("reference", "actor"), 2, 1, 2.0), DeviceGroup(("rollout",), 1, 1, 1.0)],
            id="colocated roles share bundles, whose CPUs are those of both",
        ),
        pytest.param(
            {"colocate": [["actor", "reference"]]},
            [DeviceGroup(("actor",), 1, 1, 1.0), DeviceGroup(("rollout",), 1, 1, 1.0)],
            id="a role that the run has not is left out of its group",
        ),
        pytest.param(
            {"accelerator": "cpu", "engines": 2, "tensor_parallel": 2, "cpus_per_worker": 0.5},
            [DeviceGroup(("actor",), 1, 0, 0.5), DeviceGroup(("rollout",), 2, 0, 1.0)],
            id="no GPUs on CPU",
        ),
    ],
)
def test_the_plan_of(asked, groups):
    assert sorted(plan(config(**asked)).groups, key=str) == sorted(groups, key=str)


def test_the_plan_counts_workers_by_role_and_finds_their_groups():
    layout = plan(config(kl=0.1, actors=2, references=2, engines=3, colocate=[["actor", "reference"]]))
    assert layout.workers == {"actor": 2, "rollout": 3, "reference": 2}
    assert layout.group_of("actor") == layout.group_of("reference") != layout.group_of("rollout")
    assert layout.gpus == 5
    assert layout.cpus == 7


COUNTS = st.integers(1, 6)


@given(actors=COUNTS, engines=COUNTS, tensor_parallel=COUNTS, kl=st.sampled_from([0.0, 0.1]), shared=st.booleans())
def test_the_plan_takes_as_many_gpus_as_the_rules_of_the_configuration_say(
    actors, engines, tensor_parallel, kl, shared
):
    colocate = [["actor", "reference"]] if shared else []
    asked = config(
        kl=kl, actors=actors, references=actors, engines=engines, tensor_parallel=tensor_parallel, colocate=colocate
    )
    assert plan(asked).gpus == sum(ask.gpus for ask in asked_gpus(asked))
