from itertools import product

import pytest

from ray_rl.errors import ConfigError
from ray_rl.planner.advice import changed, engine_fraction, planned
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import ClusterShape, Gpu
from ray_rl.planner.layouts import layouts
from ray_rl.planner.search import search
from ray_rl.planner.search_report import search_lines
from ray_rl.planner.throughput import ASSUMED, estimate
from ray_rl.sizes import GIB

TWO = ClusterShape(1, 2)
SMALL = {"model": {"path": "Qwen/Qwen2.5-1.5B-Instruct", "dtype": "bfloat16"}}
RUN = SMALL | {"algorithm": {"prompts_per_step": 8}, "rollout": {"max_tokens": 1536, "max_sequences": 64}}
REWARDS = [{"kind": "model", "paths": ["Skywork/Skywork-Reward-V2-Llama-3.1-8B"]}]
REFERENCE = {"kind": "grpo", "prompts_per_step": 64}


def everything(config, cluster):
    """Yields staleness and seconds of every layout with all settings that fit, without any pruning."""
    for layout in layouts(config, cluster):
        base = layout.changes(config)
        if layout.family.takes_turns:
            base["rollout.gpu_memory_fraction"] = min(0.9, engine_fraction(changed(config, base), cluster))
        workers, longest = base["train.workers"], 2048
        most = -(-64 // workers)
        for stage, checkpointing, rows in product((1, 2, 3), (False, True), (1, 8, 16)):
            settings = {
                "train.zero_stage": stage,
                "train.gradient_checkpointing": checkpointing,
                "train.micro_batch_tokens": longest * rows,
            }
            sizes = [longest * rows, 4096] if rows == 1 else [longest * rows]
            for size in sizes if rows <= most else []:
                changes = base | settings | {"train.micro_batch_tokens": size}
                assessment = planned(config, cluster, changes)
                if assessment is not None and assessment.fits:
                    yield layout.family.staleness, estimate(changed(config, changes), assessment).step_s


def test_on_two_gpus_nothing_is_faster_than_what_is_found(make):
    config = make(**RUN)
    found = search(config, TWO, ASSUMED)
    times = list(everything(config, TWO))
    assert len(times) > 50
    assert found.on_policy[0].times.step_s == pytest.approx(min(s for staleness, s in times if staleness == 0))
    ahead = min(s for staleness, s in times if staleness == 1)
    faster = [one.times.step_s for one in found.stale]
    assert faster == ([pytest.approx(ahead)] if ahead < found.on_policy[0].times.step_s else [])


def test_two_gpus_that_take_turns_are_faster_than_one_for_each_role(make):
    found = search(make(**RUN), TWO, ASSUMED)
    best, *others = found.on_policy
    (apart,) = (one for one in others if "cluster.colocate" not in one.changes)
    assert best.changes["cluster.colocate"] == [["actor", "rollout"]]
    assert (best.config.train.workers, best.config.rollout.engines) == (2, 2)
    assert not best.config.train.gradient_checkpointing
    assert found.given.times.step_s > apart.times.step_s > best.times.step_s
    # Twice the GPUs in each phase give at most twice the speed.
    assert 1 < found.given.times.step_s / best.times.step_s < 2


@pytest.mark.parametrize(
    ("gpus", "sections"),
    [
        (4, {"algorithm": REFERENCE, "train": {"workers": 2, "zero_stage": 3, "gradient_checkpointing": True}}),
        (2, {"algorithm": {"kind": "ppo", "prompts_per_step": 64}, "critic": {}, "rewards": REWARDS}),
        (4, {"algorithm": REFERENCE, "rollout": {"engines": 2, "max_staleness": 1, "max_tokens": 1536}}),
    ],
)
def test_every_layout_that_is_found_fits_and_is_as_fast_as_it_says(make, gpus, sections):
    config, cluster = make(**SMALL, **sections), ClusterShape(1, gpus)
    found = search(config, cluster, ASSUMED)
    assert found.on_policy
    for one in [*found.on_policy, *found.stale]:
        again = planned(config, cluster, one.changes)
        assert again is not None
        assert again.fits
        assert again.layout.gpus <= cluster.gpus
        assert one.fullest_bytes <= 0.95 * cluster.gpu.memory_bytes
        if found.given is not None:
            given = estimate(config, assess(config, cluster), ASSUMED)
            assert found.times(one) == pytest.approx(given.step_s / one.times.step_s)
    for kind in (found.on_policy, found.stale):
        seconds = [one.times.step_s for one in kind]
        assert seconds == sorted(seconds)
        assert len(seconds) <= 5
    assert all(one.config.rollout.max_staleness == 0 for one in found.on_policy)
    assert all(one.config.rollout.max_staleness > 0 for one in found.stale)
    assert all(one.times.step_s < found.on_policy[0].times.step_s for one in found.stale)


def test_a_reference_is_whole_where_there_is_room(make):
    found = search(make(**SMALL, algorithm=REFERENCE), ClusterShape(1, 4), ASSUMED)
    assert found.on_policy[0].config.reference.zero_stage == 0


def test_seven_billion_on_one_gpu_take_turns_with_the_optimizer_on_the_host(make):
    config = make(algorithm={"prompts_per_step": 8})
    found = search(config, ClusterShape(1, 1), ASSUMED)
    assert found.given is None
    (only,) = found.on_policy
    assert only.config.train.offload.optimizer
    assert only.config.cluster.colocate == [["actor", "rollout"]]
    assert found.times(only) is None
    assert found.stale == []


def test_nothing_is_parked_on_a_host_without_room(make):
    config = make(**RUN)
    host = ClusterShape(1, 2, host_bytes=20 * GIB)
    assert [one.config.cluster.colocate for one in search(config, host, ASSUMED).on_policy] == [[]]


def test_the_report_has_words_to_append_and_keeps_staleness_apart(make):
    config = make(algorithm=REFERENCE, **SMALL, rollout={"engines": 4, "max_tokens": 1536})
    lines = list(search_lines(config, ClusterShape(1, 8), ASSUMED))
    assert lines[0].startswith("searching ")
    assert lines[0].endswith(" layouts for 1 x 8 GPUs (h100-80gb, 79.6 GiB each)")
    assert lines[1].startswith("as given: ")
    heads = [index for index, line in enumerate(lines) if line.endswith(":")]
    assert (
        lines[heads[0]] == "the fastest that fit and train on samples of the newest weights (rollout.max_staleness=0):"
    )
    on_policy = lines[heads[0] : heads[1]] if len(heads) > 1 else lines[heads[0] :]
    assert not any("rollout.max_staleness=1" in line for line in on_policy)
    assert "x as fast as given" in lines[heads[0] + 1]
    assert "GiB on the fullest GPU" in lines[heads[0] + 2]
    assert lines[heads[0] + 3].startswith("     ")


def test_the_best_needs_no_change(make):
    sections = RUN | {"rollout": {"max_tokens": 1536, "max_sequences": 64}}
    best = search(make(**sections), TWO, ASSUMED).on_policy[0]
    lines = list(search_lines(best.config, TWO, ASSUMED))
    assert "     as given" in lines
    assert "1.00x as fast as given" in lines[3]


def test_examples_have_no_staleness(make):
    data = {"kind": "jsonl", "path": "x.jsonl", "max_tokens": 2048}
    config = make(**SMALL, algorithm={"kind": "sft", "batch_size": 64}, rewards=[], data=data)
    lines = list(search_lines(config, ClusterShape(1, 4), ASSUMED))
    assert lines[2] == "the fastest that fits:"
    assert "train.workers=4" in " ".join(lines)
    assert not any("staleness" in line for line in lines)


def test_what_cannot_be_searched_is_said(make):
    with pytest.raises(ConfigError, match="needs the speed of the GPU, and only its memory is known"):
        list(search_lines(make(**RUN), ClusterShape(1, 2, Gpu("24 GB GPU", 24 * GIB)), ASSUMED))
    with pytest.raises(ConfigError, match="the run is on CPU"):
        list(search_lines(make(**RUN, cluster={"accelerator": "cpu"}), TWO, ASSUMED))
    seventy = make(model={"path": "meta-llama/Llama-3.3-70B-Instruct", "dtype": "bfloat16"})
    with pytest.raises(ConfigError, match="no layout fits 1 x 2 GPUs"):
        list(search_lines(seventy, TWO, ASSUMED))


def test_a_run_that_does_not_fit_is_said_not_to(make):
    lines = list(search_lines(make(**RUN, train={"workers": 4}), TWO, ASSUMED))
    assert lines[1] == "as given: does not fit"
    assert "as fast as given" not in " ".join(lines)
