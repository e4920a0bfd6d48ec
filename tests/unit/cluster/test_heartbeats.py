"""Heartbeats, and calls to roles that lose workers, over scripted workers."""

import asyncio

import pytest
from ray.exceptions import RayTaskError

from ray_rl.cluster.shell import Worker
from ray_rl.cluster.teams import Heartbeats, StatelessTeam, Team, restarted
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


def scoring_team(*outcomes, tell=print, max_restarts=3):
    """A team without a state whose calls end as scripted, and the list that grows with every restart of it."""
    left = iter(outcomes)

    class Scripted(Worker):
        def submit(self, method, args, kwargs):
            answer, outcome = asyncio.get_running_loop().create_future(), next(left)
            if isinstance(outcome, Exception):
                answer.set_exception(RayTaskError("scores", "Traceback ...", outcome).as_instanceof_cause())
            else:
                answer.set_result(outcome)
            return answer

    worker = Scripted("reward-0", None)
    team = team_of(worker, role="reward", kind=StatelessTeam, max_restarts=max_restarts, tell=tell)
    restarts = []

    async def restart():
        restarts.append(team.role)
        team.is_loaded = True

    team.restart = restart
    return team, restarts


def scores(held):
    """Is sent, and never run."""


async def test_a_call_to_a_role_without_a_state_is_repeated_on_new_workers():
    said, lost = [], WorkerLost("died on 10.0.0.7.")
    team, restarts = scoring_team(lost, lost, "found", tell=said.append)
    assert await team.all(scores) == ["found"]
    assert len(restarts) == 2
    assert said[0] == "reward-0: died on 10.0.0.7. Restarting the reward; restart 1 of 3"
    assert said[2].startswith("reward answers again, ")


async def test_a_role_that_is_lost_too_often_ends_the_run_and_does_not_rewind_it():
    lost = WorkerLost("died.")
    team, _ = scoring_team(lost, lost, "found", max_restarts=1)
    with pytest.raises(ClusterError) as raised:
        await team.all(scores)
    assert not isinstance(raised.value, WorkerLost)
    assert str(raised.value) == ("reward-0: died.\nThe reward was restarted 1 times before (cluster.max_restarts=1)")


async def test_any_other_error_of_a_role_without_a_state_is_raised_as_it_is():
    team, restarts = scoring_team(ClusterError("raised OSError"))
    with pytest.raises(ClusterError, match="reward-0: raised OSError"):
        await team.all(scores)
    assert restarts == []


async def test_a_restart_takes_the_roles_with_a_state_and_others_that_lost_a_worker(monkeypatch):
    trained = team_of(Beating("actor-0"))
    well, lost = (
        team_of(Beating(f"{role}-0"), role=role, kind=StatelessTeam, max_restarts=3, tell=print)
        for role in ("reference", "reward")
    )
    again = []

    async def restart(team):
        again.append(team.role)

    async def is_well(team):
        return team is not lost

    monkeypatch.setattr(Team, "restart", restart)
    monkeypatch.setattr(Team, "is_well", is_well)
    assert await restarted([trained, well, lost]) == ["actor", "reward"]
    assert again == ["actor", "reward"]
