"""A worker's place among the workers of its role."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch


@dataclass(frozen=True, slots=True)
class Member:
    """Rank of a worker, and where the ranks of its role meet."""

    rank: int
    world: int
    address: str
    port: int


def join_process_group(member: Member, *, accelerator: str, threads: int, timeout_s: float) -> str:
    """Meets the other ranks (gloo on CPU, nccl on GPU) and returns this worker's device.

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
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        # DeepSpeed 0.19.8 still calls them by the names that torch 2.13 deprecates.
        warnings.filterwarnings(
            "ignore", rf"`torch\.distributed\.{name}` is deprecated", FutureWarning, r"torch\.distributed\.c10d_logger"
        )
    if accelerator == "cpu":
        # Its shared-memory all-reduce is compiled on first use, for minutes; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if accelerator == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend, timeout=timedelta(seconds=timeout_s), verbose=False)
    return "cpu" if accelerator == "cpu" else "cuda:0"
