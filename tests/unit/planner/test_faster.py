import pytest

from ray_rl.planner.advice import changed
from ray_rl.planner.assess import assess
from ray_rl.planner.faster import faster, waits
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.throughput import ASSUMED, estimate
from ray_rl.sizes import GIB

CHECKPOINTING = {"gradient_checkpointing": True}
GRPO = {
    "algorithm": {"kind": "grpo", "prompts_per_step": 128, "minibatches": 2},
    "train": {"workers": 4, "zero_stage": 2, **CHECKPOINTING},
    "rollout": {"engines": 2, "max_tokens": 1536, "score_as_finished": False},
}


@pytest.fixture
def found(make):
    """The changes that make a run on one node faster, each checked by planning it again; and who waits."""

    def of(*, nodes=1, **sections):
        config, cluster = make(**sections), ClusterShape(nodes, 8)
        assessment = assess(config, cluster)
        assert assessment.fits
        times = estimate(config, assessment)
        gains = faster(config, assessment, times, ASSUMED)
        for gain in gains:
            better = changed(config, gain.changes)
            planned = assess(better, cluster)
            assert planned.fits
            assert times.step_s / estimate(better, planned).step_s == pytest.approx(gain.times)
        return [(" ".join(gain.words), gain.times) for gain in gains], waits(assessment, times)

    return of


def test_who_wastes_the_most_gpu_seconds_waits_first(found):
    _, waiting = found(**GRPO, reference={"workers": 2})
    assert [(wait.roles, wait.phase) for wait in waiting] == [
        (("actor",), "rollouts"),
        (("reference",), "update"),
        (("rollout",), "update"),
    ]
    wasted = [wait.gpus * wait.share for wait in waiting]
    assert wasted == sorted(wasted, reverse=True)
    assert str(waiting[2]).startswith("rollout (2 GPUs) waits ")
    assert str(waiting[2]).endswith("% of the step, for the update")
    assert all(0 < wait.share < 1 for wait in waiting)


def test_changes_on_the_same_gpus_are_planned_and_the_best_comes_first(found):
    gains, _ = found(**GRPO, reference={"workers": 2})
    assert len(gains) == 3
    assert [times for _, times in gains] == sorted((times for _, times in gains), reverse=True)
    assert gains[0][0].startswith("'cluster.colocate=[[actor,reference,rollout]]' train.workers=8")
    assert gains[0][1] > 1.3


def test_a_step_ahead_is_proposed_where_both_sides_take_long(found):
    more = {"rollout": GRPO["rollout"] | {"engines": 4}, "train": {"workers": 4, "zero_stage": 2, **CHECKPOINTING}}
    frozen = {"workers": 4, "zero_stage": 3}
    gains, _ = found(**GRPO | more, reference=frozen, cluster={"colocate": [["actor", "reference"]]})
    assert "rollout.max_staleness=1" in dict(gains)


def test_a_reference_alone_is_joined_with_the_actor(found):
    gains, _ = found(**GRPO | {"train": {"workers": 2, "zero_stage": 3, **CHECKPOINTING}}, reference={"workers": 4})
    assert "'cluster.colocate=[[actor,reference]]' train.workers=6 reference.workers=6" in dict(gains)


def test_checkpointing_is_left_out_where_memory_allows(found):
    shared = {"address": "auto", "colocate": [["actor", "rollout"]]}
    settings = {"train": {"workers": 8, "zero_stage": 3, **CHECKPOINTING, "micro_batch_tokens": 2048}}
    gains, waiting = found(
        **settings, algorithm={"prompts_per_step": 256}, rollout={"engines": 8, "max_tokens": 1536}, cluster=shared
    )
    assert "train.gradient_checkpointing=false" in dict(gains)
    assert [wait.roles for wait in waiting] in ([], [("actor", "rollout")])
    assert all("max_staleness" not in words for words, _ in gains)


def test_what_already_samples_ahead_is_not_told_to(found):
    ahead = {"rollout": {"engines": 2, "max_tokens": 1536, "max_staleness": 1}}
    gains, _ = found(**GRPO | ahead, reference={"workers": 2})
    assert "rollout.max_staleness=1" not in dict(gains)


def test_roles_of_a_group_that_takes_turns_wait_only_for_these(found):
    shared = {"address": "auto", "colocate": [["actor", "reference", "rollout"]]}
    settings = {"train": {"workers": 8, "zero_stage": 2, **CHECKPOINTING}, "reference": {"workers": 8}}
    _, waiting = found(**GRPO | settings | {"rollout": {"engines": 8, "max_tokens": 256}}, cluster=shared)
    assert [wait.roles for wait in waiting] == [("actor", "reference", "rollout")]


def test_nothing_is_proposed_where_nothing_helps(found):
    shared = {"address": "auto", "colocate": [["actor", "rollout"]]}
    train = {"workers": 8, "zero_stage": 2, "micro_batch_tokens": 65536, **CHECKPOINTING}
    rollout = {"engines": 8, "max_tokens": 8192}
    gains, _ = found(train=train, rollout=rollout, algorithm={"prompts_per_step": 256}, cluster=shared)
    assert gains == []


def test_gpus_are_not_shared_where_the_host_has_no_room(make):
    config = make(**GRPO, reference={"workers": 2})
    cluster = ClusterShape(1, 8, host_bytes=106 * GIB)
    assessment = assess(config, cluster)
    assert assessment.fits
    gains = faster(config, assessment, estimate(config, assessment), ASSUMED)
    assert gains
    assert not [gain for gain in gains if "cluster.colocate" in gain.changes]
