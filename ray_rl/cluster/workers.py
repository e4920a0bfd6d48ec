"""Ray actors: shells around plain classes, each in a process of its own. They hold no logic; test what they hold."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ray_rl.cluster.environment import keep_freed_memory, quiet_libraries
from ray_rl.cluster.scratch import SEMAPHORES, name_semaphores
from ray_rl.config import RunConfig
from ray_rl.metrics.metric import Metric
from ray_rl.metrics.modes import open_file
from ray_rl.metrics.output import unbreakable
from ray_rl.types import Completion, Message, TrainBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ray_rl.checkpoint.slice_writer import SliceWriter
    from ray_rl.cluster.processes import Family
    from ray_rl.rollout.engine import Engine, EngineSettings
    from ray_rl.rollout.request import SampleRequest
    from ray_rl.training.process_group import Member
    from ray_rl.training.share import Scores
    from ray_rl.training.zero import ZeroEngine
    from ray_rl.weight_sync.proof import Digests
    from ray_rl.weight_sync.senders.sender import Rendezvous, Sent


@dataclass(frozen=True, slots=True)
class Setting:
    """What every worker is told."""

    config: RunConfig
    folders: tuple[str, ...]
    """Of the role's models: one, but for reward models."""
    logs: str
    """Folder of the log files."""
    threads: int
    """Of the process, on CPU."""
    environment: dict[str, str]
    """Variables to set before anything heavy is imported."""

    @property
    def folder(self) -> str:
        """Of the role's one model."""
        (folder,) = self.folders
        return folder

    def enter(self, name: str) -> None:
        """Makes this process the worker `name`: its variables, and its output in its own log file."""
        os.environ.update(self.environment, OMP_NUM_THREADS=str(self.threads))
        tempfile.tempdir = None  # what Ray asked for before
        if SEMAPHORES in self.environment:
            name_semaphores(self.environment[SEMAPHORES])
        on_cpu = self.environment.get("DS_ACCELERATOR") == "cpu"
        quiet_libraries(on_cpu=on_cpu)
        if on_cpu:
            keep_freed_memory()
        folder = Path(self.logs)
        folder.mkdir(parents=True, exist_ok=True)
        log = open_file(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        # A library that prints onto a full disk must not end the worker.
        sys.stdout, sys.stderr = unbreakable(sys.stdout), unbreakable(sys.stderr)


class Shell:
    """What every worker is: a process with a name and a log file of its own."""

    def __init__(self, setting: Setting, name: str) -> None:
        self._setting = setting
        setting.enter(name)

    def free_address(self) -> tuple[str, int]:
        """Where others can meet this worker: this node's address and a port that is free now."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]


HEARTBEAT = "heartbeat"
"""Concurrency group of Ray, which gives a method a thread of its own."""
answering: Any = ray.remote(concurrency_groups={HEARTBEAT: 1})  # type: ignore[call-overload]
"""Decorator of an actor whose heartbeats are answered while another method runs. Ray's own hints omit the argument."""


class Watched(Shell):
    """A worker that answers while it computes, unless its process hangs."""

    @ray.method(concurrency_group=HEARTBEAT)
    def heartbeat(self) -> None:
        """Returns at once, whatever the worker does in its other thread."""


class Saved:
    """What a checkpoint asks of a worker whose model is under training."""

    _zero: ZeroEngine
    _member: Member
    _writer: SliceWriter

    def save(self, folder: str) -> None:
        """Returns when this rank's state is copied; it is then written beside training: see `is_saved`."""
        path = Path(folder) / f"rank_{self._member.rank}.safetensors"
        self._writer.write(path, self._zero.slices(), self._zero.state())

    def is_saved(self) -> bool:
        """`SliceWriter.is_written`."""
        return self._writer.is_written()

    def load(self, folder: str) -> None:
        """Goes on where the ranks stood that wrote to a folder; a collective."""
        from ray_rl.checkpoint.slices import SliceReader

        reader = SliceReader(Path(folder))
        self._zero.restore(reader.read, reader.states["rank_0"])

    def _keep(self, zero: ZeroEngine, member: Member) -> None:
        from ray_rl.checkpoint.slice_writer import SliceWriter

        self._zero, self._member, self._writer = zero, member, SliceWriter()


@answering
class TrainWorker(Watched, Saved):
    """The `Trainer` of the policy and the sending end of the weight transport."""

    def start(self, member: Member) -> None:
        """Loads the model; a collective of the ranks."""
        from ray_rl.training.build import policy_trainer
        from ray_rl.weight_sync.transports import build_sender, transport_of

        self._trainer = policy_trainer(
            self._setting.config, self._setting.folder, member, threads=self._setting.threads
        )
        transport = transport_of(self._setting.config)
        self._sender = build_sender(transport, self._trainer.stream, is_sender=member.rank == 0)
        self._keep(self._trainer.zero, member)

    def update(self, batch: TrainBatch) -> list[Metric]:
        """`Trainer.update`."""
        return self._trainer.update(batch)

    def logprobs(self, batch: TrainBatch) -> Scores:
        """`Trainer.scores`."""
        return self._trainer.scores(batch)

    def announce(self) -> dict[str, Any]:
        """`Sender.announce`."""
        return self._sender.announce()

    def join_transfer(self, rendezvous: Rendezvous) -> None:
        """`Sender.join`."""
        self._sender.join(rendezvous)

    def send_weights(self) -> Sent:
        """`Sender.send`."""
        return self._sender.send()

    def export(self, folder: str, step: int) -> None:
        """Writes the policy of a step; a collective of the ranks."""
        from ray_rl.checkpoint.hugging_face import export_policy
        from ray_rl.data.chat import ChatTokenizer

        stream = self._trainer.stream
        parameters = ((spec.name, tensor) for group in stream.groups() for spec, tensor in group)
        model, source = self._trainer.model.causal_lm, self._setting.folder
        template = ChatTokenizer.of_run(self._setting.config, source).changed_template
        export_policy(model, parameters, source=source, to=Path(folder), step=step, chat_template=template)


@answering
class CriticWorker(Watched, Saved):
    """The `Trainer` of the critic."""

    def start(self, member: Member) -> None:
        """Loads the model; a collective of the ranks."""
        from ray_rl.training.build import value_trainer

        self._critic = value_trainer(self._setting.config, self._setting.folder, member, threads=self._setting.threads)
        self._keep(self._critic.zero, member)

    def values(self, batch: TrainBatch) -> Scores:
        """`Trainer.scores`."""
        return self._critic.scores(batch)

    def update(self, batch: TrainBatch) -> list[Metric]:
        """`Trainer.update`."""
        return self._critic.update(batch)


@answering
class RewardWorker(Watched):
    """The reward models that are this worker's."""

    def start(self, worker: int) -> None:
        """Loads the models."""
        from ray_rl.rewards.model.held import RewardModels

        setting = self._setting
        self._models = RewardModels(setting.config, setting.folders, worker=worker, threads=setting.threads)

    def scores(self, conversations: Sequence[tuple[Message, ...]]) -> tuple[NDArray[np.float32], list[Metric]]:
        """`RewardModels.scores`."""
        return self._models.scores(conversations)


@answering
class ReferenceWorker(Watched):
    """The `FrozenModel` of the reference."""

    def start(self, member: Member) -> None:
        """Loads the model; a collective of the workers where they share one."""
        from ray_rl.training.build import reference_model

        setting = self._setting
        self._reference = reference_model(setting.config, setting.folder, member, threads=setting.threads)

    def logprobs(self, batch: TrainBatch) -> Scores:
        """`FrozenModel.scores`."""
        return self._reference.scores(batch)


class ReceivingWorker:
    """What a publish asks of an engine's worker."""

    _engine: Engine

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """`WeightReceiver.join_transfer`."""
        await self._engine.receiver.join_transfer(init_info)

    async def begin_update(self) -> None:
        """`WeightReceiver.begin_update`."""
        await self._engine.receiver.begin_update()

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """`WeightReceiver.receive_weights`."""
        await self._engine.receiver.receive_weights(update_info)

    async def prove(self, digests: Digests) -> None:
        """`WeightReceiver.prove`."""
        await self._engine.receiver.prove(digests)

    async def commit(self, version: int) -> int:
        """`WeightReceiver.commit`."""
        return await self._engine.receiver.commit(version)

    async def resume(self) -> None:
        """`WeightReceiver.resume`."""
        await self._engine.receiver.resume()

    async def abort_update(self) -> None:
        """`WeightReceiver.abort_update`."""
        await self._engine.receiver.abort_update()

    async def checksums(self) -> list[dict[str, str]]:
        """`WeightReceiver.checksums`."""
        return await self._engine.receiver.checksums()


class SamplingWorker:
    """What is asked of an engine's worker between publishes."""

    _engine: Engine

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """`Engine.generate`."""
        return await self._engine.generate(request)

    async def hold(self) -> None:
        """`Engine.hold`."""
        await self._engine.hold()

    async def release(self, sequences: int) -> None:
        """`Engine.release`."""
        await self._engine.release(sequences)

    async def drop(self) -> None:
        """`Engine.drop`."""
        await self._engine.drop()

    async def score(self, token_ids: list[int]) -> list[float]:
        """`Engine.score`."""
        return await self._engine.score(token_ids)


def policy_engine(config: RunConfig, folder: str, *, threads: int) -> EngineSettings:
    """Returns the settings of an engine of the policy.

    Args:
        config: the configuration of the run, with `model.dtype` resolved.
        folder: of the policy.
        threads: of a worker on CPU.
    """
    from ray_rl.rollout.engine import EngineSettings
    from ray_rl.weight_sync.transports import transport_of, vllm_backend

    rollout = config.rollout
    return EngineSettings(
        model=folder,
        dtype=config.model.dtype,
        context_tokens=config.data.max_prompt_tokens + rollout.max_tokens,
        on_cpu=config.cluster.accelerator == "cpu",
        tensor_parallel=rollout.tensor_parallel,
        max_sequences=rollout.max_sequences,
        gpu_memory_fraction=rollout.gpu_memory_fraction,
        kv_cache_gib=rollout.kv_cache_gib,
        enforce_eager=rollout.enforce_eager,
        trust_remote_code=config.model.trust_remote_code,
        threads=threads,
        transfer_backend=vllm_backend(transport_of(config)),
        on_publish=rollout.on_publish,
        timeout_s=rollout.timeout_s,
    )


@ray.remote
class EngineWorker(Shell, SamplingWorker, ReceivingWorker):
    """`Engine`, on the event loop of an asynchronous actor."""

    async def start(self) -> None:
        """Loads the model."""
        from ray_rl.rollout.engine import Engine

        self._engine = Engine(policy_engine(self._setting.config, self._setting.folder, threads=self._setting.threads))
        await self._engine.start()

    async def ping(self) -> None:
        """`Engine.ping`."""
        await self._engine.ping()

    async def family(self) -> Family:
        """This process and those that it has started."""
        from ray_rl.cluster.processes import family_of

        return family_of(os.getpid(), node=ray.get_runtime_context().get_node_id())

    async def stop(self) -> None:
        """`Engine.stop`."""
        self._engine.stop()
