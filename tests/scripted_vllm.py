"""Engines of a publish in threads: `WeightReceiver`, our receivers and vLLM's reload by layers are the real ones."""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch
from torch import nn
from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from ray_rl.errors import ClusterError, RayRLError
from ray_rl.rollout.adapter import EngineAdapter
from ray_rl.rollout.receiver import WeightReceiver
from ray_rl.weight_sync.plugin import RECEIVERS
from ray_rl.weight_sync.transports import BACKENDS
from tests.scripted_lora import MOST, SCALE, Worker, make_manager
from tests.transfer_parts import make_module, outcome, use


class ScriptedVllm:
    """vLLM's engine as `WeightReceiver` calls it: workers, the guards of an update, and errors that arrive as text."""

    def __init__(self, name, transport, devices, *, has_adapter=False):
        module, receiver = RECEIVERS[BACKENDS[transport]]
        make = getattr(importlib.import_module(module), receiver)
        self._threads = [
            ThreadPoolExecutor(1, f"{name}/{rank}", initializer=use, initargs=(device,))
            for rank, device in enumerate(devices)
        ]
        self.models = [ServedModel(device) for device in devices]
        self._workers = []
        for rank, (model, device) in enumerate(zip(self.models, devices, strict=True)):
            parallel = SimpleNamespace(rank=rank, world_size=len(devices), data_parallel_index=0)
            whole = SimpleNamespace(
                parallel_config=parallel,
                model_config=SimpleNamespace(dtype=torch.bfloat16),
                lora_config=SimpleNamespace() if has_adapter else None,
            )
            self._workers.append(make(None, whole, torch.device(device), model))
        self.managers = [
            make_manager(rank=rank, world=len(devices), device=device, dtype=torch.bfloat16)
            for rank, device in enumerate(devices)
            if has_adapter
        ]
        """vLLM's managers of adapters, by worker."""
        self.keeps_cache = False
        self.serves = True
        self.version = "none"
        self.reports = None
        self.is_updating = False

    async def init_weight_transfer_engine(self, request):
        await self._on_all(lambda worker: worker.init_transfer_engine(worker.parse_init_info(request.init_info)))

    async def pause_generation(self, *, mode, clear_cache):
        assert (mode, clear_cache) == ("keep", True)
        self.serves = False

    async def resume_generation(self):
        self.serves = True

    async def start_weight_update(self):
        if self.is_updating:
            raise RuntimeError("start_weight_update called while a weight update is already active")
        await self._on_all(lambda worker: worker.start_weight_update())
        self.is_updating = True

    async def update_weights(self, request):
        if not self.is_updating:
            raise RuntimeError("start_weight_update must be called before update_weights")
        try:
            await self._on_all(lambda worker: worker.update_weights(request.update_info))
        except RuntimeError:
            self.is_updating = False
            raise

    async def finish_weight_update(self):
        if not self.is_updating:
            raise RuntimeError("finish_weight_update called without a matching start_weight_update")
        await self._on_all(lambda worker: worker.finish_weight_update())
        self.is_updating = False
        for manager in self.managers:
            Worker(None, manager).reset_lora_state()

    async def collective_rpc(self, method, args=()):
        extended = dict(zip(self._workers, self.managers, strict=True))
        return await self._on_all(lambda worker: getattr(Worker(worker, extended[worker]), method)(*args))

    async def reset_prefix_cache(self):
        return not self.keeps_cache

    async def update_weight_version(self, version):
        self.version = version

    async def get_weight_version(self):
        return self.reports or self.version

    async def _on_all(self, call):
        running = [
            asyncio.wrap_future(thread.submit(outcome, call, worker))
            for thread, worker in zip(self._threads, self._workers, strict=True)
        ]
        answers = await asyncio.gather(*running)
        for error in answers:
            if isinstance(error, BaseException):
                raise RuntimeError(f"Worker failed with error '{error}', please check the stack trace above") from error
        return answers

    def leave(self):
        """All workers leave their transfer group."""
        for worker in self._workers:
            worker.shutdown()

    def close(self):
        self.leave()
        for thread in self._threads:
            thread.shutdown(wait=False)


class ServedModel(nn.Module):
    """What a worker loads into, as vLLM's models do. `before_load` is called with the names of each piece."""

    def __init__(self, device):
        super().__init__()
        for name, module in make_module(torch.bfloat16, device).named_children():
            self.add_module(name, module)
        self.before_load = lambda names: None
        with torch.device(device):
            record_metadata_for_reloading(self)

    def load_weights(self, tensors):
        parameters = dict(self.named_parameters())
        pairs = list(tensors)
        self.before_load([name for name, _ in pairs])
        for name, tensor in pairs:
            loader = getattr(parameters[name], "weight_loader", default_weight_loader)
            loader(parameters[name], tensor)

    def holds(self, values):
        """Whether it has these values in bfloat16, bit for bit, and its head is tied to them still."""
        served = {name: parameter.detach().cpu() for name, parameter in self.named_parameters()}
        is_tied = torch.equal(self.head.weight.cpu(), served["embed.weight"])
        return is_tied and all(torch.equal(served[name], value.to(torch.bfloat16)) for name, value in values.items())


class Engine:
    """An engine as a publish sees it: `WeightReceiver`, whose errors name it as Ray's would."""

    def __init__(self, name, transport, devices, *, has_adapter=False):
        self.name = name
        self.vllm = ScriptedVllm(name, transport, devices, has_adapter=has_adapter)
        adapter = EngineAdapter(most_rank=MOST, scale=SCALE, targets=(), worker="")
        self._receiver = WeightReceiver(self.vllm, adapter=adapter if has_adapter else None)

    def __getattr__(self, call):
        async def named(*args):
            try:
                return await getattr(self._receiver, call)(*args)
            except RayRLError as error:
                raise type(error)(f"{self.name}: {error}") from error
            except RuntimeError as error:
                raise ClusterError(f"{self.name}: {error}") from error

        return named
