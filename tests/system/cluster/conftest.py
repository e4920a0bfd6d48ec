"""One Ray cluster of two nodes on this machine for all tests of this folder.

The nodes claim two GPUs each, which nobody touches: placement can be tested where there are none.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_rl.cluster.environment import prepare_environment
from ray_rl.config import RunConfig
from tests.algorithm import algorithm
from tests.system.cluster.ranks import Ranks

ROOT = Path(__file__).parents[3]

# Ray reads its environment when it is imported, by whichever test comes first. Its workers import our actors.
prepare_environment(local=True)
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])

NODE = {"num_cpus": 8, "num_gpus": 2, "object_store_memory": 2**27, "include_dashboard": False}


@pytest.fixture(scope="session")
def make_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    runs = tmp_path_factory.mktemp("runs")

    def make(name: str = "test", **sections: Any) -> RunConfig:
        whole = {
            "run": {"name": name, "dir": str(runs), "steps": 1},
            "model": {"path": "tiny", "dtype": "float32"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(**sections.pop("algorithm", {})),
        }
        return RunConfig.model_validate(whole | sections)

    return make


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where the cluster is."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(**NODE)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="session")
def connected(address: str, make_config: Callable[..., RunConfig]) -> Iterator[RunConfig]:
    """The connection that a run with `cluster.address` makes."""
    from ray_rl.cluster.session import ray_session
    from ray_rl.planner.plan import plan

    config = make_config(cluster={"accelerator": "cpu", "address": address})
    with ray_session(config.cluster.address, plan(config)):
        yield config


@pytest.fixture(scope="module", params=[1, 2], ids=["1-worker", "2-workers"])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """The ranks of a role under DeepSpeed, without Ray."""
    started = Ranks(request.param)
    yield started
    started.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For matrices so small that they only wait for a second thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
