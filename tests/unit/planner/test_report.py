import subprocess

import pytest

from ray_rl.errors import ConfigError
from ray_rl.planner.advice import Proposal, propose
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import GPUS, ClusterShape, Gpu
from ray_rl.planner.rates import Rates
from ray_rl.planner.report import TERMS, refusal, report, require_fit, verdict
from ray_rl.planner.throughput import Assumptions, estimate
from ray_rl.sizes import GIB
from tests.unit.planner.conftest import REWARD

CHECKPOINTING = {"gradient_checkpointing": True}


@pytest.fixture
def lines(make):
    def of(*, nodes=1, **sections):
        config = make(**sections)
        return report(config, assess(config, ClusterShape(nodes, 8)))

    return of


def test_the_layout_is_by_node_and_gpu(lines):
    found = lines(
        nodes=2,
        algorithm={"kl": {"coefficient": 0.1}},
        train={"workers": 5, "zero_stage": 3, **CHECKPOINTING},
        reference={"workers": 5, "zero_stage": 3},
        rollout={"engines": 3, "tensor_parallel": 2, "max_tokens": 1536},
        cluster={"colocate": [["actor", "reference"]]},
    )
    assert found[:3] == [
        "layout: 5 actor, 5 reference, 3 rollout: 11 of 2 x 8 GPUs (h100-80gb, 79.6 GiB each)",
        "  node 0: actor+reference 0-4 on GPU 0-4; rollout 0 on GPU 5-6",
        "  node 1: rollout 1-2 on GPU 0-1, 2-3",
    ]


def test_nodes_that_are_missing_are_marked(lines):
    found = lines(train={"workers": 9, "zero_stage": 3, **CHECKPOINTING})
    assert found[2] == "  node 1: actor 8 on GPU 0; rollout 0 on GPU 1   <- there is no such node"
    assert not [line for line in found if line.startswith("time")]


def test_a_step_is_counted_down_to_the_micro_batches(lines):
    text = "\n".join(lines(train={"workers": 4, "zero_stage": 3, "micro_batch_tokens": 4096, **CHECKPOINTING}))
    assert ("step: 8 prompts x 8 completions = 64 rollouts of at most 2048 tokens, at most 64 on the engine\n") in text
    share = "actor: at most 16 rollouts per worker, in at most 8 micro-batches (2 sequences of full length)"
    assert share in text
    alone = "\n".join(lines(train={"workers": 4, "zero_stage": 3, "micro_batch_tokens": 16, **CHECKPOINTING}))
    assert "in at most 16 micro-batches (1 sequence of full length)" in alone


def test_memory_is_a_table_of_terms_with_what_is_on_the_host(lines):
    found = lines(train={"workers": 4, "zero_stage": 3, "offload": {"optimizer": True}, **CHECKPOINTING})
    at = found.index("  " + " " * 12 + "actor".rjust(11) + "rollout".rjust(11))
    rows = [line.split() for line in found[at + 1 :]]
    assert [row[0] for row in rows[:2]] == ["context", "weights"]
    (on_host,) = (row for row in rows if row[:2] == ["on", "host"])
    offloaded = 18 * 7_615_616_512
    assert on_host[2:] == [f"{offloaded / 4 / 2**30:.2f}", "-"]
    text = "\n".join(found)
    assert f"  host: {offloaded / 2**30 + 12:.1f} GiB on the node that takes the most" in text
    assert "sync: 14.19 GiB per publish, to 1 worker of 1 engine" in text
    assert "time of a step, if every completion has full length: " in text


def test_the_memory_of_roles_that_take_turns_is_a_table_by_phase(lines):
    found = lines(
        train={"workers": 2, "zero_stage": 3, **CHECKPOINTING},
        rollout={"tensor_parallel": 2, "max_tokens": 1536},
        cluster={"colocate": [["actor", "rollout"]]},
    )
    assert "  node 0: actor+rollout 0-1 on GPU 0-1 (an engine on every 2)" in found
    at = found.index(
        "  memory of a GPU on which roles take turns, GiB".ljust(49)
        + "sample".rjust(11)
        + "train".rjust(11)
        + "publish".rjust(11)
    )
    rows = {tuple(line.split()[:-3]): line.split()[-3:] for line in found[at + 1 : at + 19]}
    assert rows["actor", "optimizer"] == ["-", "42.56", "-"]
    assert rows["rollout", "KV", "cache"][1:] == ["-", "-"]
    assert rows["rollout", "weights"] == ["7.09", "-", "7.09"]
    assert rows["actor", "context"] == ["1.50", "1.50", "1.50"]
    fullest = max(float(value) for value in rows["total",])
    assert f"  a GPU of actor+rollout: {fullest:.1f} of 75.7 GiB that can be used" in found


def test_the_time_is_followed_by_who_waits_and_what_would_be_faster(lines):
    shape = {"train": {"workers": 4, "zero_stage": 2, **CHECKPOINTING}, "reference": None}
    found = lines(**shape, algorithm={"prompts_per_step": 512}, rollout={"engines": 4, "max_tokens": 1536})
    at = next(index for index, line in enumerate(found) if line.startswith("busy: "))
    assert found[at].endswith("% of the GPU seconds")
    assert found[at + 1].startswith("  rollout (4 GPUs) waits ")
    assert found[at + 3] == "faster on the same GPUs (each change alone was planned and fits):"
    assert found[at + 4].endswith("x with")
    assert found[at + 5].startswith("    'cluster.colocate=[[actor,rollout]]' train.workers=8")


def test_a_run_of_which_nothing_is_faster_is_proposed_nothing(lines):
    shared = {"address": "auto", "colocate": [["actor", "rollout"]]}
    train = {"workers": 8, "zero_stage": 2, "micro_batch_tokens": 65536, **CHECKPOINTING}
    rollout = {"engines": 8, "max_tokens": 8192}
    found = lines(train=train, rollout=rollout, algorithm={"prompts_per_step": 256}, cluster=shared)
    assert [line for line in found if line.startswith("busy: ")]
    assert not [line for line in found if line.startswith("faster")]
    assert any("turns on the GPUs" in line for line in found)


def test_a_run_that_samples_ahead_says_which_side_decides(lines):
    shape = {"train": {"workers": 4, "zero_stage": 2, **CHECKPOINTING}, "reference": None}
    for prompts, engines, side in ((512, 4, "training"), (64, 1, "rollouts")):
        ahead = {"engines": engines, "max_tokens": 1536, "max_staleness": 1}
        text = " ".join(lines(**shape, algorithm={"prompts_per_step": prompts}, rollout=ahead))
        assert f"engines sample while models are trained (rollout.max_staleness); the {side}" in text


def test_with_measured_rates_a_run_on_cpu_has_a_time(make):
    config = make(model={"path": "smollm2-135m-instruct"}, cluster={"accelerator": "cpu"})
    rates = Rates(training=1e11, scoring=1e11, decoding=1e11, memory=1e10, link=1e9, network=1e9)
    shown = report(config, assess(config, ClusterShape.of(config)), Assumptions(rates=rates))
    assert [line.split(",")[0] for line in shown if line.startswith("time of a step")] == ["time of a step"]
    assert not [line for line in shown if line.startswith(("busy", "faster"))]


def test_every_term_has_a_column(make):
    config = make(algorithm={"kind": "ppo"}, train={"zero_stage": 3}, critic={"zero_stage": 3})
    assessment = assess(config, ClusterShape(1, 8))
    assert {name for memory in assessment.memories.values() for name in memory.terms()} <= set(TERMS)


def test_on_cpu_there_are_no_gpus_and_no_times(lines):
    found = lines(model={"path": "smollm2-135m-instruct"}, cluster={"accelerator": "cpu"})
    assert found[0] == "layout: 1 actor, 1 rollout, on CPU"
    assert not [line for line in found if "can be used" in line or line.startswith("time")]


def test_a_refusal_names_every_problem_and_what_helps(make):
    assessment = assess(make(train={"workers": 9, "zero_stage": 3, **CHECKPOINTING}), ClusterShape(1, 8))
    assert refusal(assessment, [Proposal({"cluster.nodes": 2}, 2)]).splitlines() == [
        "the run does not fit:",
        "  the roles need 10 GPUs on 2 nodes (actor 9, rollout 1), and there are 8 on 1",
        "each of these changes makes it fit:",
        "  cluster.nodes=2",
    ]
    assert refusal(assessment, []).splitlines()[-1].startswith("set a smaller model.path, ")


def test_only_a_run_that_does_not_fit_is_refused(make):
    config = make(train={"workers": 7, "zero_stage": 3, **CHECKPOINTING})
    require_fit(config, assess(config, ClusterShape(1, 8)))
    config = make(train={"workers": 9, "zero_stage": 3, **CHECKPOINTING})
    with pytest.raises(ConfigError, match="the roles need 10 GPUs on 2 nodes"):
        require_fit(config, assess(config, ClusterShape(1, 8)))


def test_no_line_is_wider_than_99_columns(make):
    config = make(
        model={"path": "Qwen/Qwen2.5-32B"},
        algorithm={"kind": "ppo", "prompts_per_step": 512},
        train={"workers": 24, "zero_stage": 3, **CHECKPOINTING},
        critic={"workers": 24, "zero_stage": 3, **CHECKPOINTING},
        rewards=[{"kind": "model", "paths": [REWARD]}],
        rollout={"engines": 16, "tensor_parallel": 4, "max_tokens": 1536},
    )
    shown = report(config, assess(config, ClusterShape(2, 8)))
    assert max(map(len, shown)) <= 99
    assert any("<- there is no such node" in line for line in shown)


def test_gpus_that_no_role_uses_are_named(lines):
    train = {"workers": 4, "zero_stage": 3, **CHECKPOINTING}
    assert "  idle: 3 of 8 GPUs (GPU 5-7 of node 0); no role uses them" in lines(train=train)
    assert "  idle: 11 of 16 GPUs (GPU 5-7 of node 0, all of node 1); no role uses them" in lines(nodes=2, train=train)
    four = lines(nodes=4, train=train)
    assert "  idle: 27 of 32 GPUs (GPU 5-7 of node 0, all of nodes 1-3); no role uses them" in four
    assert "  idle: 1 of 8 GPUs (GPU 7 of node 0); no role uses them" in lines(train=train | {"workers": 6})
    assert not [line for line in lines(train=train | {"workers": 7}) if "idle" in line]


def test_the_time_of_the_run_is_that_of_its_steps(make):
    config = make(run={"name": "timed", "steps": 1000}, train={"workers": 4, "zero_stage": 3, **CHECKPOINTING})
    assessment = assess(config, ClusterShape(1, 8))
    hours = 1000 * estimate(config, assessment).step_s / 3600
    expected = f"time of the run: {hours:.1f} h for 1,000 steps, to a factor of two (assumptions: docs/planning.md)"
    assert report(config, assessment)[-1] == expected


def test_a_gpu_of_unknown_speed_has_no_time(make):
    config = make(train={"workers": 4, "zero_stage": 3, **CHECKPOINTING})
    shown = report(config, assess(config, ClusterShape(1, 8, Gpu("96 GB GPU", 96 * GIB))))
    assert shown[-1].startswith("time: unknown, because only the GPU's memory is known; ")


def test_the_memory_of_a_node_is_part_of_the_verdict(make):
    config = make(train={"workers": 4, "zero_stage": 3, "offload": {"optimizer": True}, **CHECKPOINTING})
    assert verdict(assess(config, ClusterShape(1, 8))) == (
        "fits, if every node has 140 GiB of memory for it (--host-memory)"
    )
    assert verdict(assess(config, ClusterShape(1, 8, host_bytes=141 * GIB))) == "fits"
    short = assess(config, ClusterShape(1, 8, host_bytes=128 * GIB))
    assert verdict(short) == "does not fit"
    assert refusal(short, []).splitlines()[1:3] == [
        "  memory of the host: node 0 needs 139.7 GiB, 127.7 GiB of it offloaded from GPUs,",
        "      and there are 128.0 GiB",
    ]


def test_on_cpu_the_memory_of_all_workers_is_that_of_the_host(make):
    config = make(model={"path": "smollm2-135m-instruct"}, cluster={"accelerator": "cpu", "nodes": 2})
    need = assess(config, ClusterShape.of(config)).host_bytes
    assert f"  host: {need / GIB:.1f} GiB for all workers" in report(config, assess(config, ClusterShape.of(config)))
    assert assess(config, ClusterShape.of(config, host_memory_gb=0.51 * need / GIB)).fits
    (problem,) = assess(config, ClusterShape.of(config, host_memory_gb=4)).problems
    assert problem.text == (
        f"memory of the host: the workers need {need / GIB:.1f} GiB, and there are 4.0 GiB on each of 2 nodes"
    )


def test_a_proposal_can_be_pasted_behind_the_command(make):
    config = make(train={"workers": 1, "zero_stage": 2, **CHECKPOINTING}, rollout={"max_tokens": 512})
    assessment = assess(config, ClusterShape(1, 2, GPUS["4090-24gb"]))
    lines = refusal(assessment, propose(config, assessment)).splitlines()
    at = lines.index("each of these changes makes it fit:")
    assert lines[at + 1 : at + 3] == [
        "  train.zero_stage=3 train.offload.optimizer=true train.offload.parameters=true",
        "    (if every node has 148 GiB of memory for it: --host-memory)",
    ]
    many = {f"train.deepspeed.a_setting_{number}": number for number in range(6)}
    long = Proposal({"cluster.colocate": [["actor", "reference"]], **many}, 1)
    pasted = refusal(assessment, [long]).splitlines()[at + 1 :]
    assert all(len(line) <= 99 for line in pasted)
    line = "printf '%s\\n' " + "\n".join(pasted)
    words = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert words.stdout.split() == ["cluster.colocate=[[actor,reference]]", *(f"{key}={n}" for key, n in many.items())]
