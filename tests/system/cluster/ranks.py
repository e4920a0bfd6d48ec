"""Processes that stay in one process group and run function after function: starting them takes longest."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ray_rl.training.member import Member

START_TIMEOUT_S = 120
TIMEOUT_S = 60


class Ranks:
    """The ranks of a trainer, without Ray."""

    def __init__(self, world: int, *, has_gpus: bool = False) -> None:
        """Starts the processes; each sees one GPU, or none."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.world = world
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(world):
            ours, theirs = spawn.Pipe()
            member = Member(rank, world, "127.0.0.1", port)
            process = spawn.Process(target=_serve, args=(member, theirs, str(rank) if has_gpus else ""), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self._limit_s = START_TIMEOUT_S

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(member, *args) on every rank; results by rank."""
        for pipe in self._pipes:
            pipe.send((function, args))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(self._limit_s), f"rank {rank} has not answered for {self._limit_s} s"
            answers.append(pipe.recv())
        self._limit_s = TIMEOUT_S
        failures = [text for is_failure, text in answers if is_failure]
        assert not failures, "\n".join(failures)
        return [value for _, value in answers]

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(member: Member, pipe: Connection, gpus: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    while True:
        function, args = pipe.recv()
        try:
            answer = (False, function(member, *args))
        except BaseException:
            answer = (True, f"rank {member.rank}: {traceback.format_exc()}")
        pipe.send(answer)
