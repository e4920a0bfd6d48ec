"""The protocol, over scripted trainers and engines."""

import asyncio

import pytest

from ray_rl.errors import ClusterError, WeightMismatch, WeightSyncError
from ray_rl.metrics.metric import Total
from ray_rl.weight_sync.messages import Sent
from ray_rl.weight_sync.publish import publish

SENT = {"w": {0: "d1"}}


class Party:
    """Writes down what it is asked, fails or hangs where it is told to."""

    def __init__(self, name, journal, *, errors=None, hangs=None, reports=None, takes_s=0.0):
        self.name = name
        self._journal = journal
        self._errors = errors or {}
        self._hangs = hangs
        self._reports = reports
        self._takes_s = takes_s

    async def _enter(self, call):
        await asyncio.sleep(self._takes_s)
        self._journal.append(f"{self.name} {call}")
        if call in self._errors:
            raise self._errors[call]
        if call == self._hangs:
            await asyncio.sleep(3600)

    async def announce(self):
        await self._enter("announces")
        return {"names": ["w"]}

    async def send_weights(self):
        await self._enter("sends")
        return Sent([Total("sync/bytes", 4)], SENT)

    async def begin_update(self):
        await self._enter("pauses")

    async def receive_weights(self, update_info):
        assert update_info == {"names": ["w"]}
        await self._enter("receives")

    async def prove(self, digests):
        assert digests == SENT
        await self._enter("proves")

    async def commit(self, version):
        await self._enter(f"commits {version}")
        return version if self._reports is None else self._reports

    async def resume(self):
        await self._enter("resumes")


@pytest.fixture
def journal():
    return []


@pytest.fixture
def run_publish(journal):
    async def run(*, actor=None, a=None, b=None, timeout_s=30.0):
        origin = Party("actor", journal, **(actor or {}))
        engines = [Party("rollout-0", journal, **(a or {})), Party("rollout-1", journal, **(b or {}))]
        return await publish(origin, engines, version=7, timeout_s=timeout_s)

    return run


def phases(journal):
    """The journal without the order inside of a phase, which is free."""
    merged = []
    for call in (entry.split(maxsplit=1)[1] for entry in journal):
        if not merged or merged[-1] != call:
            merged.append(call)
    return merged


async def test_nobody_receives_before_all_pause_and_nobody_resumes_before_all_have_committed(run_publish, journal):
    assert await run_publish() == [Total("sync/bytes", 4)]
    assert phases(journal) == ["pauses", "announces", "sends", "receives", "proves", "commits 7", "resumes"]
    assert len(journal) == 12


async def test_an_engine_that_reports_another_version_is_named_and_nobody_resumes(run_publish, journal):
    with pytest.raises(WeightSyncError) as raised:
        await run_publish(b={"reports": 6})
    assert str(raised.value) == "after publishing version 7: rollout-1 reports 6; no engine was resumed"
    assert not [entry for entry in journal if entry.endswith("resumes")]


@pytest.mark.parametrize(
    ("call", "doing"), [("pauses", "pausing"), ("receives", "sending and receiving"), ("commits 7", "committing")]
)
async def test_an_engine_that_fails_is_named_with_what_it_was_doing_and_nobody_resumes(
    run_publish, journal, call, doing
):
    with pytest.raises(WeightSyncError) as raised:
        await run_publish(a={"errors": {call: ClusterError("rollout-0 died")}})
    assert str(raised.value) == f"publishing version 7 failed while {doing}: rollout-0 died"
    assert not [entry for entry in journal if entry.endswith("resumes")]


async def test_a_failure_to_send_and_the_engine_that_caused_it_are_both_told(run_publish):
    actor = {"errors": {"sends": WeightSyncError("actor-0: connection closed by peer")}}
    with pytest.raises(WeightSyncError) as raised:
        await run_publish(actor=actor, b={"errors": {"receives": ClusterError("rollout-1 died")}})
    assert str(raised.value) == (
        "publishing version 7 failed while sending and receiving: actor-0: connection closed by peer; rollout-1 died"
    )


@pytest.mark.parametrize(
    ("call", "doing"), [("pauses", "pausing"), ("receives", "sending and receiving"), ("resumes", "resuming")]
)
async def test_an_engine_that_hangs_is_named_when_the_time_is_up(run_publish, call, doing):
    with pytest.raises(WeightSyncError) as raised:
        async with asyncio.timeout(10):
            await run_publish(b={"hangs": call}, timeout_s=0.1)
    assert str(raised.value) == (
        f"publishing version 7 failed while {doing}: rollout-1 did not finish within weight_sync.timeout_s=0.1; "
        "see the logs of the run"
    )


async def test_the_limit_is_that_of_the_whole_publish_not_of_each_phase(run_publish):
    with pytest.raises(WeightSyncError, match="rollout-0 did not finish within"):
        await run_publish(a={"takes_s": 0.4}, timeout_s=1.0)


async def test_a_defect_of_ours_is_raised_as_it_is(run_publish):
    error = KeyError("names")
    with pytest.raises(KeyError) as raised:
        await run_publish(a={"errors": {"receives": error}})
    assert raised.value is error


async def test_an_engine_that_got_something_else_keeps_all_from_serving(run_publish, journal):
    wrong = {"errors": {"proves": WeightMismatch("the received weights differ from those that were sent: ...")}}
    with pytest.raises(
        WeightMismatch, match="version 7 failed while verifying the weights: the received weights differ"
    ):
        await run_publish(b=wrong)
    assert not [call for call in journal if "commits" in call or "resumes" in call]
