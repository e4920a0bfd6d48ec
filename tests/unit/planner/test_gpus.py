import pytest

from ray_rl.errors import ConfigError
from ray_rl.planner.gpus import GIB, GPUS, ClusterShape, find_gpu


def test_a_gpu_is_found_by_its_name_in_any_case():
    assert find_gpu("H100-80GB") is GPUS["h100-80gb"]
    assert GPUS["h100-80gb"].memory_bytes / GIB == pytest.approx(79.6, abs=0.1)


def test_an_unknown_gpu_names_the_known_ones():
    with pytest.raises(ConfigError, match="--gpu v100: not a GPU that the planner knows; give one of h100-80gb, "):
        find_gpu("v100")


def test_the_cluster_is_what_the_configuration_says(make):
    cluster = ClusterShape.of(make(cluster={"nodes": 3, "gpus_per_node": 4}), gpu="a100-40gb")
    assert (cluster.gpus, cluster.gpu.name) == (12, "a100-40gb")
