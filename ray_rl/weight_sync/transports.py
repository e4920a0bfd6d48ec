"""Chooses the transport of a run and builds its two sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, assert_never

from ray_rl.config.cluster import ClusterConfig
from ray_rl.config.rollout import WeightSyncConfig
from ray_rl.weight_sync.messages import NCCL_BUFFERS, Rendezvous
from ray_rl.weight_sync.plugin import GLOO, IPC, NCCL, SHARED_MEMORY

if TYPE_CHECKING:
    from ray_rl.training.gather import WeightStream
    from ray_rl.weight_sync.senders.sender import Sender

Transport = Literal["shared_memory", "gloo", "nccl", "ipc"]

BACKENDS: dict[Transport, str] = {"shared_memory": SHARED_MEMORY, "gloo": GLOO, "nccl": NCCL, "ipc": IPC}
"""vLLM's names of the transports."""


def transport_of(settings: WeightSyncConfig, cluster: ClusterConfig, *, is_shared: bool) -> Transport:
    """Returns `weight_sync.backend`, or what "auto" stands for.

    That is nccl on GPUs, or ipc where both sides share them: NCCL connects no two processes on one GPU. On CPU it is
    shared memory in a cluster of one host, else gloo.

    Args:
        settings: the section `weight_sync`.
        cluster: the section `cluster`.
        is_shared: whether engines share the GPUs of the actor.
    """
    if settings.backend != "auto":
        return settings.backend
    if cluster.accelerator == "gpu" and is_shared:
        return "ipc"
    if cluster.accelerator == "gpu":
        return "nccl"
    return "shared_memory" if cluster.address is None else "gloo"


def build_sender(transport: Transport, stream: WeightStream, *, is_sender: bool) -> Sender:
    """Returns the sender for the trainer. The driver imports this module, and no sender."""
    match transport:
        case "shared_memory":
            from ray_rl.weight_sync.senders.shared_memory import SharedMemorySender

            return SharedMemorySender(stream, is_sender=is_sender)
        case "gloo":
            from ray_rl.weight_sync.senders.sender import GlooSender

            return GlooSender(stream, is_sender=is_sender)
        case "ipc":
            from ray_rl.weight_sync.senders.ipc import IpcSender

            return IpcSender(stream, is_sender=is_sender)
        case "nccl":
            from ray_rl.weight_sync.senders.nccl import NcclSender

            return NcclSender(stream, is_sender=is_sender)
        case _:
            assert_never(transport)


def engine_init_info(transport: Transport, rendezvous: Rendezvous, *, rank_offset: int) -> dict[str, Any]:
    """Returns what an engine needs to join: vLLM's init information.

    Args:
        transport: the transport of the run.
        rendezvous: the address and settings of the group.
        rank_offset: rank of the engine's first worker; the trainer is 0.
    """
    match transport:
        case "shared_memory" | "gloo" | "ipc":
            shared = {"segment": rendezvous.segment} if transport == "shared_memory" else {}
            return shared | {
                "address": rendezvous.address,
                "port": rendezvous.port,
                "rank_offset": rank_offset,
                "world": rendezvous.world,
                "capacity_bytes": rendezvous.capacity_bytes,
                "timeout_s": rendezvous.timeout_s,
            }
        case "nccl":
            return {
                "master_address": rendezvous.address,
                "master_port": rendezvous.port,
                "rank_offset": rank_offset,
                "world_size": rendezvous.world,
                "packed": True,
                "packed_buffer_size_bytes": rendezvous.capacity_bytes,
                "packed_num_buffers": NCCL_BUFFERS,
            }
        case _:
            assert_never(transport)
