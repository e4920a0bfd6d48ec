"""The GPUs that the planner knows, and the cluster for which it plans."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ray_rl.config import RunConfig
from ray_rl.errors import ConfigError
from ray_rl.sizes import GIB, MIB


@dataclass(frozen=True, slots=True)
class Speed:
    """Peak rates from a data sheet."""

    tensor_flops: float
    """Dense bfloat16 operations per second with float32 sums; float16 on GPUs without bfloat16."""
    float32_flops: float
    """Float32 operations per second, without tensor cores and TF32: torch's default."""
    bandwidth: float
    """Memory bandwidth in bytes per second."""
    link: float
    """Bytes per second in each direction between the GPUs of a node: NVLink, or PCIe."""
    network: float
    """Bytes per second of the port to other nodes that a GPU has for itself in the usual server."""

    def flops(self, dtype: str) -> float:
        """Returns the operations per second in `bfloat16` or `float32`."""
        return self.float32_flops if dtype == "float32" else self.tensor_flops


@dataclass(frozen=True, slots=True)
class Gpu:
    """The known facts about a kind of GPU."""

    name: str
    memory_bytes: int
    """Memory as nvidia-smi shows it and programs find it; an "80 GB" H100 has 79.6 GiB."""
    speed: Speed | None = None
    """None if only the memory is known; then there is no estimate of the time."""
    has_bfloat16: bool = True
    """False for Volta and Turing: vLLM refuses bfloat16 below compute capability 8.0."""


PCIE_3, PCIE_4, PCIE_5 = 16.0, 32.0, 64.0
"""GB/s in each direction of 16 lanes."""


def _gpu(
    name: str,
    memory_mib: int,
    tera: tuple[float, float],
    gb_per_s: float,
    *,
    link: float = PCIE_4,
    network: float = 12.5,
    has_bfloat16: bool = True,
) -> tuple[str, Gpu]:
    speed = Speed(tera[0] * 1e12, tera[1] * 1e12, gb_per_s * 1e9, link * 1e9, network * 1e9)
    return name, Gpu(name, memory_mib * MIB, speed, has_bfloat16)


# Memory in MiB, (dense bfloat16, float32) in TFLOP/s, and GB/s. If a data sheet states the rate with sparsity, this
# table has half of it. Links are those of a GPU in one direction: NVLink by data sheet; PCIe where there is none or
# only between pairs, half of it where GPUs cannot read each other's memory (GeForce 40 and 50) and bytes cross it
# twice. Networks are those of the vendors' servers with eight GPUs: a port of 400 Gbit/s for each GPU of DGX H100, H200
# and B200 and of MI300X platforms, 200 Gbit/s for DGX A100, four of 100 Gbit/s for the eight GPUs of DGX-1 V100; for
# other GPUs, 100 Gbit/s.
GPUS = dict(
    (
        # H100 and H200 data sheets, SXM; Hopper architecture whitepaper, table 2.
        _gpu("h100-80gb", 81559, (989.4, 66.9), 3350, link=450, network=50),
        _gpu("h200-141gb", 143771, (989.4, 66.9), 4800, link=450, network=50),
        # H20 data sheet.
        _gpu("h20-96gb", 97871, (148.0, 44.0), 4000, link=450, network=50),
        # HGX B200 data sheet, one of eight GPUs.
        _gpu("b200-180gb", 183359, (2250.0, 75.0), 8000, link=900, network=50),
        # A100 data sheet, SXM.
        _gpu("a100-80gb", 81920, (312.0, 19.5), 2039, link=300, network=25),
        _gpu("a100-40gb", 40960, (312.0, 19.5), 1555, link=300, network=25),
        # Instinct MI300X data sheet. The arithmetic alone: this system has not been run on ROCm.
        _gpu("mi300x-192gb", 196592, (1307.4, 163.4), 5300, link=448, network=50),
        # L40S, L40 and L4 data sheets.
        _gpu("l40s-48gb", 46068, (362.0, 91.6), 864),
        _gpu("l40-48gb", 46068, (181.0, 90.5), 864),
        _gpu("l4-24gb", 23034, (121.0, 30.3), 300),
        # A40, A30 and A10 data sheets; A10G: NVIDIA A10G data sheet of Amazon's EC2 G5.
        _gpu("a40-48gb", 46068, (149.7, 37.4), 696),
        _gpu("a30-24gb", 24576, (165.0, 10.3), 933),
        _gpu("a10-24gb", 23028, (125.0, 31.2), 600),
        _gpu("a10g-24gb", 23028, (70.0, 35.0), 600),
        # RTX A6000 data sheet; RTX 6000 Ada data sheet.
        _gpu("a6000-48gb", 49140, (154.8, 38.7), 768),
        _gpu("6000ada-48gb", 49140, (364.2, 91.1), 960),
        # Whitepapers of GA102 (table 2), of Ada (table 2) and of RTX Blackwell, float16 with float32 sums.
        _gpu("3090-24gb", 24576, (71.0, 35.6), 936),
        _gpu("4090-24gb", 24564, (165.2, 82.6), 1008, link=PCIE_4 / 2),
        _gpu("5090-32gb", 32607, (209.5, 104.8), 1792, link=PCIE_5 / 2),
        # Tesla V100 data sheet, SXM2 with 32 GB; Tesla T4 data sheet. Float16, as neither has bfloat16.
        _gpu("v100-32gb", 32510, (125.0, 15.7), 900, link=150, network=6.25, has_bfloat16=False),
        _gpu("t4-16gb", 15360, (65.0, 8.1), 320, link=PCIE_3, has_bfloat16=False),
    )
)
"""Known GPUs, by the name for `ray-rl plan --gpu`."""

DEFAULT_GPU = "h100-80gb"

BRANDS = ("nvidia", "geforce", "rtx", "tesla", "amd", "instinct")
"""Words before a GPU's name that can be left out."""


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """A cluster of nodes with equal GPUs."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu = GPUS[DEFAULT_GPU]
    host_bytes: float | None = None
    """Memory of a node that the run may use; None if unknown, in which case it is not checked."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        *,
        gpu: str | None = None,
        gpu_memory_gb: float | None = None,
        host_memory_gb: float | None = None,
    ) -> ClusterShape:
        """Returns the cluster that a configuration's section `cluster` requests.

        Args:
            config: the configuration of the run.
            gpu: the name of the GPU; None is `DEFAULT_GPU`, or a GPU of unknown speed if its memory is given.
            gpu_memory_gb: advertised memory of a GPU, in GB; replaces that of the named GPU.
            host_memory_gb: memory of a node, in GB.

        Raises:
            ConfigError: the GPU is not known, or a memory is not positive.
        """
        for option, value in (("--gpu-memory", gpu_memory_gb), ("--host-memory", host_memory_gb)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{option} {value:g}: not an amount of memory; give gigabytes, for example 24")
        if gpu_memory_gb is None:
            found = find_gpu(gpu or DEFAULT_GPU)
        elif gpu is None:
            found = Gpu(f"{gpu_memory_gb:g} GB GPU", round(gpu_memory_gb * GIB))
        else:
            # A GPU that is sold with 24 GB has 24 GiB, or a few percent less.
            found = replace(find_gpu(gpu), memory_bytes=round(gpu_memory_gb * GIB))
        host_bytes = None if host_memory_gb is None else host_memory_gb * GIB
        return cls(config.cluster.nodes, config.cluster.gpus_per_node, found, host_bytes)

    @property
    def gpus(self) -> int:
        """Total number of GPUs."""
        return self.nodes * self.gpus_per_node


def find_gpu(name: str) -> Gpu:
    """Returns the GPU with a name, or with the only name that starts so: "h100", "RTX 4090", "a100-80gb".

    Raises:
        ConfigError: no name or several names start so.
    """
    asked = _plain(name)
    found = [known for known in GPUS if asked in (_plain(known), known.partition("-")[0])]
    found = found or [known for known in GPUS if asked and _plain(known).startswith(asked)]
    if len(found) == 1:
        return GPUS[found[0]]
    if found:
        raise ConfigError(f"--gpu {name}: {len(found)} GPUs have such a name; give one of {', '.join(found)}")
    raise ConfigError(
        f"--gpu {name}: not a GPU that the planner knows; give one of {', '.join(GPUS)}, or the memory of another with "
        "--gpu-memory GB"
    )


def _plain(name: str) -> str:
    """Returns the letters and digits of a name, without the brand."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word not in BRANDS]
    return "".join(words).removeprefix("rtx")
