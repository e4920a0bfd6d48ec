import pytest

from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import GPUS, ClusterShape
from ray_rl.planner.sharing import phases_of
from ray_rl.sizes import GIB
from tests.unit.planner.conftest import REWARD

N = 7_615_616_512
CHECKPOINTING = {"gradient_checkpointing": True}
ALL = {"colocate": [["actor", "critic", "reference", "reward", "rollout"]]}


@pytest.fixture
def shared(make):
    """The assessment of 7B with everything on eight GPUs, under changes."""

    def of(*, gpu="h100-80gb", gpus=8, rollout=None, **sections):
        settings = {
            "algorithm": {"kind": "ppo", "prompts_per_step": 64, "update_epochs": 1},
            "train": {"workers": gpus, "zero_stage": 3, **CHECKPOINTING},
            "critic": {"workers": gpus, "zero_stage": 3, **CHECKPOINTING},
            "reference": {"workers": gpus, "zero_stage": 3},
            "rewards": [{"kind": "model", "paths": [REWARD], "workers": gpus}],
            "rollout": {"engines": gpus, "max_tokens": 1536, "gpu_memory_fraction": 0.6} | (rollout or {}),
            "cluster": ALL | {"address": "auto"},
        }
        return assess(make(**settings | sections), ClusterShape(1, gpus, GPUS[gpu]))

    return of


def phases(assessment):
    (group,) = assessment.layout.groups
    return phases_of(group.roles, assessment.memories)


def test_trained_and_frozen_roles_leave_the_gpu_while_engines_sample(shared):
    assessment = shared()
    sample, _, _ = phases(assessment)
    assert [list(sample.terms[role]) for role in ("actor", "critic", "reference")] == [["context"]] * 3
    assert set(sample.terms["reward"]) == {"context", "weights", "activations"}
    assert sample.of("rollout") == pytest.approx(0.6 * GPUS["h100-80gb"].memory_bytes, rel=0.01)
    held = assessment.memories["actor"].held
    assert assessment.memories["actor"].parked == held["weights"] + held["gradients"] + held["optimizer"]
    assert assessment.memories["reward"].parked == 0


def test_engines_sleep_without_weights_while_models_are_trained(shared):
    _, train, _ = phases(shared())
    assert set(train.terms["rollout"]) == {"context", "graphs"}
    assert set(train.terms["reward"]) == {"context", "weights"}
    assert {"weights", "gradients", "optimizer", "activations", "logits"} <= set(train.terms["actor"])
    assert {"weights", "activations", "gathered"} <= set(train.terms["reference"])


def test_a_publish_finds_the_weights_of_actor_and_engines_alone(shared):
    _, _, publish = phases(shared(rollout={"enforce_eager": True}))
    assert {role: set(terms) for role, terms in publish.terms.items()} == {
        "actor": {"context", "weights", "sync"},
        "critic": {"context"},
        "reference": {"context"},
        "reward": {"context", "weights"},
        "rollout": {"context", "weights", "sync"},
    }


@pytest.mark.parametrize("how", ["separate", "merged"])
def test_a_publish_of_adapters_alone_finds_the_weights_of_the_engines_alone(make, how):
    config = make(
        model={"path": "Qwen/Qwen2.5-7B-Instruct", "dtype": "bfloat16", "adapter": {"quantise": "nf4"}},
        train={"workers": 1, "zero_stage": 1},
        rollout={"engines": 1, "max_tokens": 1024, "gpu_memory_fraction": 0.84},
        weight_sync={"adapter": how},
        cluster={"address": "auto", "colocate": [["actor", "rollout"]]},
    )
    sample, train, publish = phases(assess(config, ClusterShape(1, 1, GPUS["4090-24gb"])))
    terms, embeddings = publish.terms["actor"], 2 * 152064 * 3584
    lent = {phase.terms["actor"].get("lent") for phase in (sample, train, publish)}
    if how == "separate":
        assert set(terms) == {"context", "lent", "sync"}
        assert terms["sync"] > 2 * embeddings
        assert lent == {embeddings}
    else:
        assert set(terms) == {"context", "weights", "sync"}
        assert terms["sync"] < 2 * embeddings
        assert lent == {None}


def test_engines_that_sleep_lightly_keep_their_weights_on_the_host(shared):
    wide = {"engines": 2, "tensor_parallel": 4}
    light, deep = (shared(rollout=wide | {"sleep_level": level}) for level in (1, 2))
    assert light.memories["rollout"].parked == pytest.approx(2 * N)
    assert deep.memories["rollout"].parked == 0
    assert light.host_bytes - deep.host_bytes == pytest.approx(2 * 2 * N)
    assert light.offloads


def test_the_fullest_phase_decides(shared):
    assert shared().fits
    (problem,) = shared(rollout={"gpu_memory_fraction": 0.9}).problems
    assert problem.roles == ("rollout",)
    assert problem.text.startswith("actor + critic + reference + reward + rollout in phase sample: ")
    (problem,) = shared(critic={"workers": 8, "zero_stage": 1}).problems
    assert "in phase train" in problem.text
    assert problem.roles == ("actor", "critic", "reference", "reward")
    (problem,) = shared(
        gpu="l40s-48gb", gpus=2, rollout={"gpu_memory_fraction": 0.4}, rewards=[{"kind": "number"}]
    ).problems
    assert "phase train" in problem.text


def test_on_cpu_nothing_moves(make):
    config = make(
        model={"path": "smollm2-135m-instruct"},
        cluster={"accelerator": "cpu", "colocate": [["actor", "rollout"]]},
    )
    assessment = assess(config, ClusterShape.of(config))
    separate = assess(
        make(model={"path": "smollm2-135m-instruct"}, cluster={"accelerator": "cpu"}), ClusterShape.of(config)
    )
    assert assessment.fits
    assert assessment.host_bytes == separate.host_bytes


@pytest.mark.parametrize(
    ("model", "gpu", "gpus", "train", "fraction"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "4090-24gb", 1, {"zero_stage": 2, "offload": {"optimizer": True}}, 0.8),
        ("Qwen/Qwen2.5-7B-Instruct", "h100-80gb", 1, {"zero_stage": 2, "offload": {"optimizer": True}}, 0.9),
        ("Qwen/Qwen2.5-7B-Instruct", "h100-80gb", 8, {"zero_stage": 2}, 0.9),
    ],
)
def test_grpo_fits_gpus_that_take_turns(make, model, gpu, gpus, train, fraction):
    config = make(
        model={"path": model, "dtype": "bfloat16"},
        algorithm={"kind": "grpo", "prompts_per_step": 64},
        train={"workers": gpus, **CHECKPOINTING, **train},
        reference={"workers": gpus},
        rollout={"engines": gpus, "max_tokens": 1024, "gpu_memory_fraction": fraction},
        cluster={"address": "auto", "colocate": [["actor", "reference", "rollout"]]},
    )
    assessment = assess(config, ClusterShape(1, gpus, GPUS[gpu]))
    assert assessment.fits
    assert assessment.layout.gpus == gpus
    totals = [phase.total / GIB for phase in phases(assessment)]
    assert max(totals) < 0.95 * GPUS[gpu].memory_bytes / GIB
