import pytest

from ray_rl.errors import ConfigError
from ray_rl.planner.gpus import GPUS, ClusterShape, find_gpu
from ray_rl.sizes import GIB


def test_a_gpu_is_found_by_its_name_in_any_case():
    assert find_gpu("H100-80GB") is GPUS["h100-80gb"]
    assert GPUS["h100-80gb"].memory_bytes / GIB == pytest.approx(79.6, abs=0.1)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("h100", "h100-80gb"),
        ("h200", "h200-141gb"),
        ("b200", "b200-180gb"),
        ("mi300x", "mi300x-192gb"),
        ("MI300", "mi300x-192gb"),
        ("l40s", "l40s-48gb"),
        ("l40", "l40-48gb"),
        ("l4", "l4-24gb"),
        ("a10", "a10-24gb"),
        ("A10G", "a10g-24gb"),
        ("a6000", "a6000-48gb"),
        ("RTX A6000", "a6000-48gb"),
        ("RTX 6000 Ada", "6000ada-48gb"),
        ("4090", "4090-24gb"),
        ("NVIDIA GeForce RTX 4090", "4090-24gb"),
        ("rtx4090", "4090-24gb"),
        ("3090", "3090-24gb"),
        ("v100", "v100-32gb"),
        ("Tesla T4", "t4-16gb"),
        ("a100-40", "a100-40gb"),
        ("A100 80GB", "a100-80gb"),
    ],
)
def test_the_start_of_a_name_is_enough_where_no_other_starts_so(asked, found):
    assert find_gpu(asked).name == found


def test_a_start_of_several_names_lists_them():
    with pytest.raises(ConfigError, match=r"--gpu a100: 2 GPUs have such a name; give one of a100-80gb, a100-40gb$"):
        find_gpu("a100")
    with pytest.raises(ConfigError, match=r"--gpu a: .* give one of a100-80gb, a100-40gb, a40-48gb, "):
        find_gpu("a")


@pytest.mark.parametrize("name", ["k80", "", "nvidia", "4090x"])
def test_an_unknown_gpu_names_the_known_ones_and_the_way_to_give_another(name):
    with pytest.raises(
        ConfigError, match=r"not a GPU that the planner knows; give one of h100-80gb, .*--gpu-memory GB"
    ):
        find_gpu(name)


def test_the_cluster_is_what_the_configuration_says(make):
    cluster = ClusterShape.of(make(cluster={"nodes": 3, "gpus_per_node": 4}), gpu="a100-40gb")
    assert (cluster.gpus, cluster.gpu.name, cluster.host_bytes) == (12, "a100-40gb", None)


def test_any_gpu_is_given_by_its_memory_and_a_known_one_keeps_its_speed(make):
    other = ClusterShape.of(make(), gpu_memory_gb=24, host_memory_gb=64)
    assert (other.gpu.memory_bytes, other.gpu.speed, other.host_bytes) == (24 * GIB, None, 64 * GIB)
    smaller = ClusterShape.of(make(), gpu="v100", gpu_memory_gb=16).gpu
    assert (smaller.memory_bytes, smaller.speed) == (16 * GIB, GPUS["v100-32gb"].speed)


@pytest.mark.parametrize("amount", [0, -24, float("nan"), float("inf")])
def test_what_is_no_amount_of_memory_is_refused(make, amount):
    with pytest.raises(ConfigError, match=r"--gpu-memory .*: not an amount of memory"):
        ClusterShape.of(make(), gpu_memory_gb=amount)
    with pytest.raises(ConfigError, match=r"--host-memory .*: not an amount of memory"):
        ClusterShape.of(make(), host_memory_gb=amount)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_gpu_computes_faster_in_half_precision_and_has_the_memory_of_its_name(gpu):
    assert gpu.speed.flops("bfloat16") > gpu.speed.flops("float32") == gpu.speed.float32_flops > 1e12
    sold = int(gpu.name.rpartition("-")[2].removesuffix("gb"))
    assert 0.92 < gpu.memory_bytes / GIB / sold <= 1.03
