import pytest

from ray_rl.planner.advice import Proposal
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.report import TERMS, refusal, report

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
    assert (
        "step: 8 prompts x 8 completions = 64 rollouts of at most 2048 tokens, at most 64 on each of 1 engines" in text
    )
    assert "actor: at most 16 rollouts a worker, in at most 8 micro-batches (2 sequences of full length each)" in text
    alone = "\n".join(lines(train={"workers": 4, "zero_stage": 3, "micro_batch_tokens": 16, **CHECKPOINTING}))
    assert "in at most 16 micro-batches (1 sequence of full length each)" in alone


def test_memory_is_a_table_of_terms_with_what_is_on_the_host(lines):
    found = lines(train={"workers": 4, "zero_stage": 3, "offload": {"optimizer": True}, **CHECKPOINTING})
    header = next(line for line in found if line.startswith("  role")).split()
    actor = next(line for line in found if line.startswith("  actor ")).split()
    assert header[1:3] == ["context", "weights"]
    assert header[-3:] == ["peak", "on", "host"]
    assert actor[-1] == f"{18 * 7_615_616_512 / 4 / 2**30:.2f}"
    text = "\n".join(found)
    assert "sync: 14.19 GiB a publish, to 1 workers of 1 engines" in text
    assert "time, if every completion has full length: rollouts " in text


def test_every_term_has_a_column(make):
    config = make(algorithm={"preset": "ppo"}, train={"zero_stage": 3}, critic={"zero_stage": 3})
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
