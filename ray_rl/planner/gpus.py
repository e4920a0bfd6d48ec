"""GPUs that the planner knows, and the cluster that it plans for."""

from __future__ import annotations

from dataclasses import dataclass

from ray_rl.config import RunConfig
from ray_rl.errors import ConfigError

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a data sheet says."""

    name: str
    memory_bytes: int
    """As nvidia-smi shows it, which is what programs find; an "80 GB" H100 has 79.6 GiB."""
    flops: float
    """Dense bfloat16 operations a second."""
    bandwidth: float
    """Bytes a second of its memory."""


def _gpu(name: str, memory_mib: int, teraflops: float, bandwidth_tb_per_s: float) -> tuple[str, Gpu]:
    return name, Gpu(name, memory_mib * MIB, teraflops * 1e12, bandwidth_tb_per_s * 1e12)


GPUS = dict(
    (
        _gpu("h100-80gb", 81559, 989.4, 3.35),
        _gpu("h200-141gb", 143771, 989.4, 4.8),
        _gpu("b200-180gb", 183359, 2250.0, 8.0),
        _gpu("a100-80gb", 81920, 312.0, 2.04),
        _gpu("a100-40gb", 40960, 312.0, 1.56),
        _gpu("l40s-48gb", 46068, 362.0, 0.864),
        _gpu("a6000-48gb", 49140, 154.8, 0.768),
        _gpu("l4-24gb", 23034, 121.0, 0.3),
    )
)
"""By the name that `ray-rl plan --gpu` takes."""

DEFAULT_GPU = "h100-80gb"


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """Nodes with equal GPUs."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu = GPUS[DEFAULT_GPU]

    @classmethod
    def of(cls, config: RunConfig, *, gpu: str = DEFAULT_GPU) -> ClusterShape:
        """What `cluster` of a configuration says.

        Raises:
            ConfigError: a GPU that is not known.
        """
        return cls(config.cluster.nodes, config.cluster.gpus_per_node, find_gpu(gpu))

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node


def find_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        ConfigError: it is not known.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise ConfigError(f"--gpu {name}: not a GPU that the planner knows; give one of {', '.join(GPUS)}")
    return gpu
