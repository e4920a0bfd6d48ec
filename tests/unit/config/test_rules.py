import re
from pathlib import Path

import pytest

from ray_rl.config.rules.check import check, check_run_folder_is_free
from ray_rl.errors import ConfigError

GPU = ("cluster.accelerator=gpu", "cluster.address=auto")


def test_the_smallest_configuration_passes(load):
    check(load(), visible_gpus=0)


def test_all_violations_come_in_one_message(refused):
    lines = refused("algorithm.group_size=1", "weight_sync.backend=nccl").splitlines()
    assert lines[0] == "2 problems in the configuration:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  algorithm.group_size=1", "  weight_sync.backend=nccl"]


class TestModel:
    @pytest.mark.parametrize("path", ["./nope", "/nope/model", "~/nope", "nope", "a/b/c"])
    def test_a_missing_folder_is_named(self, refused, path):
        assert refused(f"model.path={path}") == (
            f"model.path={path}: no such model folder; set model.path to a folder that exists, to a hub name "
            "(owner/name), or to a packaged model (smollm2-135m-instruct)"
        )

    def test_a_misspelt_packaged_model_is_suggested(self, refused):
        assert "did you mean the packaged model smollm2-135m-instruct? Else set model.path" in refused(
            "model.path=SmolLM2-135M-Instuct"
        )

    def test_owner_and_name_are_a_hub_name_unless_the_owner_is_a_folder_here(self, refused, load):
        check(load("model.path=owner/name"), visible_gpus=0)
        Path("models").mkdir()
        assert refused("model.path=models/name").startswith("model.path=models/name: no such model folder; ")

    def test_a_folder_without_config_json_is_no_model(self, refused):
        Path("empty").mkdir(exist_ok=True)
        assert refused("model.path=empty") == (
            "model.path=empty: the folder has no config.json, so it is not a model in Hugging Face format; "
            "set model.path to the folder that has it"
        )

    def test_a_file_is_no_model(self, refused):
        assert refused("model.path=run.yaml") == (
            "model.path=run.yaml: is a file; set model.path to the folder of a model in Hugging Face format"
        )

    def test_the_reference_is_looked_at_only_if_there_is_one(self, refused, load):
        check(load("reference.path=./nope"), visible_gpus=0)
        message = refused("reference.path=./nope", "algorithm.kl.coefficient=0.1")
        assert message.startswith("reference.path=./nope: no such model folder; set reference.path")

    def test_the_critic_and_the_reward_models_are_looked_at(self, refused):
        ppo = ("algorithm={kind: ppo}", "critic={path: ./a}", "rewards=[{kind: model, paths: [owner/name, ./b]}]")
        assert [line.partition(";")[0].strip() for line in refused(*ppo).splitlines()[1:]] == [
            "critic.path=./a: no such model folder",
            "rewards.0.paths.1=./b: no such model folder",
        ]


class TestLengths:
    def test_prompt_and_completion_fit_into_the_context_of_a_packaged_model(self, refused, load):
        check(load("data.max_prompt_tokens=8000", "rollout.max_tokens=192"), visible_gpus=0)
        assert refused("data.max_prompt_tokens=8000", "rollout.max_tokens=193") == (
            "data.max_prompt_tokens=8000 + rollout.max_tokens=193: 8193 tokens do not fit into the context of "
            "smollm2-135m-instruct, 8192 tokens; set rollout.max_tokens to 192 or less or "
            "data.max_prompt_tokens to 7999 or less"
        )

    @pytest.mark.parametrize(
        "config",
        [{"max_position_embeddings": 64}, {"n_positions": 64}, {"text_config": {"max_position_embeddings": 64}}],
    )
    def test_the_context_of_a_folder_is_read_from_its_config(self, refused, write_model, config):
        write_model("model", config)
        message = refused("model.path=model", "data.max_prompt_tokens=100", "rollout.max_tokens=10")
        assert message == (
            "data.max_prompt_tokens=100 + rollout.max_tokens=10: 110 tokens do not fit into the context of model, "
            "64 tokens; set data.max_prompt_tokens to 54 or less"
        )

    def test_an_unknown_context_is_not_judged(self, load, write_model):
        write_model("model", {})
        check(load("model.path=model", "rollout.max_tokens=1000000"), visible_gpus=0)
        check(load("model.path=owner/name", "rollout.max_tokens=1000000"), visible_gpus=0)


class TestDataAndRewards:
    def test_something_judges_the_completions(self, refused, load):
        check(load("rewards=[{kind: model, paths: [owner/name]}]"), visible_gpus=0)
        assert refused("rewards=[]") == (
            "rewards=[]: nothing scores the completions; add a reward function, or a reward model with kind: model"
        )

    def test_a_missing_file_is_named(self, refused, tmp_path):
        assert refused("data={kind: jsonl, path: no.jsonl}") == (
            f"data.path=no.jsonl: no such file ({tmp_path}/no.jsonl); set data.path to a file that exists"
        )

    def test_a_folder_or_a_pattern_stands_for_its_files(self, load, tmp_path):
        check(load(f"data={{kind: parquet, path: {tmp_path}}}"), visible_gpus=0)
        check(load("data={kind: csv, path: 'no_such_folder/*.csv'}"), visible_gpus=0)

    def test_rewards_have_names_of_their_own(self, refused, load):
        check(load("rewards=[{kind: number}, {kind: number, name: other}]"), visible_gpus=0)
        assert refused("rewards=[{kind: number}, {kind: length, target: 3}, {kind: number}]") == (
            "rewards.2.name=number: rewards.0 has the same name, and records need different ones; set rewards.2.name "
            "to another name"
        )

    def test_the_reasoning_gym_reward_needs_its_data(self, refused, load):
        check(load("rewards=[{kind: reasoning_gym}]", "data={kind: reasoning_gym, task: chain_sum}"), visible_gpus=0)
        assert refused("rewards=[{kind: reasoning_gym}]") == (
            "rewards.0.kind=reasoning_gym: only prompts of a reasoning_gym task have its verifier, and "
            "data.kind=addition; set data.kind=reasoning_gym or use another reward"
        )

    @pytest.mark.parametrize("path", ["a..b:c", "a.b:1c", "a.1b:c", ".a:b"])
    @pytest.mark.parametrize("key", ["data", "rewards.0", "algorithm.advantage", "algorithm.loss"])
    def test_an_import_path_is_made_of_names(self, load, key, path):
        section = f"{{kind: custom, function: '{path}'}}"
        message = f"{key}.function={path}: must be the path of a module, a colon, and the name of a function"
        with pytest.raises(ConfigError, match=re.escape(message)):
            load(f"rewards=[{section}]" if key == "rewards.0" else f"{key}={section}")

    def test_a_pattern_is_a_regular_expression(self, refused):
        assert refused("rewards=[{kind: regex, pattern: '(a'}]") == (
            "rewards.0.pattern='(a': not a regular expression (missing ), unterminated subpattern at position 0); "
            "correct it"
        )


class TestHardware:
    def test_the_gpus_of_all_roles_fit_into_the_cluster(self, refused, load):
        shape = ("train.workers=2", "rollout.engines=2", "rollout.tensor_parallel=3", *GPU)
        check(load(*shape), visible_gpus=0)
        assert refused(*shape, "reference.workers=2", "algorithm.kl.coefficient=0.1") == (
            "cluster.nodes=1 * cluster.gpus_per_node=8: the cluster has 8 GPUs, but 10 GPUs are needed: actor 2 "
            "(train.workers) + reference 2 (reference.workers) + engines 6 (rollout.engines 2 * "
            "rollout.tensor_parallel 3); raise cluster.nodes to 2 or make the roles smaller"
        )

    def test_a_tensor_parallel_size_divides_the_heads(self, refused, load):
        check(load("rollout.tensor_parallel=3", *GPU), visible_gpus=0)
        assert refused("rollout.tensor_parallel=2", *GPU) == (
            "rollout.tensor_parallel=2: does not divide the heads of smollm2-135m-instruct, 9 for queries and 3 for "
            "keys; set rollout.tensor_parallel to one of 1, 3, 9"
        )

    def test_a_colocated_reference_asks_for_no_gpus_of_its_own(self, load):
        shape = ("train.workers=4", "reference.workers=4", "rollout.engines=4", "algorithm.kl.coefficient=0.1", *GPU)
        check(load(*shape, "cluster.colocate=[[actor, reference]]"), visible_gpus=0)

    def test_an_engine_stays_on_one_node(self, refused):
        assert refused("rollout.tensor_parallel=9", "cluster.nodes=2", *GPU) == (
            "rollout.tensor_parallel=9: an engine never spans nodes, and cluster.gpus_per_node=8; "
            "set rollout.tensor_parallel to 8 or less"
        )

    def test_a_local_cluster_has_the_gpus_of_this_machine(self, refused, load):
        check(load("cluster.accelerator=gpu"), visible_gpus=2)
        assert refused("cluster.accelerator=gpu", visible_gpus=1) == (
            "cluster.accelerator=gpu: this machine has 1 usable GPUs, but 2 GPUs are needed: actor 1 "
            "(train.workers) + engines 1 (rollout.engines 1 * rollout.tensor_parallel 1); "
            "set cluster.accelerator=cpu, or cluster.address to a Ray cluster with enough GPUs"
        )

    def test_nccl_needs_gpus(self, refused):
        assert refused("weight_sync.backend=nccl") == (
            "weight_sync.backend=nccl: NCCL needs GPUs, and cluster.accelerator=cpu; "
            "set weight_sync.backend=auto, or cluster.accelerator=gpu"
        )

    def test_a_role_shares_gpus_in_one_place(self, refused):
        assert refused("cluster.colocate=[[actor, reference], [reference, actor]]").splitlines()[1:] == [
            f"  cluster.colocate.1=['reference', 'actor']: {role} is already in cluster.colocate.0; list {role} once"
            for role in ("reference", "actor")
        ]

    def test_a_role_shares_gpus_with_another(self, refused):
        assert refused("cluster.colocate=[[actor]]") == (
            "cluster.colocate.0=['actor']: an entry needs two roles, which share GPUs; "
            "list two roles, for example [actor, reference], or remove the entry"
        )

    def test_roles_that_share_gpus_have_equally_many_workers(self, refused, load):
        shape = ("cluster.colocate=[[actor, reference]]", "train.workers=2")
        check(load(*shape), visible_gpus=0)
        assert refused(*shape, "algorithm.kl.coefficient=0.1") == (
            "cluster.colocate.0=['actor', 'reference']: worker i of each role shares GPU i, but train.workers=2 and "
            "reference.workers=1; set reference.workers=2"
        )


class TestRunFolder:
    def test_a_new_folder_passes_and_is_not_made(self, load):
        check_run_folder_is_free(load("run.dir=new/runs"))
        assert not Path("new").exists()

    def test_a_run_folder_is_never_overwritten(self, load):
        def message():
            with pytest.raises(ConfigError) as caught:
                check_run_folder_is_free(config)
            return str(caught.value)

        config = load()
        Path("runs/test").mkdir(parents=True)
        refused = "run.name=test: runs/test exists already, and a run folder is never overwritten; "
        assert message() == f"{refused}set run.name to a new name"
        Path("runs/test/config.yaml").touch()
        assert message() == (
            f"{refused}it has no checkpoint, so begin it again with "
            "`ray-rl train runs/test/config.yaml --resume auto`, or set run.name to a new name"
        )
        Path("runs/test/checkpoints/step_000003").mkdir(parents=True)
        assert message() == f"{refused}continue it with `ray-rl resume runs/test`, or set run.name to a new name"

    def test_a_file_in_its_way_is_an_error(self, load):
        config = load("run.dir=run.yaml")
        with pytest.raises(ConfigError) as caught:
            check_run_folder_is_free(config)
        assert str(caught.value) == (
            "run.dir=run.yaml: run.yaml is not a folder that you may write to; set run.dir to such a folder"
        )
