"""A trainer and engines that publish weights in threads of one process, without Ray and without a language model.

Senders, receivers, `ParameterStream`, `WeightReceiver`, `publish` and vLLM's layer-by-layer reload are the real ones.
Scripted is what stands around them: the collectives among the trainer's ranks, vLLM's engine process and, without GPUs,
NCCL.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import torch
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.weight_transfer import packed_tensor

from ray_rl.errors import WorkerLost
from ray_rl.training import gather
from ray_rl.training.gather import ParameterStream
from ray_rl.weight_sync.gloo_group import GlooGroup
from ray_rl.weight_sync.messages import Rendezvous, Sent, merged
from ray_rl.weight_sync.publish import publish
from ray_rl.weight_sync.receivers import gloo as gloo_receiver
from ray_rl.weight_sync.senders import ipc as ipc_sender
from ray_rl.weight_sync.senders import shared_memory as shared_memory_sender
from ray_rl.weight_sync.transports import build_sender, engine_init_info
from tests.scripted_lora import ADAPTER, holds
from tests.scripted_vllm import Engine
from tests.transfer_parts import CAPACITY_BYTES, FROZEN, LIMIT_S, SHAPES, make_module, outcome, party, use


class Ranks:
    """In place of torch.distributed for the ranks of one trainer, which are threads."""

    def __init__(self, world):
        self._world = world
        self._own = threading.local()
        self._barrier = threading.Barrier(world)
        self._sent = {}

    def become(self, rank, device):
        self._own.rank = rank
        use(device)

    def get_rank(self):
        return self._own.rank

    def get_world_size(self):
        return self._world

    def get_backend(self):
        return "gloo"

    def barrier(self):
        self._barrier.wait(LIMIT_S)

    def all_gather(self, parts, tensor):
        self._sent[self.get_rank()] = tensor
        self.barrier()
        for rank, part in enumerate(parts):
            part.copy_(self._sent[rank])
        self.barrier()

    def all_gather_object(self, found, value):
        self._sent[self.get_rank()] = value
        self.barrier()
        found[:] = [self._sent[rank] for rank in range(self._world)]
        self.barrier()

    def gather(self, tensor, parts, *, dst):
        assert dst == 0
        self._sent[self.get_rank()] = tensor
        self.barrier()
        for rank, part in enumerate(parts or []):
            part.copy_(self._sent[rank])
        self.barrier()


class Trainer:
    """The ranks of a trainer. Sharded: each has a slice of every parameter, as under ZeRO-3.

    With an adapter that is all that is trained, and has the names that a publish gives it.
    """

    def __init__(self, transport, *, ranks, is_sharded, monkeypatch, device="cpu", adapter=None):
        self._is_sharded = is_sharded
        self.device = device
        self._dist = Ranks(ranks)
        monkeypatch.setattr(gather, "dist", self._dist)
        for sender in (shared_memory_sender, ipc_sender):
            monkeypatch.setattr(sender, "dist", self._dist)
        self._threads = [
            ThreadPoolExecutor(1, f"actor-{rank}", initializer=self._dist.become, initargs=(rank, device))
            for rank in range(ranks)
        ]
        adapter = adapter or {}
        self.shapes = SHAPES | adapter
        self.trained = tuple(adapter or (name for name in SHAPES if name not in FROZEN))
        self._modules = [make_module(torch.float32, device, beside=adapter) for _ in range(ranks)]
        self.dies_at = None
        """The parameter at which rank 0 dies in the next publish."""
        self.values = {}
        self.learn(seed=0, names=self.shapes)
        for module in self._modules:
            for name in self.shapes.keys() - self.trained:
                module.get_parameter(name).requires_grad_(False)
        self.streams = [MortalStream(module, dtype="bfloat16") for module in self._modules]
        self.start(transport)

    def start(self, transport):
        """Senders that have met nobody, as in a trainer that was restarted."""
        self.senders = [build_sender(transport, stream, is_sender=r == 0) for r, stream in enumerate(self.streams)]
        for stream, sender in zip(self.streams, self.senders, strict=True):
            stream.sender, stream.dies_at = sender, None

    def learn(self, *, seed, names=None):
        """New values, in float32, of what is trained."""
        names = self.trained if names is None else names
        generator = torch.Generator().manual_seed(seed)
        self.values |= {name: torch.randn(self.shapes[name], generator=generator) for name in names}
        for rank, module in enumerate(self._modules):
            for name in names:
                self._set(rank, module.get_parameter(name), self.values[name].to(self.device))

    def _set(self, rank, parameter, value):
        if not self._is_sharded:
            parameter.data.copy_(value)
            return
        size = -(-value.numel() // len(self._modules))
        padded = torch.full((size * len(self._modules),), float("nan"), device=value.device)
        padded[: value.numel()] = value.flatten()
        parameter.data = torch.empty(0, device=value.device)
        parameter.ds_id, parameter.ds_shape, parameter.ds_numel = 0, value.shape, value.numel()
        parameter.ds_tensor = padded[rank * size : (rank + 1) * size].clone()

    async def announce(self):
        return (await self._on_all([sender.announce for sender in self.senders]))[0]

    async def join(self, rendezvous):
        await self._on_all([sender.join for sender in self.senders], rendezvous)

    async def send_weights(self):
        self.streams[0].dies_at, self.dies_at = self.dies_at, None
        sent = await self._on_all([sender.send for sender in self.senders])
        return Sent([metric for each in sent for metric in each.metrics], merged(each.digests for each in sent))

    async def idle(self):
        """Returns when no rank is in a call any more."""
        await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, self._calls), return_exceptions=True), LIMIT_S)

    def is_idle(self):
        """Whether no rank is in a call still."""
        return all(call.done() for call in self._calls)

    async def _on_all(self, calls, *args):
        self._calls = [thread.submit(outcome, call, *args) for thread, call in zip(self._threads, calls, strict=True)]
        ended = await asyncio.gather(*map(asyncio.wrap_future, self._calls))
        for error in ended:
            if isinstance(error, Killed):
                raise WorkerLost(f"actor-0 died: {error}")
            if isinstance(error, BaseException):
                raise error
        return ended

    def close(self):
        for sender in self.senders:
            sender.close()
        for thread in self._threads:
            thread.shutdown(wait=False)


class Killed(Exception):
    """The process is gone."""


class MortalStream(ParameterStream):
    """The process dies in a pass that comes to the parameter `dies_at`."""

    dies_at = None
    sender = None

    def groups(self, specs=None, **where):
        for group in super().groups(specs, **where):
            self._die_at([spec.name for spec, _ in group])
            yield group

    def slices(self, specs=None):
        wanted = self.specs if specs is None else specs
        for spec, part in zip(wanted, super().slices(specs), strict=True):
            self._die_at([spec.name])
            yield part

    def _die_at(self, names):
        if self.dies_at in names:
            self.sender.close()
            raise Killed("by the kernel")


class Scene:
    """A trainer, engines and the way between them.

    Args:
        transport: "shared_memory", "gloo" or "nccl".
        ranks: of the trainer.
        is_sharded: whether each rank has slices, as under ZeRO-3.
        devices: of the trainer, and of each worker of each engine.
        has_adapter: whether an adapter is trained instead of the model, and published by itself.
    """

    def __init__(
        self,
        transport,
        *,
        monkeypatch,
        ranks=2,
        is_sharded=True,
        devices=("cpu", ("cpu",), ("cpu", "cpu")),
        has_adapter=False,
    ):
        self.transport = transport
        self.sizes = defaultdict(list)
        """Bytes of the broadcasts in which each took part, in their order, by the name of its thread."""
        self.tampering = Tampering(monkeypatch)
        self._record(monkeypatch)
        for_trainer, *for_engines = devices
        self.trainer = Trainer(
            transport,
            ranks=ranks,
            is_sharded=is_sharded,
            monkeypatch=monkeypatch,
            device=for_trainer,
            adapter=ADAPTER if has_adapter else None,
        )
        self.engines = [
            Engine(f"rollout-{i}", transport, workers, has_adapter=has_adapter) for i, workers in enumerate(for_engines)
        ]

    def _record(self, monkeypatch):
        def recorded(broadcast):
            def call(group, buffer, *args, **keywords):
                self.sizes[party()].append(buffer.numel())
                return broadcast(group, buffer, *args, **keywords)

            return call

        for communicator in (GlooGroup, pynccl.PyNcclCommunicator):
            monkeypatch.setattr(communicator, "broadcast", recorded(communicator.broadcast))

    async def join(self, *, timeout_s=LIMIT_S):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        workers = [len(engine.vllm.models) for engine in self.engines]
        segment = f"ray_rl-test-{uuid.uuid4().hex}"
        rendezvous = Rendezvous("127.0.0.1", port, 1 + sum(workers), CAPACITY_BYTES, timeout_s, segment)
        joining = [
            engine.join_transfer(engine_init_info(self.transport, rendezvous, rank_offset=1 + sum(workers[:i])))
            for i, engine in enumerate(self.engines)
        ]
        await asyncio.wait_for(asyncio.gather(self.trainer.join(rendezvous), *joining), LIMIT_S)

    async def publish(self, version, *, timeout_s=LIMIT_S):
        self.sizes.clear()
        return await publish(self.trainer, self.engines, version=version, timeout_s=timeout_s)

    async def recover(self):
        """What is done about a failed publish: open updates are ended, and all meet again."""
        await asyncio.wait_for(asyncio.gather(*(engine.abort_update() for engine in self.engines)), LIMIT_S)
        await self.join()

    @property
    def models(self):
        return [model for engine in self.engines for model in engine.vllm.models]

    def serving(self):
        """Names of the engines that generate."""
        return [engine.name for engine in self.engines if engine.vllm.serves]

    def require_served(self, version):
        """Every engine serves the trainer's values under this version."""
        assert self.serving() == [engine.name for engine in self.engines]
        assert [engine.vllm.version for engine in self.engines] == [str(version)] * len(self.engines)
        assert self.hold(self.trainer.values)

    def hold(self, values):
        """Whether every worker has these values, and the matrices of an adapter in vLLM's buffers."""
        weights = {name: value for name, value in values.items() if name not in ADAPTER}
        adapter = {name: value.bfloat16() for name, value in values.items() if name in ADAPTER}
        managers = [manager for engine in self.engines for manager in engine.vllm.managers]
        return all(model.holds(weights) for model in self.models) and all(holds(each, adapter) for each in managers)

    def close(self):
        self.trainer.close()
        for engine in self.engines:
            engine.vllm.close()


class Tampering:
    """Changes what one engine finds in the first piece that arrives, once."""

    def __init__(self, monkeypatch):
        self._engine, self._harm = None, None
        for module, name in ((gloo_receiver, "unpack"), (packed_tensor, "unpack_tensor")):
            monkeypatch.setattr(module, name, self._behind(getattr(module, name)))

    def order(self, harm, engine):
        self._harm, self._engine = harm, engine

    def _behind(self, unpack):
        def unpacked(*args):
            pairs = unpack(*args)
            if self._engine is None or not party().startswith(self._engine):
                return pairs
            self._engine = None
            (name, first), *others = pairs
            return [*self._harm(name, first.clone()), *others]

        return unpacked


def flip(name, tensor):
    """One bit."""
    tensor.view(-1).view(torch.uint8)[3] ^= 0x40
    return [(name, tensor)]


def drop(name, tensor):
    """It never comes."""
    return []


def repeat(name, tensor):
    """It comes twice."""
    return [(name, tensor), (name, tensor)]
