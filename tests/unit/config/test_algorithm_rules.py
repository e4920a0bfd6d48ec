"""Each rule: the message with its remedy, and the nearest configuration that passes."""

import pytest

from ray_rl.config.rules.check import check
from ray_rl.config.train import CriticConfig

PPO = ("algorithm={kind: ppo}",)
KL = "algorithm.kl.coefficient=0.1"


class TestBatch:
    @pytest.mark.parametrize("kind", ["group", "leave_one_out", "reinforce_plus_plus_baseline", "gpg"])
    def test_a_group_of_one_is_refused_where_completions_are_compared(self, refused, passes, kind):
        advantage = f"algorithm.advantage={{kind: {kind}}}"
        passes("algorithm.group_size=2", advantage)
        assert refused("algorithm.group_size=1", advantage) == (
            f"algorithm.group_size=1: algorithm.advantage.kind={kind} compares the completions of a prompt with "
            "each other; set algorithm.group_size to 2 or more"
        )

    @pytest.mark.parametrize(
        "overrides",
        [
            ("algorithm.advantage={kind: group, singleton: score}",),
            ("algorithm.advantage={kind: leave_one_out, singleton: score}",),
            ("algorithm.advantage={kind: reinforce_plus_plus}",),
            ("algorithm.advantage={kind: custom, function: 'my_module:advantages'}",),
            PPO,
        ],
    )
    def test_a_group_of_one_is_enough_elsewhere(self, passes, overrides):
        passes("algorithm.group_size=1", *overrides)

    def test_groups_of_one_are_not_sampled_again(self, refused, passes):
        alone = ("algorithm={kind: reinforce_plus_plus}", "algorithm.group_size=1")
        passes(*alone)
        assert refused(*alone, "algorithm.dynamic_sampling={}") == (
            "algorithm.group_size=1: algorithm.dynamic_sampling replaces groups whose rewards are all equal, and one "
            "alone always is; set algorithm.group_size to 2 or more, or algorithm.dynamic_sampling=null"
        )

    def test_a_denominator_needs_the_reduction_that_reads_it(self, refused, passes):
        passes("algorithm.reduction_denominator=100", "algorithm.reduction=constant")
        assert refused("algorithm.reduction_denominator=100", "algorithm.reduction=token_mean") == (
            "algorithm.reduction_denominator=100: algorithm.reduction=token_mean has no denominator of its own; remove "
            "it, or set algorithm.reduction=constant"
        )

    def test_minibatches_divide_the_prompts(self, refused, passes):
        passes("algorithm.minibatches=4", "algorithm.prompts_per_step=8")
        assert refused("algorithm.minibatches=3", "algorithm.prompts_per_step=8") == (
            "algorithm.minibatches=3: does not divide algorithm.prompts_per_step=8; "
            "set algorithm.minibatches to one of 1, 2, 4, 8"
        )

    @pytest.mark.parametrize("key", ["train", "critic"])
    def test_every_worker_has_a_rollout_in_each_minibatch(self, refused, passes, key):
        shape = (*PPO, "algorithm.prompts_per_step=4", "algorithm.group_size=2", "algorithm.minibatches=4")
        passes(*shape, f"{key}.workers=2")
        assert refused(*shape, f"{key}.workers=3") == (
            f"{key}.workers=3: a minibatch holds 2 rollouts (prompts_per_step 4 * group_size 2 / minibatches 4), so "
            f"some workers would have none; set {key}.workers to 2 or less, or raise algorithm.prompts_per_step"
        )


class TestCritic:
    def test_ppo_needs_its_critic(self, refused):
        assert refused(*PPO, "critic=null") == (
            "critic=null: algorithm.kind=ppo estimates advantages with a critic; remove critic: null, or set "
            "algorithm.kind to an algorithm without a critic, such as grpo"
        )

    def test_ppo_alone_brings_the_default_critic(self, passes):
        assert passes("algorithm={kind: ppo}").critic == CriticConfig()
        assert passes("algorithm={kind: ppo}", "critic={workers: 2}").critic == CriticConfig(workers=2)
        assert passes("algorithm={kind: grpo}").critic is None

    def test_a_critic_is_not_trained_for_nothing(self, refused):
        assert refused("critic={}") == (
            "critic: algorithm.kind=grpo does not use a critic; remove the section critic, or set algorithm.kind=ppo"
        )

    def test_generalised_advantages_are_what_ppo_has(self, refused):
        assert refused("algorithm.advantage.kind=gae") == (
            "algorithm.advantage.kind=gae: it needs the values of a critic, and algorithm.kind=grpo has none; set "
            "algorithm.kind=ppo, or remove algorithm.advantage"
        )
        assert refused("algorithm={kind: ppo, group_size: 2, advantage: {kind: group}}") == (
            "algorithm.advantage.kind=group: algorithm.kind=ppo estimates advantages with a critic; remove "
            "algorithm.advantage, or set algorithm.kind to an algorithm without a critic, such as grpo"
        )


class TestKl:
    @pytest.mark.parametrize("place", ["loss", "reward"])
    def test_a_penalty_needs_a_reference(self, refused, passes, place):
        passes(KL, f"algorithm.kl.place={place}")
        passes("reference=null")
        assert refused(KL, f"algorithm.kl.place={place}", "reference=null") == (
            f"algorithm.kl.coefficient=0.1: the KL penalty in the {place} needs a frozen reference, but reference is "
            "null; remove reference: null, or set algorithm.kl.coefficient=0"
        )

    def test_a_penalty_in_the_reward_has_a_coefficient(self, refused):
        assert refused("algorithm.kl.place=reward") == (
            "algorithm.kl.place=reward: there is no KL penalty, because algorithm.kl.coefficient=0; set "
            "the coefficient above 0, or algorithm.kl.place=loss"
        )

    def test_an_adaptive_coefficient_starts_above_zero(self, refused, passes):
        passes(KL, "algorithm.kl.control={kind: adaptive}")
        assert refused("algorithm.kl.control={kind: adaptive}") == (
            "algorithm.kl.control.kind=adaptive: a coefficient of 0 stays 0; set algorithm.kl.coefficient to its "
            "first value, for example 0.05"
        )

    def test_an_adaptive_coefficient_has_a_horizon_beyond_the_step(self, refused, passes):
        passes(KL, "algorithm.kl.control={kind: adaptive, horizon: 65}")
        assert refused(KL, "algorithm.kl.control={kind: adaptive, horizon: 64}") == (
            "algorithm.kl.control.horizon=64: shorter than a step of 64 rollouts, so that the coefficient would "
            "oscillate; set algorithm.kl.control.horizon above 64"
        )


class TestRewardModel:
    @pytest.mark.parametrize("workers", [1, 2, 3, 6])
    def test_workers_hold_the_models_equally_often(self, passes, workers):
        passes(f"rewards=[{{kind: model, paths: [a/b, c/d, e/f], workers: {workers}}}]")

    @pytest.mark.parametrize("workers", [4, 5, 7])
    def test_other_numbers_of_workers_are_refused(self, refused, workers):
        assert refused(f"rewards=[{{kind: model, paths: [a/b, c/d, e/f], workers: {workers}}}]") == (
            f"rewards.0.workers={workers}: more workers than models, but no multiple of the 3 models, so that they "
            "could not be shared equally; set rewards.0.workers to 3 or less, or to a multiple of 3"
        )

    def test_several_models_are_one_entry(self, refused):
        two = "{kind: model, paths: [a/b]}, {kind: model, name: other, paths: [c/d]}"
        assert refused(f"rewards=[{{kind: number}}, {two}]") == (
            "rewards.1.kind=model: another entry of rewards has this kind too; list all models in rewards.1.paths, "
            "which combines their scores"
        )

    def test_it_may_be_sampled_with_dynamic_sampling(self, passes):
        passes("rewards=[{kind: model, paths: [a/b]}]", "algorithm={kind: dapo}")

    @pytest.mark.parametrize(
        ("settings", "labels"),
        [
            ({}, 2),
            ({"num_labels": 2}, 2),
            ({"id2label": {"0": "bad", "1": "good"}}, 2),
            ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 1}, 3),
        ],
    )
    def test_a_model_with_several_labels_is_refused(self, refused, write_model, settings, labels):
        write_model("judge", settings)
        assert refused("rewards=[{kind: model, paths: [a/b, judge]}]") == (
            f"rewards.0.paths.1=judge: the model has {labels} labels, and a reward needs one number; set "
            "rewards.0.paths.1 to a sequence classification model with num_labels 1"
        )

    @pytest.mark.parametrize("settings", [{"num_labels": 1}, {"id2label": {"0": "LABEL_0"}}])
    def test_a_model_with_one_label_passes(self, passes, write_model, settings):
        write_model("judge", settings)
        passes("rewards=[{kind: model, paths: [judge]}]")

    def test_a_model_of_plain_text_takes_no_system_message(self, refused, passes, write_model):
        write_model("judge", {"num_labels": 1, "ray_rl_chat": False})
        passes("rewards=[{kind: model, paths: [judge]}]")
        assert refused("rewards=[{kind: model, paths: [judge]}]", "data.system_prompt=Be brief.") == (
            "data.system_prompt: rewards.0.paths.0=judge was trained on plain text (data.chat=false), and reads no "
            "system message; remove data.system_prompt, or train the reward model with data.chat=true"
        )

    def test_a_model_that_stands_for_one_that_is_trained_later_needs_no_head(self, load, write_model):
        write_model("base", {})
        check(load("rewards=[{kind: model, paths: [base]}]"), visible_gpus=0, stand_ins=["base"])


class TestSchedule:
    @pytest.mark.parametrize("key", ["train", "critic"])
    def test_the_warm_up_ends_before_the_run(self, refused, passes, key):
        shape = (*PPO, "run.steps=3", "algorithm.update_epochs=2")
        passes(*shape, f"{key}.schedule.warmup_steps=5")
        assert refused(*shape, f"{key}.schedule.warmup_steps=6") == (
            f"{key}.schedule.warmup_steps=6: the run has 6 optimizer steps (run.steps 3 * 2 a step), so the learning "
            f"rate would never reach its peak; set {key}.schedule.warmup_steps to 5 or less, or raise run.steps"
        )


class TestDeepSpeed:
    def test_parameters_are_offloaded_at_stage_3_only(self, refused, passes):
        passes("train.offload.parameters=true", "train.zero_stage=3")
        assert refused("train.offload.parameters=true", "train.zero_stage=2") == (
            "train.offload.parameters=true: only ZeRO stage 3 can move parameters to the CPU, and train.zero_stage=2; "
            "set train.zero_stage=3 or train.offload.parameters=false"
        )

    def test_the_optimizer_is_offloaded_from_stage_1(self, refused, passes):
        passes("train.offload.optimizer=true", "train.zero_stage=1")
        assert refused("train.offload.optimizer=true", "train.zero_stage=0", "model.dtype=float32") == (
            "train.offload.optimizer=true: ZeRO stage 0 cannot move the optimizer to the CPU; "
            "set train.zero_stage to 1, 2 or 3, or train.offload.optimizer=false"
        )

    def test_stage_0_cannot_sum_bfloat16_gradients_in_float32(self, refused, passes):
        passes("train.zero_stage=0", "train.gradient_dtype=bfloat16")
        passes("train.zero_stage=0", "model.dtype=float32")
        assert refused("train.zero_stage=0") == (
            "train.gradient_dtype=float32: DeepSpeed refuses to sum gradients in float32 at train.zero_stage=0 under "
            "model.dtype=auto; set train.zero_stage=1, or train.gradient_dtype=bfloat16, or model.dtype=float32"
        )

    def test_the_critic_obeys_the_same_rules(self, refused):
        message = refused(*PPO, "critic.offload={parameters: true, optimizer: true}", "critic.zero_stage=0")
        assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
            "critic.offload.parameters=true",
            "critic.offload.optimizer=true",
            "critic.gradient_dtype=float32",
        ]

    def test_the_reference_is_offloaded_at_stage_3_only(self, refused, passes):
        passes(KL, "reference={offload: true, zero_stage: 3}")
        assert refused(KL, "reference.offload=true") == (
            "reference.offload=true: only ZeRO stage 3 can move parameters to the CPU, and reference.zero_stage=0; set "
            "reference.zero_stage=3 or reference.offload=false"
        )


class TestOffPolicy:
    def test_a_distribution_without_its_tail_is_refused(self, refused, passes):
        passes("rollout.top_p=1", "rollout.temperature=0.7")
        assert refused("rollout.top_p=0.9") == (
            "rollout.top_p=0.9: completions would be sampled from a part of the vocabulary, but the trainer computes "
            "probabilities over all of it, so that every ratio would be biased; set rollout.top_p=1"
        )

    def test_a_stop_string_must_not_be_cut_in_two(self, refused, passes):
        passes("rollout.on_publish=abort_and_resume")
        passes("rollout.on_publish=keep", "rollout.stop=['###']")
        message = refused("rollout.on_publish=abort_and_resume", "rollout.stop=['###']")
        assert message.endswith("would then not end the completion; set rollout.on_publish=keep")

    def test_a_correction_needs_two_policies(self, refused, passes):
        passes("algorithm.old_policy=trainer", "algorithm.correction={kind: truncate_tokens}")
        passes("algorithm.old_policy=rollout")
        message = refused("algorithm.old_policy=rollout", "algorithm.correction={kind: truncate_tokens}")
        assert message.endswith("set algorithm.correction=null, or algorithm.old_policy=trainer")


class TestGuards:
    @pytest.mark.parametrize("key", ["train", "critic"])
    def test_deepspeed_may_not_be_told_to_apply_what_is_not_finite(self, refused, passes, key):
        more = PPO if key == "critic" else ()
        passes(*more, f"{key}.deepspeed={{bf16: {{check_grad_overflow: true}}}}")
        assert refused(*more, f"{key}.deepspeed={{bf16: {{check_grad_overflow: false}}}}") == (
            f"{key}.deepspeed.bf16.check_grad_overflow=false: DeepSpeed would apply gradients that are not finite; "
            f"remove it from {key}.deepspeed"
        )


class TestFrozenLayers:
    def test_one_layer_of_a_known_model_is_trained(self, refused, passes):
        model = "model.path=smollm2-135m-instruct"
        passes(model, "train.frozen_layers=29")
        assert refused(model, "train.frozen_layers=30") == (
            "train.frozen_layers=30: smollm2-135m-instruct has 30 decoder layers and one must be trained; "
            "set train.frozen_layers to 29 or less"
        )
