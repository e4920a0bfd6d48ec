"""Heartbeats, quarantine and restarts, over scripted actors and in virtual time."""

import asyncio

import pytest

from ray_rl.cluster.engines.health import Health
from ray_rl.cluster.engines.policy import Died
from ray_rl.cluster.engines.sharing import Apart
from ray_rl.cluster.engines.weights import RayWeights
from ray_rl.cluster.roles import RayActor
from ray_rl.errors import ClusterError, EngineError, EngineLost
from ray_rl.rollout.router import Router
from tests.benchmarks.virtual_time import run_in_virtual_time
from tests.unit.cluster.engines import config_of, engine_of, process_of, team_of, trainer_of, transfer_of


class Ward:
    """Engines that serve version 0, and what looks after them."""

    def __init__(self, logs, *, engines=2, max_restarts=3):
        self.journal, self.told, self.logs = [], [], logs
        self.config = config_of(engines=engines, max_restarts=max_restarts)
        self.actor = RayActor(team_of(trainer_of(self.journal), logs=logs))
        self.engines = [engine_of(self._process(i)) for i in range(engines)]
        self.router = Router(engines)
        turns = Apart()
        self.weights = RayWeights(transfer_of(self.config), self.actor, self.engines, turns=turns)
        self.launches = []
        """When an engine was started again, in seconds."""
        self.plans = []
        """Of the actors to come."""
        self.health = Health(
            self.engines,
            rollout=self.config.rollout,
            max_restarts=max_restarts,
            router=self.router,
            weights=self.weights,
            turns=turns,
            launch=self._launch,
            tell=lambda text: self.told.append((self.now_s, text)),
        )

    @property
    def now_s(self):
        return asyncio.get_running_loop().time()

    def _process(self, index):
        return process_of(index, self.journal, self.logs)

    def _launch(self, index):
        self.launches.append(self.now_s)
        process = self._process(index)
        process.worker.plans |= self.plans.pop(0) if self.plans else {}
        return process


@pytest.fixture
def drive(tmp_path):
    def run(script, **options):
        async def main(_clock):
            ward = Ward(tmp_path, **options)
            await ward.weights.publish(0)
            async with ward.health.watching():
                await script(ward)

        run_in_virtual_time(main)

    return run


def test_engines_that_answer_are_left_alone(drive):
    async def script(ward):
        await asyncio.sleep(1000)
        assert ward.told == []
        assert ward.router.quarantined == ()

    drive(script)


def test_an_engine_that_died_is_quarantined_ended_restarted_and_fitted_before_it_serves_again(drive):
    async def script(ward):
        await asyncio.sleep(100.5)
        ward.journal.clear()
        ward.engines[0].process.worker.die()
        await asyncio.sleep(1.1)
        assert ward.router.quarantined == (0,)
        await asyncio.sleep(1.0)
        assert ward.router.quarantined == ()
        assert [entry for entry in ward.journal if "rollout-0" in entry] == [
            "rollout-0 is ended",
            "rollout-0 own_family",
            "rollout-0 hold",
            "rollout-0 own_family",
            "rollout-0 join_transfer",
            "rollout-0 begin_update",
            "rollout-0 receive_weights",
            "rollout-0 prove",
            "rollout-0 commit",
            "rollout-0 resume",
        ]
        assert not [entry for entry in ward.journal if "rollout-1" in entry]
        (_, lost), (_, back) = ward.told
        assert lost.startswith("rollout-0 is lost: ping: rollout-0 died (")
        assert lost.endswith(": restart 1 of 3 in 1 s; 1 other left")
        assert back == "rollout-0 serves again, 1.0 s after it was lost"

    drive(script)


def test_what_an_engine_was_asked_ends_when_it_is_lost_although_its_actor_never_answers(drive):
    async def script(ward):
        ward.engines[1].process.worker.plans["generate"] = "hang"
        asked = asyncio.ensure_future(ward.engines[1].generate(None))
        await asyncio.sleep(50)
        ward.engines[1].process.lose(Died("killed"))
        with pytest.raises(EngineLost, match="generate: rollout-1 killed"):
            await asked

    drive(script)


def test_an_engine_that_does_not_answer_for_too_long_is_ended_and_restarted(drive):
    async def script(ward):
        ward.engines[0].process.worker.plans["ping"] = "hang"
        await asyncio.sleep(10.5)
        assert ward.told == []
        await asyncio.sleep(2)
        assert ward.told[0][1] == (
            "rollout-0 is lost: has not answered for 11.0 s: restart 1 of 3 in 1 s; 1 other left"
        )
        await asyncio.sleep(2)
        assert ward.router.quarantined == ()

    drive(script)


def test_time_in_which_the_driver_was_stopped_too_is_not_silence_of_the_engines(drive):
    async def script(ward):
        ward.engines[0].process.worker.plans["ping"] = "hang"
        for _ in range(3):
            await asyncio.sleep(1.5)
            asyncio.get_running_loop()._jumping.now_s += 1000
        assert ward.told == []
        await asyncio.sleep(10)
        assert ward.told[0][1].startswith("rollout-0 is lost: has not answered for 1")

    drive(script)


def test_an_engine_need_not_answer_while_it_receives_weights(drive):
    async def script(ward):
        process = ward.engines[0].process
        with process.excused():
            process.worker.plans["ping"] = "hang"
            await asyncio.sleep(100)
        await asyncio.sleep(9)
        assert ward.told == []
        await asyncio.sleep(3)
        assert len(ward.told) == 1

    drive(script)


def test_a_restart_that_fails_is_tried_again_later_and_the_time_it_took_counts_from_the_loss(drive):
    async def script(ward):
        ward.plans = [{"hold": EngineError("vLLM could not start: no memory")}, {"hold": "die"}, {}]
        ward.engines[1].process.lose(Died("killed"))
        await asyncio.sleep(0.1)
        await asyncio.sleep(10)
        assert ward.launches == pytest.approx([1.0, 3.0, 7.0], abs=0.1)
        assert [text.rpartition(": ")[2] for _, text in ward.told] == [
            "restart 1 of 3 in 1 s; 1 other left",
            "restart 2 of 3 in 2 s; 1 other left",
            "restart 3 of 3 in 4 s; 1 other left",
            "rollout-1 serves again, 7.0 s after it was lost",
        ]
        assert ward.router.quarantined == ()

    drive(script)


def test_an_engine_that_fails_too_often_is_given_up_and_the_others_go_on(drive):
    async def script(ward):
        ward.plans = [{"hold": "die"}]
        ward.engines[1].process.lose(Died("killed"))
        await asyncio.sleep(100)
        assert ward.router.quarantined == (1,)
        assert ward.told[-1][1].endswith(": abandoned after 1 restarts; 1 left")
        await ward.router.available(timeout_s=0)

    drive(script, max_restarts=1)


def test_when_the_last_is_given_up_whoever_waits_for_an_engine_learns_why(drive):
    async def script(ward):
        for engine in ward.engines:
            engine.process.lose(Died("killed"))
        await asyncio.sleep(1)
        with pytest.raises(ClusterError) as raised:
            await ward.router.available(timeout_s=10)
        assert str(raised.value) == (
            "no engine is left: rollout-1, the last, was lost after 0 restarts (cluster.max_restarts=0): killed"
        )

    drive(script, max_restarts=0)


def test_a_restarted_engine_that_weights_do_not_reach_is_restarted_again(drive):
    async def script(ward):
        ward.plans = [{"receive_weights": EngineError("no such parameter: w")}]
        ward.engines[0].process.lose(Died("killed"))
        await asyncio.sleep(10)
        assert len(ward.launches) == 2
        assert ward.router.quarantined == ()

    drive(script)


def test_an_engine_that_comes_back_during_an_update_serves_after_the_next_publish(drive):
    async def script(ward):
        await ward.actor.go_ahead()
        ward.engines[0].process.lose(Died("killed"))
        await asyncio.sleep(60)
        assert len(ward.launches) == 1
        assert ward.router.quarantined == (0,)
        await ward.weights.publish(1)
        await asyncio.sleep(0.1)
        assert ward.router.quarantined == ()

    drive(script)


def test_one_that_dies_while_it_waits_for_that_publish_is_restarted(drive):
    async def script(ward):
        await ward.actor.go_ahead()
        ward.engines[0].process.lose(Died("killed"))
        await asyncio.sleep(60)
        ward.engines[0].process.worker.die()
        await asyncio.sleep(60)
        assert len(ward.launches) == 2
        await ward.weights.publish(1)
        await asyncio.sleep(0.1)
        assert ward.router.quarantined == ()

    drive(script)


def test_a_defect_of_ours_is_not_lost_with_the_task_that_has_it(drive):
    async def script(ward):
        error = ZeroDivisionError("ours")

        def launch(index):
            raise error

        ward.health._launch = launch
        for engine in ward.engines:
            engine.process.lose(Died("killed"))
        await asyncio.sleep(10)
        with pytest.raises(ZeroDivisionError):
            await ward.router.available(timeout_s=10)

    drive(script)
