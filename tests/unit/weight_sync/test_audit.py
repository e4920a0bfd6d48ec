"""Audits over scripted engines and a scripted trainer."""

import asyncio

import numpy as np
import pytest

from ray_rl.cluster.engines.sharing import Apart
from ray_rl.errors import EngineLost, WeightMismatch
from ray_rl.metrics.metric import Last, Total
from ray_rl.rollout.request import Sampling
from ray_rl.weight_sync.audit import EMPTY, AuditedWeights, AuditSettings, require_same
from tests.make import completion

LOGPROBS = np.array([-1.0, -2.0, -0.5], np.float32)
SENT = Total("sync/bytes", 4)


class Engine:
    def __init__(self, name, *, loaded="d1", gap=0.0, is_lost=False):
        self.name, self.loaded, self.gap, self.is_lost = name, loaded, gap, is_lost
        self.requests = []

    async def checksums(self):
        if self.is_lost:
            raise EngineLost("gone")
        return [{"a": self.loaded, "b": EMPTY}]

    async def generate(self, request):
        if self.is_lost:
            raise EngineLost("gone")
        self.requests.append(request)
        return [completion([3, 4, 5], finish_reason="length", logprobs=LOGPROBS + np.float32(self.gap))]


class Trainer:
    """Scores every row alike."""

    async def logprobs(self, batch):
        assert batch.rows == 2
        assert batch.prompt_ids[0].tolist() == [1, 2]
        assert batch.tokens_RT.tolist() == [[3, 4, 5]] * 2
        return np.tile(LOGPROBS, (2, 1))


class Weights:
    def __init__(self, mend=lambda: None):
        self.published, self._mend = [], mend

    async def publish(self, version):
        self.published.append(version)
        if len(self.published) > 1:
            self._mend()
        return [SENT]


def audited(engines, *, weights=None, dtype="float32", every=10, staleness=0):
    settings = AuditSettings(every=every, is_synchronous=not staleness, is_float32=dtype == "float32", rows=2)
    weights = weights or Weights()
    sampling = Sampling(max_tokens=512, temperature=0.5, seed=0)
    return weights, AuditedWeights(
        settings, weights, actor=Trainer(), phases=Apart(), engines=lambda: engines, prompt=(1, 2), sampling=sampling
    )


def publish(weights, version=0):
    return asyncio.run(weights.publish(version))


def test_only_every_so_many_versions_are_audited():
    engines = [Engine("rollout-0")]
    _, weights = audited(engines, every=4)
    for version in range(9):
        publish(weights, version)
    assert [request.id for request in engines[0].requests] == ["canary/0", "canary/4", "canary/8"]
    # At the temperature of rollouts, as the trainer's log-probabilities are.
    assert {request.sampling for request in engines[0].requests} == {
        Sampling(max_tokens=16, temperature=0.5, seed=20260101)
    }


def test_the_first_publish_is_compared_with_the_trainer_whatever_else_is_audited():
    engines = [Engine("rollout-0")]
    _, never = audited(engines, every=None, staleness=1)
    assert publish(never, 7) == [SENT, Last("sync/canary_gap_max", 0.0)]
    assert publish(never, 8) == [SENT]
    assert [request.id for request in engines[0].requests] == ["canary/7"]


def test_what_was_seen_is_said():
    _, weights = audited([Engine("rollout-0", gap=1e-3), Engine("rollout-1", gap=-2e-3)])
    sent, proved, gap = publish(weights)
    assert (sent, proved) == (SENT, Last("sync/checksums_proved", 0.5))  # the other weight is in a kernel only
    assert gap.name == "sync/canary_gap_max"
    assert gap.value == pytest.approx(2e-3, rel=1e-3)


@pytest.mark.parametrize("fault", [{"loaded": "d2"}, {"gap": 0.02}], ids=["other-weights", "other-log-probabilities"])
def test_what_does_not_fit_is_published_once_more_and_then_ends_the_run(fault):
    weights, both = audited([Engine("rollout-0"), Engine("rollout-1", **fault)])
    with pytest.raises(WeightMismatch, match="rollout-1"):
        publish(both, 20)
    assert weights.published == [20, 20]


def test_a_second_publish_may_mend_it():
    engine = Engine("rollout-1", loaded="d2")
    weights = Weights(mend=lambda: setattr(engine, "loaded", "d1"))
    _, both = audited([Engine("rollout-0"), engine], weights=weights)
    assert publish(both)[1] == Last("sync/checksums_proved", 0.5)
    assert weights.published == [0, 0]


def test_a_canary_does_not_wait_behind_rollouts_that_are_under_way():
    engines = [Engine("rollout-0"), Engine("rollout-1")]
    _, weights = audited(engines, staleness=1)
    publish(weights)
    assert publish(weights) == [SENT, Last("sync/checksums_proved", 0.5)]
    assert len(engines[0].requests) == 1, "of the first publish, before there are rollouts"
    engines[1].loaded = "d2"
    with pytest.raises(WeightMismatch):
        publish(weights)


def test_a_gap_that_is_not_a_number_does_not_pass():
    _, weights = audited([Engine("rollout-0", gap=np.nan)])
    with pytest.raises(WeightMismatch):
        publish(weights)


def test_in_bfloat16_the_canary_judges_the_first_publish_and_its_rounding_passes():
    engine = Engine("rollout-0", gap=0.3)
    _, weights = audited([engine], dtype="bfloat16")
    assert publish(weights)[2].value == pytest.approx(0.3, rel=1e-3)
    engine.gap = 0.9
    assert publish(weights)[2].value == pytest.approx(0.9, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("every", [10, None])
def test_an_engine_that_computes_another_model_is_refused_in_the_first_publish_with_both_numbers(dtype, every):
    weights, first = audited([Engine("rollout-0", gap=3.6)], dtype=dtype, every=every)
    with pytest.raises(WeightMismatch, match=r"token 3 has 2.6000 in the engine and -1.0000 in the trainer"):
        publish(first)
    assert weights.published == [0, 0]


def test_an_engine_that_is_lost_meanwhile_is_left_to_others():
    _, weights = audited([Engine("rollout-0", is_lost=True), Engine("rollout-1")])
    assert len(publish(weights)) == 3
    _, none = audited([Engine("rollout-0", is_lost=True)])
    assert publish(none) == [SENT]


def test_engines_are_compared_worker_by_worker():
    with pytest.raises(WeightMismatch, match=r"b and a .*: 1 of 1, the first w \(worker 1\)"):
        require_same({"a": [{"w": "1"}, {"w": "2"}], "b": [{"w": "1"}, {"w": "3"}]})
