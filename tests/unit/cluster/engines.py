"""Scripted workers of engines and trainers, with futures set by hand for Ray's references."""

import asyncio
from pathlib import Path

from ray.exceptions import ActorDiedError, RayTaskError

from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.engines.weights import TransferSettings
from ray_rl.cluster.roles import RayEngine
from ray_rl.cluster.shell import Worker
from ray_rl.cluster.teams import Team
from ray_rl.config import RunConfig
from ray_rl.metrics.metric import Total
from ray_rl.weight_sync.messages import Sent
from tests.algorithm import algorithm


def config_of(*, engines=2, max_restarts=3):
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "rollout": {"engines": engines, "heartbeat_s": 1.0, "heartbeat_timeout_s": 10.0, "start_timeout_s": 60},
            "weight_sync": {"timeout_s": 30, "backend": "gloo"},
            "cluster": {"accelerator": "cpu", "max_restarts": max_restarts},
        }
    )


def transfer_of(config):
    return TransferSettings(
        transport="gloo",
        engine_workers=1,
        bucket_bytes=2**20,
        timeout_s=config.weight_sync.timeout_s,
        ping_s=config.rollout.heartbeat_timeout_s,
    )


class Scripted(Worker):
    """Writes down every call, and does what `plans` says: an error, "hang", "die", nothing, or nothing but later."""

    def __init__(self, name, journal, answers=None):
        super().__init__(name, None)
        self._journal = journal
        self._answers = answers or {}
        self.plans = {}
        self._pending = []
        self.is_dead = False

    def hold(self, build):
        return self._called("hold", ())

    def submit(self, method, args, kwargs):
        return self._called(method.__name__, args)

    def kill(self):
        self.die()

    def _called(self, method, arguments):
        future = asyncio.get_running_loop().create_future()
        if method != "ping":
            self._journal.append(f"{self.name} {method}")
        plan = self.plans.pop(method, None)
        if self.is_dead or plan == "die":
            self.die()
            future.set_exception(ActorDiedError())
        elif plan == "hang":
            self.plans[method] = plan
            self._pending.append(future)
        elif isinstance(plan, float):
            asyncio.get_running_loop().call_later(plan, future.set_result, None)
        elif plan is not None:
            future.set_exception(RayTaskError(method, "Traceback ...", plan).as_instanceof_cause())
        else:
            answer = self._answers.get(method)
            future.set_result(answer(*arguments) if callable(answer) else answer)
        return future

    def die(self):
        self.is_dead = True
        for future in self._pending:
            if not future.done():
                future.set_exception(ActorDiedError())


class Process(EngineProcess):
    """Ends without Ray."""

    def __init__(self, worker, **settings):
        super().__init__(worker, build=None, **settings)
        self.worker = worker

    async def end(self):
        self.worker._journal.append(f"{self.name} is ended")
        self.worker.die()
        return []


def process_of(index, journal, logs):
    worker = Scripted(f"rollout-{index}", journal, {"commit": lambda version: version})
    return Process(worker, start_timeout_s=60.0, logs=logs)


def engine_of(process):
    return RayEngine(process, rollout_s=1800.0, publish_s=30.0)


def trainer_of(journal):
    answers = {
        "announce": {"names": ["w"]},
        "send_weights": Sent([Total("sync/bytes", 4)], {"w": {0: "d1"}}),
        "free_address": ("127.0.0.1", 1),
    }
    return Scripted("actor-0", journal, answers)


def team_of(*workers, role="actor", logs=Path("logs"), timeout_s=60.0, kind=Team, **arguments):
    """Scripted workers with a loaded model."""
    launched = iter(workers)
    team = kind(
        role,
        len(workers),
        launch=lambda rank: next(launched),
        build=None,
        logs=logs,
        timeout_s=timeout_s,
        start_timeout_s=timeout_s,
        **arguments,
    )
    team.is_loaded = True
    return team
