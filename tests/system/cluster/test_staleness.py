"""Sampling ahead of training on real Ray, vLLM and DeepSpeed: every token knows its version."""

from dataclasses import replace

import numpy as np
import pytest

from tests.system.cluster.whole_run import whole_run
from tests.tiny_model import write_tiny_model

STEPS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make(connected, make_config, model, tmp_path):
    """A run of the demo's task; `rollout` is added to."""

    def make_run(*, rollout, **sections):
        return make_config(
            run={"name": "ahead", "dir": str(tmp_path), "steps": STEPS},
            model={"path": str(model), "dtype": "float32"},
            data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
            rollout={"max_tokens": 64, "max_sequences": 16, "kv_cache_gib": 0.05, **rollout},
            weight_sync={"bucket_mib": 1, "timeout_s": 60},
            cluster={"accelerator": "cpu", "address": connected.cluster.address},
            **sections,
        )

    return make_run


@pytest.mark.parametrize(
    "rollout",
    [
        pytest.param({"max_staleness": 1}, id="keep"),
        pytest.param({"max_staleness": 2, "order": "completion"}, id="completion", marks=pytest.mark.long),
        pytest.param({"max_staleness": 1, "on_publish": "finish"}, id="finish", marks=pytest.mark.long),
        pytest.param(
            {"max_staleness": 1, "on_publish": "abort_and_resume"}, id="abort_and_resume", marks=pytest.mark.long
        ),
    ],
)
async def test_tokens_sampled_ahead_have_their_version_and_the_trainers_probability(make, model, rollout):
    config = make(
        rollout=rollout,
        rewards=[{"kind": "length", "target": 2}],
        algorithm={"prompts_per_step": 4, "group_size": 4, "correction": {"kind": "truncate_tokens"}},
        train={"learning_rate": 1e-12},  # the weights stay: whatever sampled a token, the trainer finds the same
    )
    records, samples = await whole_run(config, model)
    assert len(records) == STEPS
    ages = [record["rollout/staleness_max"] for record in records]
    assert ages[0] == 0
    assert 1 <= max(ages) <= config.rollout.max_staleness
    assert max(record["rollout/groups_ahead"] for record in records) > 0
    # float32 against float32.
    assert max(record["sync/logprob_gap_max"] for record in records) < 1e-3
    assert [record["policy/correction_mean"] for record in records] == pytest.approx([1.0] * STEPS, abs=1e-3)
    assert [record["sync/effective_fraction"] for record in records] == pytest.approx([1.0] * STEPS, abs=1e-4)
    for sample in samples:
        assert sample["finish_reason"] in ("stop", "length")
        versions = [version for version, _ in sample["versions"]]
        assert versions == sorted(versions)
        assert 0 <= sample["step"] - 1 - versions[0] <= config.rollout.max_staleness
    crossed = [sample for sample in samples if len(sample["versions"]) > 1]
    if config.rollout.on_publish == "finish":
        assert not crossed
    else:
        assert crossed


class Watched:
    """Rollouts of a run, and what the trainer said of them before the update: its log-probabilities."""

    def __init__(self, roles):
        self._rollouts, self._scores = roles.rollouts, roles.scores["old_logprobs_RT"]
        self.groups, self.logprobs = [], []
        self.running, self.position = roles.rollouts.running, roles.rollouts.position

    async def take(self, **keywords):
        groups, metrics = await self._rollouts.take(**keywords)
        self.groups.append(groups)
        return groups, metrics

    async def of(self, batch, groups):
        self.logprobs.append(await self._scores.of(batch, groups))
        return self.logprobs[-1]


async def test_a_request_that_outlives_a_publish_goes_on_under_the_new_weights_alone(make, model):
    config = make(
        rollout={"max_staleness": 1},
        # Longer is better, so that some outlive a publish.
        rewards=[{"kind": "length", "target": 2, "weight": -1.0}],
        # Two steps a batch: the driver asks for the trainer's log-probabilities before the update.
        algorithm={"prompts_per_step": 4, "group_size": 4, "minibatches": 2},
        train={"learning_rate": 1e-3},
    )
    seen = []

    def watch(roles):
        seen.append(Watched(roles))
        return replace(roles, rollouts=seen[0], scores={"old_logprobs_RT": seen[0]})

    await whole_run(config, model, watch=watch)
    (watched,) = seen
    after, before = [], []
    for version, (groups, logprobs_RT) in enumerate(zip(watched.groups, watched.logprobs, strict=True)):
        completions = [turn.completion for group in groups for rollout in group.rollouts for turn in rollout.turns]
        for completion, logprobs_T in zip(completions, logprobs_RT, strict=True):
            if len(set(completion.versions.tolist())) > 1:
                gap = np.abs(completion.logprobs - logprobs_T[: len(completion.logprobs)])
                after += gap[completion.versions == version].tolist()
                before += gap[completion.versions < version].tolist()
    # Keys of the old weights, left in the cache, would show in every later token as much as the old weights do.
    assert max(after) < 1e-3
    assert max(before) > 1e-2
