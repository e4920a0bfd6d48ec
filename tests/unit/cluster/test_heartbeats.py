"""Heartbeats, and calls to roles that lose workers, over scripted workers."""

import asyncio

import pytest

from ray_rl.cluster.shell import Worker
from ray_rl.cluster.teams import Heartbeats, Trainers
from ray_rl.errors import ClusterError, WorkerLost
from tests.unit.cluster.engines import team_of

EVERY_S, LIMIT_S = 0.01, 0.1


class Beating(Worker):
    """Answers heartbeats or hangs; a call to it raises or never returns."""

    def __init__(self, name, *, hangs=False, raises=None):
        super().__init__(name, None)
        self._hangs, self._raises = hangs, raises

    def heartbeat(self):
        answer = asyncio.get_running_loop().create_future()
        if not self._hangs:
            answer.set_result(None)
        return answer

    def submit(self, method, args, kwargs):
        answer = asyncio.get_running_loop().create_future()
        if self._raises is not None:
            answer.set_exception(self._raises)
        return answer


def update(held):
    """Is sent, and never run."""


async def test_the_worker_that_does_not_answer_is_named_and_not_the_peer_that_waits_for_it():
    team = team_of(Beating("actor-0"), Beating("actor-1", hangs=True))
    with pytest.raises(WorkerLost, match=r"^update: actor-1 has not answered for 0\.\d s \(cluster\.heartbeat_timeout"):
        async with asyncio.timeout(5), Heartbeats([team], every_s=EVERY_S, limit_s=LIMIT_S).watching():
            await team.all(update)
    assert not team.is_loaded


async def test_workers_that_answer_may_compute_for_longer_than_the_limit():
    team = team_of(Beating("actor-0"), Beating("actor-1"))
    async with Heartbeats([team], every_s=EVERY_S, limit_s=LIMIT_S).watching():
        await asyncio.sleep(3 * LIMIT_S)
    assert team.is_loaded
    assert team.loss.reason is None


async def test_a_role_written_off_while_nobody_called_it_fails_the_next_call_at_once():
    team = team_of(Beating("actor-0", hangs=True))
    async with asyncio.timeout(5), Heartbeats([team], every_s=EVERY_S, limit_s=LIMIT_S).watching():
        await team.loss.told.wait()
    with pytest.raises(WorkerLost, match=r"^update: actor-0 has not answered"):
        await team.first(update)


async def test_time_in_which_the_driver_was_stopped_too_is_not_silence_of_the_workers(monkeypatch):
    clock = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("ray_rl.cluster.teams._now_s", lambda: float(next(clock)))
    team = team_of(Beating("actor-0", hangs=True))
    async with Heartbeats([team], every_s=EVERY_S, limit_s=10.0).watching():
        await asyncio.sleep(0.05)
    assert team.loss.reason is None


async def test_a_worker_that_hangs_is_the_cause_even_if_its_peers_run_into_their_limit_first():
    complaint = ClusterError("the update: actor-0 raised RuntimeError: Timed out waiting 60000ms for recv")
    team = team_of(Beating("actor-0", raises=complaint), Beating("actor-1", hangs=True))
    team.unanswered_s = {"actor-1": 61.0}
    with pytest.raises(WorkerLost) as raised:
        await team.first(update)
    assert str(raised.value).splitlines()[0] == ("update: actor-1 has not answered for 61.0 s, and its peers failed.")
    team.unanswered_s = {"actor-1": 2.0}
    with pytest.raises(ClusterError) as raised:
        await team.first(update)
    assert not isinstance(raised.value, WorkerLost)


def trainers_of(*, tell=print, max_restarts=3):
    """Trainers with one team, and the list that grows with every restart of it."""
    team, restarts = team_of(Beating("actor-0")), []

    async def restart():
        restarts.append("actor")
        team.is_loaded = True

    team.restart = restart
    return Trainers({"actor": team}, max_restarts=max_restarts, tell=tell), restarts


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
    trainers, restarts = trainers_of(tell=said.append)
    lost = WorkerLost("scoring: reward-0 died on 10.0.0.7.")
    assert await trainers.repeating("actor", calls(lost, lost, "scores")) == "scores"
    assert len(restarts) == 2
    assert said[0] == "scoring: reward-0 died on 10.0.0.7. Restarting the actor; restart 1 of 3"
    assert said[2].startswith("actor answers again, ")


async def test_a_role_that_is_lost_too_often_ends_the_run_and_does_not_rewind_it():
    trainers, _ = trainers_of(max_restarts=1)
    lost = WorkerLost("scoring: reward-0 died.")
    with pytest.raises(ClusterError) as raised:
        await trainers.repeating("actor", calls(lost, lost, "scores"))
    assert not isinstance(raised.value, WorkerLost)
    assert str(raised.value) == (
        "scoring: reward-0 died.\nThe actor was restarted 1 times before (cluster.max_restarts=1)"
    )


async def test_any_other_error_of_a_role_without_a_state_is_raised_as_it_is():
    trainers, restarts = trainers_of()
    with pytest.raises(ClusterError, match="reward-0 raised OSError"):
        await trainers.repeating("actor", calls(ClusterError("scoring: reward-0 raised OSError")))
    assert restarts == []
