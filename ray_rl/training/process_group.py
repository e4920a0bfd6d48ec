"""The process group of the workers of a role."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from ray_rl.imports import quick_imports
from ray_rl.training.member import Member


def rendezvous_store(address: str, port: int, *, world: int | None, is_master: bool, timeout_s: float) -> dist.TCPStore:
    """Makes the store at which ranks meet. It listens at `address` alone; torch would listen on every interface.

    Args:
        address: the address of the master.
        port: a free port there.
        world: the number of ranks, or None.
        is_master: whether this process keeps the store.
        timeout_s: the limit of every operation, and of the wait for the master.
    """
    listener = None
    if is_master:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family).detach()
    return dist.TCPStore(
        address,
        port,
        world,
        is_master=is_master,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener,
    )


def join_process_group(member: Member, *, accelerator: str, threads: int, timeout_s: float) -> str:
    """Joins the other ranks (gloo on CPU, nccl on GPU) and returns this worker's device.

    Every collective of the group is bounded by `timeout_s`.
    """
    os.environ.update(
        RANK=str(member.rank),
        WORLD_SIZE=str(member.world),
        LOCAL_RANK="0",  # a worker sees one device
        MASTER_ADDR=member.address,
        MASTER_PORT=str(member.port),
    )
    if accelerator == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(threads)
    with quick_imports():
        import deepspeed
        from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        # DeepSpeed 0.19.8 still uses the names that torch 2.13 deprecates.
        warnings.filterwarnings(
            "ignore", rf"`torch\.distributed\.{name}` is deprecated", FutureWarning, r"torch\.distributed\.c10d_logger"
        )
    if accelerator == "cpu":
        # Its shared-memory all-reduce takes minutes to compile on first use; gloo does not need it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if accelerator == "cpu" else "nccl"
    timeout = timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        store = rendezvous_store(
            member.address, member.port, world=member.world, is_master=member.rank == 0, timeout_s=timeout_s
        )
        dist.init_process_group(
            backend,
            store=store,
            rank=member.rank,
            world_size=member.world,
            timeout=timeout,
            # As DeepSpeed does where it makes the group itself.
            device_id=torch.device("cuda:0") if backend == "nccl" and member.world > 1 else None,
        )
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    return "cpu" if accelerator == "cpu" else "cuda:0"
