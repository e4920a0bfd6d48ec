"""Engines and models that take turns on the same GPUs, over scripted workers: what is asked in which order."""

import asyncio

import pytest

from ray_rl.cluster.engines.health import Health
from ray_rl.cluster.engines.policy import Died
from ray_rl.cluster.engines.sharing import SharedGpus
from ray_rl.cluster.engines.weights import RayWeights
from ray_rl.cluster.roles import RayActor
from ray_rl.errors import EngineLost, OutsideError, WeightSyncError, WorkerLost
from ray_rl.rollout.router import Router
from tests.benchmarks.virtual_time import run_in_virtual_time
from tests.unit.cluster.engines import Scripted, config_of, engine_of, process_of, team_of, trainer_of, transfer_of


class Machine:
    """Two engines on the GPUs of an actor and a reference, which have started."""

    def __init__(self, logs, *, engines=2, sends_from_host=False):
        self.journal, self.told, self.logs = [], [], logs
        self.config = config_of(engines=engines)
        self.trainer, self.reference = trainer_of(self.journal), Scripted("reference-0", self.journal)
        team = team_of(self.trainer, logs=logs)
        self.engines = [engine_of(process_of(index, self.journal, logs)) for index in range(engines)]
        others = [team_of(self.reference, role="reference", logs=logs)]
        self.gpus = SharedGpus(team, others, self.engines, timeout_s=30.0, sends_from_host=sends_from_host)
        actor = self.actor = RayActor(team)
        self.weights = RayWeights(transfer_of(self.config), actor, self.engines, turns=self.gpus, tell=self.told.append)
        self.router = Router(engines)
        self.launched = []
        self.health = Health(
            self.engines,
            rollout=self.config.rollout,
            max_restarts=3,
            router=self.router,
            weights=self.weights,
            turns=self.gpus,
            launch=self._launch,
            tell=self.told.append,
        )

    def _launch(self, index):
        self.launched.append(process_of(index, self.journal, self.logs))
        return self.launched[-1]

    def worker(self, index):
        return self.engines[index].process.worker

    async def start(self):
        async def load():
            self.journal.append("models load")

        await self.gpus.start([engine.process.start() for engine in self.engines], [load()])
        await self.weights.join("127.0.0.1", 1)

    async def asked(self, doing):
        """What is asked of whom while something is done, in order; moves with their parts."""
        self.journal.clear()
        await doing
        return list(self.journal)


@pytest.fixture
def drive(tmp_path):
    def run(script, **options):
        async def main(_clock):
            machine = Machine(tmp_path, **options)
            await machine.start()
            await script(machine)

        return run_in_virtual_time(main)

    return run


PUBLISH = [
    "actor-0 leave",
    "reference-0 leave",
    "actor-0 come_back",
    "rollout-0 wake_weights",
    "rollout-1 wake_weights",
    "rollout-0 begin_update",
    "rollout-1 begin_update",
    "actor-0 announce",
    "actor-0 send_weights",
    "rollout-0 receive_weights",
    "rollout-1 receive_weights",
    "rollout-0 prove",
    "rollout-1 prove",
    "rollout-0 commit",
    "rollout-1 commit",
    "rollout-0 resume",
    "rollout-1 resume",
    "actor-0 leave",
    "rollout-0 wake",
    "rollout-1 wake",
]
SLEEP = ["rollout-0 sleep", "rollout-1 sleep"]


def without_repeated_sleep(journal):
    """Without the calls to engines that are asleep already, which do nothing."""
    return [entry for entry in journal if not entry.endswith(" sleep")]


def test_engines_start_on_empty_gpus_and_sleep_before_models_load(tmp_path):
    async def main(_clock):
        machine = Machine(tmp_path)
        await machine.start()
        journal = [entry for entry in machine.journal if "own_family" not in entry and "join" not in entry]
        assert journal == ["rollout-0 hold", "rollout-1 hold", *SLEEP, "models load"]

    run_in_virtual_time(main)


def test_a_step_gives_the_gpus_to_models_and_back_with_the_weights(drive):
    async def script(machine):
        assert without_repeated_sleep(await machine.asked(machine.weights.publish(0))) == PUBLISH
        assert await machine.asked(machine.gpus.train()) == [*SLEEP, "actor-0 come_back", "reference-0 come_back"]
        assert await machine.asked(machine.gpus.train()) == []
        assert without_repeated_sleep(await machine.asked(machine.weights.publish(1))) == PUBLISH
        assert await machine.asked(machine.gpus.sample()) == []

    drive(script)


def test_weights_that_are_sent_from_the_host_do_not_come_back_for_a_publish(drive):
    async def script(machine):
        expected = [entry for entry in PUBLISH if entry != "actor-0 come_back"]
        left = []
        machine.trainer._answers["leave"] = lambda *parts: left.append(parts)
        assert without_repeated_sleep(await machine.asked(machine.weights.publish(0))) == expected
        assert left[0] == ("weights", "states")
        assert await machine.asked(machine.gpus.train()) == [*SLEEP, "actor-0 come_back", "reference-0 come_back"]

    drive(script, sends_from_host=True)


def test_engines_that_sample_again_without_an_update_get_the_last_version_again(drive):
    async def script(machine):
        await machine.weights.publish(3)
        await machine.gpus.train()
        assert without_repeated_sleep(await machine.asked(machine.gpus.sample())) == PUBLISH

    drive(script)


def test_the_seconds_in_which_memory_moves_are_a_metric_of_the_publish(drive):
    async def script(machine):
        await machine.weights.publish(0)
        machine.worker(0).plans["sleep"] = 2.0
        machine.trainer.plans["come_back"] = 3.0
        await machine.gpus.train()
        await asyncio.sleep(50)
        machine.worker(1).plans |= {"commit": 20.0, "wake": 1.0}
        metrics = await machine.weights.publish(1)
        assert metrics[-1].name == "sync/turn_s"
        assert metrics[-1].value == pytest.approx(2 + 3 + 1)

    drive(script)


@pytest.mark.parametrize("moment", ["sleep", "wake_weights", "wake", "begin_update", "receive_weights", "commit"])
def test_an_engine_that_fails_in_any_change_is_lost_and_the_other_goes_on(drive, moment):
    async def script(machine):
        await machine.weights.publish(0)
        machine.worker(0).plans[moment] = EngineLost("out of memory")
        await machine.gpus.train()
        await machine.actor.go_ahead()
        await machine.weights.publish(1)
        dead, alive = (engine.process.fault for engine in machine.engines)
        assert isinstance(dead, Died)
        assert "out of memory" in dead.reason
        assert alive is None
        assert "rollout-1 wake" in machine.journal[-2:]

    drive(script)


def test_the_processes_of_an_engine_that_fails_have_ended_before_its_memory_is_used(drive):
    async def script(machine):
        await machine.weights.publish(0)
        machine.worker(0).plans["sleep"] = EngineLost("a kernel failed")
        journal = await machine.asked(machine.gpus.train())
        assert journal.index("rollout-0 is ended") < journal.index("actor-0 come_back")

    drive(script)


def test_a_lost_engine_starts_again_only_while_engines_sample_and_gets_the_version_with_the_others(drive):
    async def script(machine):
        await machine.weights.publish(0)
        async with machine.health.watching():
            await machine.gpus.train()
            machine.worker(0).die()
            await asyncio.sleep(20)
            assert "rollout-0 is ended" in machine.journal
            assert "rollout-0 hold" not in machine.journal[machine.journal.index("rollout-0 is ended") :]
            await machine.actor.go_ahead()
            await machine.weights.publish(1)
            machine.journal.clear()
            await asyncio.sleep(20)
            journal = [entry for entry in machine.journal if "own_family" not in entry]
            assert journal[:2] == ["rollout-0 hold", "rollout-0 sleep"]
            assert journal[2:4] == SLEEP
            assert journal[-2:] == ["rollout-0 wake", "rollout-1 wake"]
            assert journal.index("rollout-0 commit") < journal.index("rollout-0 wake")
            assert machine.told[-1].startswith("rollout-0 serves again")
        await machine.health.stop()

    drive(script)


def test_an_engine_that_started_again_while_models_compute_waits_for_the_next_publish(drive):
    async def script(machine):
        await machine.weights.publish(0)
        await machine.gpus.train()
        process = process_of(0, machine.journal, machine.logs)
        assert await machine.asked(machine.weights.admit(machine.engines[0], process)) == []
        assert not process.fitted.is_set()
        await machine.weights.publish(1)
        assert process.fitted.is_set()

    drive(script)


def test_no_change_of_the_phase_overlaps_with_the_start_of_an_engine(drive):
    async def script(machine):
        await machine.weights.publish(0)
        process = process_of(0, machine.journal, machine.logs)
        process.worker.plans["hold"] = "hang"
        starting = asyncio.ensure_future(machine.gpus.start_again(process))
        await asyncio.sleep(1)
        machine.journal.clear()
        training = asyncio.ensure_future(machine.gpus.train())
        await asyncio.sleep(1)
        assert machine.journal == []
        process.worker.die()
        with pytest.raises(OutsideError):
            await starting
        await training
        assert machine.journal[-2:] == ["actor-0 come_back", "reference-0 come_back"]

    drive(script)


def test_models_that_start_again_find_all_engines_asleep_and_the_session_brings_the_others_back(drive):
    async def script(machine):
        await machine.weights.publish(0)
        assert await machine.asked(machine.gpus.make_room()) == SLEEP
        assert await machine.asked(machine.gpus.train()) == [*SLEEP, "actor-0 come_back", "reference-0 come_back"]

    drive(script)


@pytest.mark.parametrize("moment", ["leave", "come_back", "send_weights"])
def test_a_lost_model_ends_the_change_and_after_its_restart_a_publish_sets_all_right(drive, moment):
    async def script(machine):
        await machine.weights.publish(0)
        await machine.gpus.train()
        machine.trainer.plans[moment] = WorkerLost("actor-0 died")
        with pytest.raises(WorkerLost):
            await machine.weights.publish(1)
        await machine.gpus.make_room()
        await machine.weights.forget()
        await machine.gpus.train()
        await machine.weights.publish(0)
        assert machine.journal[-2:] == ["rollout-0 wake", "rollout-1 wake"]

    drive(script)


def test_a_publish_that_is_repeated_wakes_the_engines_once(drive):
    async def script(machine):
        machine.trainer.plans["send_weights"] = WeightSyncError("no peer")
        for index in range(2):
            machine.worker(index).plans["receive_weights"] = WeightSyncError("no peer")
        journal = await machine.asked(machine.weights.publish(0))
        assert journal.count("rollout-0 begin_update") == 2
        assert journal.count("rollout-0 wake") == 1

    drive(script)


def test_a_publish_that_fails_for_all_engines_wakes_none(drive):
    async def script(machine):
        for index in range(2):
            machine.worker(index)._answers["commit"] = lambda version: version + 1
        with pytest.raises(WeightSyncError, match="reports 1"):
            await machine.weights.publish(0)
        assert not [entry for entry in machine.journal if entry.endswith(" wake")]

    drive(script)
