"""Heartbeats, and calls to roles that lose workers, over scripted workers."""

import asyncio
from pathlib import Path

import pytest

from ray_rl.cluster.heartbeats import Heartbeats
from ray_rl.cluster.roles import Team
from ray_rl.cluster.trainers import Trainers
from ray_rl.config import RunConfig
from ray_rl.errors import ClusterError, WorkerLost
from tests.algorithm import algorithm

EVERY_S, LIMIT_S = 0.01, 0.1


def config(**cluster):
    return RunConfig.model_validate(
        {
            "run": {"name": "unit", "steps": 1},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "cluster": {"heartbeat_s": EVERY_S, "heartbeat_timeout_s": LIMIT_S, **cluster},
        }
    )


class Method:
    """A method of a Ray actor that never returns, or returns at once, or raises."""

    def __init__(self, *, hangs=False, raises=None):
        self._hangs, self._raises = hangs, raises

    def remote(self, *args):
        answer = asyncio.get_running_loop().create_future()
        if self._raises is not None:
            answer.set_exception(self._raises)
        elif not self._hangs:
            answer.set_result("done")
        return answer


class Worker:
    def __init__(self, *, hangs=False, raises=None):
        self.heartbeat = Method(hangs=hangs)
        self.update = Method(hangs=raises is None, raises=raises)


def team_of(*workers):
    team = Team("actor", list(workers), Path("logs"), 5.0)
    team.vitals.loaded()
    return team


async def test_the_worker_that_does_not_answer_is_named_and_not_the_peer_that_waits_for_it():
    team = team_of(Worker(), Worker(hangs=True))
    with pytest.raises(
        WorkerLost, match=r"^the update: actor-1 has not answered for 0\.\d s \(cluster\.heartbeat_timeout"
    ):
        async with asyncio.timeout(5), Heartbeats(config(), [team]).watching():
            await team.all([worker.update.remote() for worker in team.handles], "the update")
    assert not team.vitals.is_loaded


async def test_workers_that_answer_may_compute_for_longer_than_the_limit():
    team = team_of(Worker(), Worker())
    async with Heartbeats(config(), [team]).watching():
        await asyncio.sleep(3 * LIMIT_S)
    assert team.vitals.is_loaded
    assert team.vitals.reason is None


async def test_a_role_written_off_while_nobody_called_it_fails_the_next_call_at_once():
    team = team_of(Worker(hangs=True))
    async with asyncio.timeout(5), Heartbeats(config(), [team]).watching():
        await team.vitals.wait_lost()
    with pytest.raises(WorkerLost, match=r"^announcing: actor-0 has not answered"):
        await team.first(team.handles[0].update.remote(), "announcing")


async def test_time_in_which_the_driver_was_stopped_too_is_not_silence_of_the_workers(monkeypatch):
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("ray_rl.cluster.heartbeats._now_s", lambda: float(next(clock)))
    team = team_of(Worker(hangs=True))
    async with Heartbeats(config(heartbeat_timeout_s=10.0), [team]).watching():
        await asyncio.sleep(0.05)
    assert team.vitals.reason is None


async def test_a_worker_that_hangs_is_the_cause_even_if_its_peers_run_into_their_limit_first():
    complaint = ClusterError("the update: actor-0 raised RuntimeError: Timed out waiting 60000ms for recv")
    team = team_of(Worker(raises=complaint), Worker(hangs=True))
    team.vitals.unanswered_s = {"actor-1": 61.0}
    with pytest.raises(WorkerLost) as raised:
        await team.first(team.handles[0].update.remote(), "the update")
    assert str(raised.value).splitlines()[0] == (
        "the update: actor-1 has not answered for 61.0 s, and its peers failed."
    )
    team.vitals.unanswered_s = {"actor-1": 2.0}
    with pytest.raises(ClusterError) as raised:
        await team.first(team.handles[0].update.remote(), "the update")
    assert not isinstance(raised.value, WorkerLost)


class Restarted(Trainers):
    """Counts the starts of a role and does nothing else."""

    starts = 0

    async def _start_again(self, roles):
        for role in roles:
            self.starts += 1
            self._teams[role].vitals.loaded()


def calls(*outcomes):
    """A call with a scripted outcome each time."""
    left = iter(outcomes)

    async def call():
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return call


async def test_a_call_to_a_role_without_a_state_is_repeated_on_new_workers():
    said = []
    trainers = Restarted(config(), {"actor": team_of(Worker())}, launch=lambda role, rank: None, tell=said.append)
    lost = WorkerLost("scoring: reward-0 died on 10.0.0.7.")
    assert await trainers.repeating("actor", calls(lost, lost, "scores")) == "scores"
    assert trainers.starts == 2
    assert said[0] == "scoring: reward-0 died on 10.0.0.7. Starting the actor again; restart 1 of 3"
    assert said[2].startswith("actor answers again, ")


async def test_a_role_that_is_lost_too_often_ends_the_run_and_does_not_rewind_it():
    trainers = Restarted(config(max_restarts=1), {"actor": team_of()}, launch=lambda role, rank: None, tell=print)
    lost = WorkerLost("scoring: reward-0 died.")
    with pytest.raises(ClusterError) as raised:
        await trainers.repeating("actor", calls(lost, lost, "scores"))
    assert not isinstance(raised.value, WorkerLost)
    assert str(raised.value) == (
        "scoring: reward-0 died.\nThe actor was started again 1 times before (cluster.max_restarts=1)"
    )


async def test_any_other_error_of_a_role_without_a_state_is_raised_as_it_is():
    trainers = Restarted(config(), {"actor": team_of()}, launch=lambda role, rank: None, tell=print)
    with pytest.raises(ClusterError, match="reward-0 raised OSError"):
        await trainers.repeating("actor", calls(ClusterError("scoring: reward-0 raised OSError")))
    assert trainers.starts == 0
