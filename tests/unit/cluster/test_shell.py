"""How far a call travels: from what the driver asks to the object in the worker, over an actor in this process."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import ray_rl
from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.roles import RayActor, RayEngine, in_process
from ray_rl.cluster.shell import AsyncShell, Shell, Worker
from ray_rl.errors import ClusterError
from tests.unit.cluster.engines import engine_of, team_of

OURS = str(Path(ray_rl.__file__).parent)
MOST_FRAMES = 6


def names_of(codes):
    """Those of our own package, comprehensions included."""
    return [code.co_qualname for code in codes if code.co_filename.startswith(OURS)]


def stack():
    """The functions of ours that are running now, outermost first."""
    frame, codes = sys._getframe(1), []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return names_of(reversed(codes))


def waiting(task):
    """The coroutines of ours that wait for each other in a task, outermost first."""
    coroutine, codes = task.get_coro(), []
    while asyncio.iscoroutine(coroutine):
        codes.append(coroutine.cr_code)
        coroutine = coroutine.cr_await
    return names_of(codes)


class Held:
    """Stands for a trainer or an engine, and sees which functions of ours called it."""

    def __init__(self):
        self.seen = None

    def update(self, batch):
        self.seen = stack()
        return []

    async def generate(self, request):
        self.seen = stack()
        return [request]


class LocalActor:
    """As Ray's handle, but the shell is in this process; answers wait for `release`."""

    def __init__(self, shell, held):
        self._shell = shell.__new__(shell)
        self._shell._held = held
        self._release = asyncio.Event()
        self.calling = None
        self.run = SimpleNamespace(options=self._options)

    def release(self):
        self._release.set()

    def _options(self, *, name):
        self.title = name
        return SimpleNamespace(remote=self._remote)

    def _remote(self, *args, **kwargs):
        self.calling = stack()
        running = self._shell.run(*args, **kwargs)
        return asyncio.ensure_future(self._answer(running))

    async def _answer(self, running):
        result = await running if asyncio.iscoroutine(running) else running
        await self._release.wait()
        return result


async def frames_of(call, actor, held):
    """The functions of ours that a call runs through on its way, and those that wait for its answer."""
    task = asyncio.ensure_future(call)
    while held.seen is None:
        await asyncio.sleep(0)
    before = waiting(task)
    actor.release()
    await task
    calling = [*(name for name in held.seen if name not in actor.calling)]
    return [*actor.calling, *calling], [*before, *calling]


async def test_an_update_passes_at_most_six_functions_of_ours(monkeypatch):
    held = Held()
    actor = LocalActor(Shell, held)
    monkeypatch.setattr("ray_rl.cluster.roles.Trainer.update", Held.update)
    there, back = await frames_of(RayActor(team_of(Worker("actor-0", actor))).update("batch"), actor, held)
    assert actor.title == "actor-0.update"
    assert back == ["RayActor.update", "Team.all", "answers", "settle", "Shell.run"]
    assert len(back) + 1 <= MOST_FRAMES, "and Trainer.update"
    assert there[-1] == "Shell.run"
    assert len(there) + 1 <= MOST_FRAMES


async def test_a_generation_passes_at_most_six_functions_of_ours(monkeypatch, tmp_path):
    held = Held()
    actor = LocalActor(AsyncShell, held)
    monkeypatch.setattr(RayEngine, "generate", in_process(Held.generate, is_request=True))
    process = EngineProcess(Worker("rollout-0", actor), None, start_timeout_s=60.0, logs=tmp_path)
    there, back = await frames_of(engine_of(process).generate("request"), actor, held)
    assert actor.title == "rollout-0.generate"
    assert back == ["in_process.<locals>.call", "EngineProcess.call", "answers", "settle", "AsyncShell.run"]
    assert len(back) + 1 <= MOST_FRAMES, "and Engine.generate"
    assert there[-1] == "AsyncShell.run"
    assert len(there) + 1 <= MOST_FRAMES


async def test_the_first_answers_for_its_team_and_the_others_are_not_asked():
    class Rank(Worker):
        def submit(self, method, args, kwargs):
            future = asyncio.get_running_loop().create_future()
            future.set_result((self.name, method.__name__, *args))
            return future

    team = team_of(Rank("actor-0", None), Rank("actor-1", None))
    assert await team.all(Held.update) == [("actor-0", "update"), ("actor-1", "update")]
    assert await team.first(Held.update, "batch") == ("actor-0", "update", "batch")


async def test_a_team_that_is_written_off_fails_its_next_call():
    team = team_of(Worker("actor-0", LocalActor(Shell, Held())))
    team.lose("actor-0 has not answered for 60.0 s and is killed.")
    with pytest.raises(ClusterError, match=r"^update: actor-0 has not answered for 60\.0 s and is killed\.$"):
        await team.all(Held.update, "batch")
