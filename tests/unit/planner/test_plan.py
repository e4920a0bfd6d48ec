import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.config import RunConfig
from ray_rl.config.gpus import asked_gpus
from ray_rl.errors import ConfigError
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.layout import Place
from ray_rl.planner.plan import DeviceGroup, plan, wanted
from tests.algorithm import algorithm


def config(*, kl=0.0, references=1, actors=1, critics=0, rewards=0, engines=1, tensor_parallel=1, **cluster):
    judges = [{"kind": "model", "paths": ["judge"], "workers": rewards}] if rewards else []
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}, *judges],
            "algorithm": algorithm(kl={"coefficient": kl}),
            "rollout": {"engines": engines, "tensor_parallel": tensor_parallel},
            "train": {"workers": actors},
            "critic": {"workers": critics} if critics else None,
            "reference": {"workers": references},
            "cluster": cluster,
        }
    )


def on(node, *gpus):
    return tuple(Place(node, (gpu,) if isinstance(gpu, int) else gpu) for gpu in gpus)


@pytest.mark.parametrize(
    ("asked", "groups"),
    [
        pytest.param(
            {"actors": 4, "engines": 2},
            [DeviceGroup(("actor",), on(0, 0, 1, 2, 3), 1, 1.0), DeviceGroup(("rollout",), on(0, 4, 5), 1, 1.0)],
            id="one GPU a trainer worker, one an engine",
        ),
        pytest.param(
            {"engines": 2, "tensor_parallel": 4, "nodes": 2},
            [
                DeviceGroup(("actor",), on(0, 0), 1, 1.0),
                DeviceGroup(("rollout",), on(0, (1, 2, 3, 4)) + on(1, (0, 1, 2, 3)), 4, 4.0),
            ],
            id="an engine's tensor-parallel GPUs are one bundle on one node",
        ),
        pytest.param(
            {"references": 2},
            [DeviceGroup(("actor",), on(0, 0), 1, 1.0), DeviceGroup(("rollout",), on(0, 1), 1, 1.0)],
            id="no reference without a penalty",
        ),
        pytest.param(
            {"kl": 0.1, "references": 2, "critics": 1, "rewards": 1},
            [
                DeviceGroup(("actor",), on(0, 0), 1, 1.0),
                DeviceGroup(("critic",), on(0, 1), 1, 1.0),
                DeviceGroup(("reference",), on(0, 2, 3), 1, 1.0),
                DeviceGroup(("reward",), on(0, 4), 1, 1.0),
                DeviceGroup(("rollout",), on(0, 5), 1, 1.0),
            ],
            id="five roles on GPUs of their own",
        ),
        pytest.param(
            {"kl": 0.1, "actors": 2, "references": 2, "colocate": [["reference", "actor"]]},
            [DeviceGroup(("actor", "reference"), on(0, 0, 1), 1, 2.0), DeviceGroup(("rollout",), on(0, 2), 1, 1.0)],
            id="worker i of colocated roles is on GPU i, with the CPUs of both",
        ),
        pytest.param(
            {"colocate": [["actor", "reference"]]},
            [DeviceGroup(("actor",), on(0, 0), 1, 1.0), DeviceGroup(("rollout",), on(0, 1), 1, 1.0)],
            id="a role that the run has not is left out of its group",
        ),
        pytest.param(
            {"actors": 2, "engines": 2, "colocate": [["rollout", "actor"]]},
            [DeviceGroup(("actor", "rollout"), on(0, 0, 1), 1, 2.0)],
            id="engines that share GPUs have bundles of one GPU",
        ),
        pytest.param(
            {"critics": 3, "actors": 6, "engines": 2, "tensor_parallel": 3, "nodes": 2}
            | {"gpus_per_node": 5, "colocate": [["actor", "rollout"]]},
            [
                DeviceGroup(("actor", "rollout"), on(0, 0, 1, 2) + on(1, 0, 1, 2), 1, 2.0, block=3),
                DeviceGroup(("critic",), on(0, 3, 4) + on(1, 3), 1, 1.0),
            ],
            id="the bundles of such an engine are on one node",
        ),
        pytest.param(
            {"accelerator": "cpu", "actors": 2, "engines": 1, "tensor_parallel": 2, "colocate": [["actor", "rollout"]]},
            [DeviceGroup(("actor", "rollout"), (Place(0, ()),) * 2, 0, 2.0, block=2)],
            id="on CPU too, without GPUs",
        ),
        pytest.param(
            {"accelerator": "cpu", "engines": 2, "tensor_parallel": 2, "cpus_per_worker": 0.5},
            [
                DeviceGroup(("actor",), (Place(0, ()),), 0, 0.5),
                DeviceGroup(("rollout",), (Place(0, ()),) * 2, 0, 1.0),
            ],
            id="no GPUs on CPU, and one node",
        ),
    ],
)
def test_the_plan_of(asked, groups):
    assert list(plan(config(**asked)).groups) == groups


def test_the_plan_counts_workers_by_role_and_finds_their_places():
    layout = plan(config(kl=0.1, actors=6, references=6, engines=3, nodes=2, colocate=[["actor", "reference"]]))
    assert layout.workers == {"actor": 6, "rollout": 3, "reference": 6}
    assert layout.group_of("actor") == layout.group_of("reference") != layout.group_of("rollout")
    assert layout.places("reference") == layout.places("actor") == on(0, 0, 1, 2, 3, 4, 5)
    assert layout.places("rollout") == on(0, 6, 7) + on(1, 0)
    assert (layout.gpus, layout.cpus, layout.nodes, layout.groups[0].bundles) == (9, 15, 2, 6)


def test_an_engine_that_shares_gpus_has_whole_bundles_of_one_node():
    shared = {"actors": 8, "engines": 4, "tensor_parallel": 2, "colocate": [["actor", "rollout"]]}
    layout = plan(config(**shared, gpus_per_node=4, nodes=2))
    assert layout.places("rollout") == on(0, (0, 1), (2, 3)) + on(1, (0, 1), (2, 3))
    assert layout.places("actor") == on(0, 0, 1, 2, 3) + on(1, 0, 1, 2, 3)
    assert (layout.gpus, layout.cpus, layout.workers["rollout"]) == (8, 16, 4)
    assert layout.groups[0].has_sleeping_engines
    on_cpu = plan(config(**shared, accelerator="cpu"))
    assert on_cpu.places("rollout") == (Place(0, ()),) * 4


def test_what_does_not_fit_says_how_many_nodes_it_needs():
    with pytest.raises(ConfigError) as raised:
        plan(config(actors=12, engines=2, tensor_parallel=4), ClusterShape(2, 8))
    assert str(raised.value) == (
        "cluster.nodes=2 * cluster.gpus_per_node=8: the roles need 20 GPUs on 3 nodes (actor 12, rollout 2 x 4), and "
        "the cluster has 16 on 2; set cluster.nodes=3, or make the roles smaller"
    )


def test_an_engine_that_is_larger_than_a_node_is_refused():
    with pytest.raises(ConfigError, match="an engine never spans nodes, and cluster"):
        plan(config(tensor_parallel=8, gpus_per_node=4, nodes=4))


def test_what_is_wanted_is_named_by_group():
    layout = plan(config(kl=0.1, tensor_parallel=2, colocate=[["actor", "reference"]]))
    assert wanted(layout) == "actor+reference 1, rollout 1 x 2"


COUNTS = st.integers(1, 6)


@settings(deadline=None)
@given(actors=COUNTS, engines=COUNTS, tensor_parallel=COUNTS, kl=st.sampled_from([0.0, 0.1]), shared=st.booleans())
def test_the_plan_takes_as_many_gpus_as_the_rules_of_the_configuration_say(
    actors, engines, tensor_parallel, kl, shared
):
    colocate = [["actor", "reference"]] if shared else []
    asked = config(
        kl=kl, actors=actors, references=actors, engines=engines, tensor_parallel=tensor_parallel, colocate=colocate
    )
    assert plan(asked, ClusterShape(9, 8)).gpus == sum(ask.gpus for ask in asked_gpus(asked))
