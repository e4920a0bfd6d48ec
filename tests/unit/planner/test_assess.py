import json

import pytest

from ray_rl.errors import ConfigError
from ray_rl.planner.assess import assess, known_shape, unknown_models
from ray_rl.planner.gpus import GPUS, ClusterShape
from tests.unit.planner.conftest import REWARD, SEVENTY

ONE_NODE = ClusterShape(1, 8)


def test_four_models_and_an_engine_have_each_their_memory(make):
    config = make(
        algorithm={"kind": "ppo"},
        train={"workers": 2, "zero_stage": 3, "gradient_checkpointing": True, "offload": {"optimizer": True}},
        critic={"workers": 2, "zero_stage": 3, "gradient_checkpointing": True, "offload": {"optimizer": True}},
        reference={"path": "Qwen/Qwen2.5-3B"},
        rewards=[{"kind": "model", "paths": [REWARD]}],
    )
    assessment = assess(config, ONE_NODE)
    assert list(assessment.memories) == ["actor", "critic", "reference", "reward", "rollout"]
    assert assessment.memories["reference"].held["weights"] == 2 * 3_085_938_688
    assert assessment.fits


def test_too_few_gpus_are_a_problem_of_no_role(make):
    (problem,) = assess(make(train={"workers": 10, "zero_stage": 3, "gradient_checkpointing": True}), ONE_NODE).problems
    assert problem.roles == ()
    assert problem.text == "the roles need 11 GPUs on 2 nodes (actor 10, rollout 1), and there are 8 on 1"


def test_roles_on_one_gpu_share_its_memory(make):
    train = {"workers": 4, "zero_stage": 2, "micro_batch_tokens": 8192}
    settings = {"algorithm": {"kl": {"coefficient": 0.1}}, "train": train}
    apart = assess(make(**settings, reference={"workers": 3}), ONE_NODE)
    together = assess(
        make(**settings, reference={"workers": 4}, cluster={"colocate": [["actor", "reference"]]}), ONE_NODE
    )
    assert [problem.roles for problem in apart.problems] == [("actor",)]
    assert [problem.roles for problem in together.problems] == [("actor", "reference")]
    peak = sum(together.memories[role].peak for role in ("actor", "reference")) / 2**30
    assert together.problems[0].text.startswith(f"actor + reference: {peak:.1f} GiB on a GPU, and 75.7 of the 79.6 GiB")


def test_an_engine_without_room_for_a_sequence_is_a_problem(make):
    config = make(model={"path": SEVENTY}, train={"workers": 4}, rollout={"max_tokens": 1536})
    texts = [problem.text for problem in assess(config, ONE_NODE).problems if problem.roles == ("rollout",)]
    assert len(texts) == 1
    assert "one sequence of 2048 tokens takes 0.6 GiB (rollout.tensor_parallel=1, " in texts[0]


def test_a_larger_gpu_helps(make):
    config = make(train={"workers": 4, "zero_stage": 2, "micro_batch_tokens": 8192})
    assert not assess(config, ONE_NODE).fits
    assert assess(config, ClusterShape(1, 8, GPUS["h200-141gb"])).fits


def test_on_cpu_there_is_no_limit(make):
    config = make(model={"path": "smollm2-135m-instruct"}, cluster={"accelerator": "cpu"})
    assessment = assess(config, ClusterShape.of(config))
    assert assessment.fits
    assert assessment.layout.gpus == 0


def test_an_unknown_model_asks_for_its_configuration(make):
    with pytest.raises(ConfigError) as raised:
        assess(make(model={"path": "nobody/novel-9b"}), ONE_NODE)
    assert "model.path=nobody/novel-9b: the shape of this model is not known, so" in str(raised.value)
    assert "set model.path to a folder with its config.json" in str(raised.value)


def test_the_shape_of_a_folder_is_that_of_its_configuration(tmp_path):
    settings = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"intermediate_size": 16, "vocab_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert known_shape("model.path", str(tmp_path)).layers == 2


def test_models_of_unknown_shape_are_named_once_by_every_role_that_loads_one(make):
    config = make(
        algorithm={"kind": "ppo"},
        model={"path": "nobody/novel-9b"},
        critic={"path": "nobody/critic-9b"},
        rewards=[{"kind": "model", "paths": [REWARD, "nobody/judge-9b"]}],
    )
    assert unknown_models(config) == ["nobody/novel-9b", "nobody/critic-9b", "nobody/judge-9b"]
    assert unknown_models(make()) == []
