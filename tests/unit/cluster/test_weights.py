"""Publishes to engines that die on the way, over scripted actors."""

import asyncio

import pytest

from ray_rl.cluster.engines.policy import Died, Poisoned, Silent
from ray_rl.cluster.engines.sharing import Apart
from ray_rl.cluster.engines.weights import RayWeights
from ray_rl.cluster.roles import RayActor
from ray_rl.errors import EngineError, OutsideError, WeightMismatch, WeightSyncError
from ray_rl.metrics.metric import Total
from tests.benchmarks.virtual_time import run_in_virtual_time
from tests.unit.cluster.engines import config_of, engine_of, process_of, team_of, trainer_of, transfer_of

SENT = [Total("sync/bytes", 4)]
BROKEN = WeightSyncError("connection closed by peer")


class Party:
    """A trainer and its engines in one transfer group."""

    def __init__(self, logs, *, engines=2):
        self.journal, self.told = [], []
        self.config, self.logs = config_of(engines=engines), logs
        self.trainer = trainer_of(self.journal)
        self.actor = RayActor(team_of(self.trainer, logs=logs))
        self.engines = [engine_of(self.process(index)) for index in range(engines)]
        self.weights = RayWeights(
            transfer_of(self.config), self.actor, self.engines, turns=Apart(), tell=self.told.append
        )

    def process(self, index):
        return process_of(index, self.journal, self.logs)

    def worker(self, index):
        return self.engines[index].process.worker

    async def publish(self, version):
        """What it returns, and who was asked what in it."""
        self.journal.clear()
        metrics = await self.weights.publish(version)
        return metrics, list(self.journal)

    def faults(self):
        return [engine.process.fault for engine in self.engines]


@pytest.fixture
def drive(tmp_path):
    def run(script, **options):
        async def main(_clock):
            party = Party(tmp_path, **options)
            await party.weights.join("127.0.0.1", 1)
            await script(party)

        return run_in_virtual_time(main)

    return run


def test_while_all_live_they_stay_in_their_group(drive):
    async def script(party):
        for version in (0, 1):
            metrics, journal = await party.publish(version)
            assert metrics == SENT
            assert not [entry for entry in journal if "join" in entry or "abort" in entry]
        assert party.told == []

    drive(script)


@pytest.mark.parametrize("moment", ["begin_update", "receive_weights", "prove", "commit", "resume"])
def test_an_engine_that_dies_in_a_publish_is_left_out_and_the_other_gets_all_again_in_a_group_without_it(drive, moment):
    async def script(party):
        await party.publish(0)
        party.worker(0).plans[moment] = "die"
        metrics, journal = await party.publish(1)
        assert metrics == SENT
        again = journal[journal.index("rollout-1 abort_update") :]
        assert not [entry for entry in again if entry.startswith("rollout-0")]
        assert again == [
            "rollout-1 abort_update",
            "actor-0 free_address",
            "actor-0 join_transfer",
            "rollout-1 join_transfer",
            "rollout-1 begin_update",
            "actor-0 announce",
            "actor-0 send_weights",
            "rollout-1 receive_weights",
            "rollout-1 prove",
            "rollout-1 commit",
            "rollout-1 resume",
        ]
        dead, alive = party.faults()
        assert isinstance(dead, Died)
        assert alive is None
        assert len(party.told) == 1
        assert party.told[0].startswith("publishing version 1 failed while ")
        assert party.told[0].endswith("; sending again to rollout-1")
        assert not party.actor.is_ahead

    drive(script)


def test_an_engine_that_hangs_in_a_publish_is_lost_when_it_does_not_answer_afterwards_either(drive):
    async def script(party):
        await party.publish(0)
        party.worker(1).plans |= {"receive_weights": "hang", "ping": "hang"}
        metrics, _ = await party.publish(1)
        assert metrics == SENT
        assert party.faults() == [None, Silent(10.0)]

    drive(script)


def test_a_failure_that_killed_no_engine_is_tried_once_more_with_all(drive):
    async def script(party):
        party.trainer.plans["send_weights"] = BROKEN
        metrics, journal = await party.publish(0)
        assert metrics == SENT
        assert party.faults() == [None, None]
        assert [entry for entry in journal if "commit" in entry] == ["rollout-0 commit", "rollout-1 commit"]
        # What the sockets still hold of the first attempt would be taken for the second.
        assert {"actor-0 join_transfer", "rollout-0 join_transfer", "rollout-1 join_transfer"} < set(journal)
        assert party.told == [
            "publishing version 0 failed while sending and receiving: actor-0: connection closed by peer; "
            "sending again to rollout-0, rollout-1"
        ]

    drive(script)


def test_an_engine_that_can_never_be_published_to_is_lost_and_the_others_serve(drive):
    async def script(party):
        worker = party.worker(0)

        class Again(dict):
            def pop(self, method, default=None):
                return self.get(method, default)

        worker.plans = Again(receive_weights=EngineError("no such parameter: w"))
        metrics, _ = await party.publish(0)
        assert metrics == SENT
        poisoned, well = party.faults()
        assert isinstance(poisoned, Poisoned)
        assert "no such parameter" in poisoned.reason
        assert well is None
        assert not party.engines[0].process.fitted.is_set()
        assert party.engines[1].process.fitted.is_set()

    drive(script)


def test_a_trainer_that_cannot_send_ends_the_run_with_its_error(drive):
    async def script(party):
        party.trainer.die()
        with pytest.raises(OutsideError, match="actor-0 died"):
            await party.weights.publish(0)

    drive(script)


def test_with_no_engine_left_a_publish_has_nothing_to_do(drive):
    async def script(party):
        party.worker(0).plans["receive_weights"] = "die"
        metrics, _ = await party.publish(0)
        assert metrics == []
        assert party.told[-1].endswith("; sending again to none, as no engine is left")
        metrics, journal = await party.publish(1)
        assert metrics == []
        assert journal == []

    drive(script, engines=1)


def lose_one(party):
    party.engines[0].process.lose(Died("killed"))
    return party.process(0)


def test_an_engine_that_is_admitted_gets_the_version_that_the_others_serve_who_are_not_disturbed(drive):
    async def script(party):
        await party.publish(3)
        process = lose_one(party)
        party.journal.clear()
        await party.weights.admit(party.engines[0], process)
        assert process.fitted.is_set()
        assert party.engines[0].process is process
        assert not [entry for entry in party.journal if entry.startswith("rollout-1")]
        assert party.journal.count("actor-0 send_weights") == 1
        _, journal = await party.publish(4)
        assert {f"rollout-{i} join_transfer" for i in (0, 1)} < set(journal)

    drive(script)


def test_once_an_update_has_begun_an_engine_gets_its_first_weights_with_the_next_publish(drive):
    async def script(party):
        await party.publish(0)
        await party.actor.go_ahead()
        process = lose_one(party)
        party.journal.clear()
        await party.weights.admit(party.engines[0], process)
        assert not process.fitted.is_set()
        assert party.journal == []
        await party.publish(1)
        assert process.fitted.is_set()

    drive(script)


def test_weights_do_not_change_while_they_are_sent_to_an_engine_that_is_admitted(drive):
    async def script(party):
        await party.publish(0)
        process = lose_one(party)
        process.worker.plans["receive_weights"] = "hang"
        party.journal.clear()
        admitting = asyncio.ensure_future(party.weights.admit(party.engines[0], process))
        await asyncio.sleep(1)
        going_ahead = asyncio.ensure_future(party.actor.go_ahead())
        await asyncio.sleep(1)
        assert "actor-0 send_weights" in party.journal
        assert not party.actor.is_ahead
        await admitting
        await going_ahead
        assert party.actor.is_ahead

    drive(script)


def test_an_engine_that_cannot_be_admitted_is_lost_again(drive):
    async def script(party):
        await party.publish(0)
        process = lose_one(party)
        process.worker.plans["receive_weights"] = EngineError("no such parameter: w")
        await party.weights.admit(party.engines[0], process)
        assert isinstance(process.fault, Poisoned)
        assert not process.fitted.is_set()

    drive(script)


def test_a_mismatch_is_sent_again_once_and_the_second_ends_the_run_with_nobody_serving(drive):
    mismatch = WeightMismatch("the received weights differ from those that were sent: 1 of 1 parameters differ")

    async def script(party):
        party.worker(1).plans["prove"] = mismatch
        metrics, journal = await party.publish(0)
        assert metrics == SENT
        assert party.faults() == [None, None]
        assert journal.count("actor-0 send_weights") == 2
        assert "differ from those that were sent" in party.told[0]

        async def always():
            while True:
                party.worker(1).plans["prove"] = mismatch
                await asyncio.sleep(0)

        repeating = asyncio.ensure_future(always())
        party.journal.clear()
        with pytest.raises(WeightMismatch, match="publishing version 1 failed while verifying the weights"):
            await party.weights.publish(1)
        repeating.cancel()
        assert not [entry for entry in party.journal if "commit" in entry or "resume" in entry]

    drive(script)
