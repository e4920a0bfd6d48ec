"""Names of TRL, OpenRLHF and verl, and what they are called here, for users of these systems.

A name is the last part of a key, or more of the key if its last part alone could mean several things. Only keys that
the configuration can have with its kinds are suggested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_rl.config.loading.lacking import kind_of, lacks
from ray_rl.config.loading.yaml_tree import Located
from ray_rl.config.run import OFFLINE

Ours = tuple[str, ...] | str
"""Our keys, or a remark if there is no such key."""

_KEYS = {
    "algorithm.advantage.divide_by_std": "scale_rewards norm_adv_by_std_in_grpo",
    "algorithm.advantage.gamma algorithm.margin": "gamma",
    "algorithm.advantage.lam": "lam",
    "algorithm.beta": "orpo_alpha pref_beta orpo_beta",
    "algorithm.centering": "center_rewards_coefficient",
    "algorithm.clip": (
        "epsilon epsilon_high cliprange eps_clip eps_clip_low_high clip_ratio clip_ratio_low clip_ratio_high"
    ),
    "algorithm.dynamic_sampling": "dynamic_filtering filter_groups.enable",
    "algorithm.dynamic_sampling.max_draws": "max_num_gen_batches",
    "algorithm.entropy_coefficient": "entropy_loss_coef entropy_coeff",
    "algorithm.group_size": "num_generations n_samples_per_prompt rollout.n",
    "algorithm.kind algorithm.advantage.kind": "advantage_estimator adv_estimator",
    "algorithm.kind algorithm.reduction": "loss_type",
    "algorithm.kl.coefficient": "init_kl_coef kl_coef kl_loss_coef",
    "algorithm.kl.coefficient algorithm.beta": "beta",
    "algorithm.kl.control.horizon": "kl_horizon horizon",
    "algorithm.kl.control.kind": "kl_ctrl.type",
    "algorithm.kl.control.target": "kl_target target_kl",
    "algorithm.kl.estimator": "kl_estimator kl_penalty kl_loss_type",
    "algorithm.kl.place": "use_kl_loss use_kl_in_reward",
    "algorithm.likelihood.coefficient": "rpo_alpha cpo_alpha nll_loss_coef pref_ftx",
    "algorithm.loss.dual_clip": "clip_ratio_c",
    "algorithm.margin": "simpo_gamma gamma_beta_ratio",
    "algorithm.mask_truncated": "mask_truncated_completions",
    "algorithm.minibatches": "steps_per_generation num_mini_batches ppo_mini_batch_size",
    "algorithm.prompts_per_step": "generation_batch_size rollout_batch_size",
    "algorithm.prompts_per_step algorithm.batch_size": "train_batch_size batch_size_per_step global_train_batch_size",
    "algorithm.reduction": "loss_agg_mode",
    "algorithm.separator": "step_separator placeholder_token",
    "algorithm.shaping.overlong_penalty": "overlong_penalty_factor",
    "algorithm.shaping.overlong_share": "overlong_buffer_len",
    "algorithm.shaping.whiten": "whiten_rewards",
    "algorithm.train_on": "completion_only_loss assistant_only_loss train_on_prompt mask_history",
    "algorithm.update_epochs": "num_iterations num_ppo_epochs ppo_epochs",
    "algorithm.update_epochs run.epochs": "max_epochs",
    "checkpoint.every_steps": "save_steps save_strategy save_freq",
    "checkpoint.keep_best": "load_best_model_at_end metric_for_best_model",
    "checkpoint.keep_last": "save_total_limit max_actor_ckpt_to_keep",
    "cluster.colocate": "colocate_all_models colocate_actor_ref vllm_mode",
    "cluster.gpus_per_node": "n_gpus_per_node",
    "cluster.nodes": "actor_num_nodes nnodes",
    "critic.learning_rate": "critic_learning_rate critic.optim.lr",
    "critic.path": "critic_pretrain critic.model.path",
    "critic.value_clip": "cliprange_value value_clip",
    "critic.warmup_steps": "critic_warmup",
    "critic.workers": "critic_num_gpus_per_node",
    "data.chat": "apply_chat_template",
    "data.columns": "chosen_key rejected_key output_key dataset_text_field",
    "data.held_out": "val_size test_split_ratio eval_split_ratio",
    "data.max_prompt_tokens": "max_prompt_length prompt_max_len",
    "data.max_tokens": "max_seq_length max_seq_len max_len cutoff_len",
    "data.max_tokens data.max_prompt_tokens rollout.max_tokens": "max_length",
    "data.name": "dataset_name",
    "data.path": "train_files",
    "data.path data.name": "prompt_data dataset",
    "data.prompt_column": "input_key prompt_key",
    "data.split": "dataset_train_split",
    "data.subset": "dataset_config",
    "data.system_prompt": "input_template",
    "data.too_long": "truncation_mode",
    "data.template_options": "enable_thinking chat_template_kwargs",
    "model.adapter": "use_lora use_peft peft_config lora_config",
    "model.adapter.alpha": "lora_alpha",
    "model.adapter.dropout": "lora_dropout",
    "model.adapter.init": "init_lora_weights",
    "model.adapter.path": "lora_adapter_path adapter_name_or_path resume_lora",
    "model.adapter.quantise": "load_in_4bit bnb_4bit_quant_type",
    "model.adapter.rank": "lora_rank lora_r",
    "model.adapter.rs_lora": "use_rslora",
    "model.adapter.targets": "lora_target_modules target_modules",
    "model.chat_template": "chat_template_path",
    "model.dtype": "bf16 fp16 torch_dtype",
    "model.path": "model_name_or_path model_name pretrain actor_rollout_ref.model.path",
    "reference.path": "ref_model ref_model_path ref_pretrain",
    "reference.when": "precompute_ref_log_probs",
    "reference.workers": "ref_num_gpus_per_node",
    "rewards": "reward_funcs reward_model.enable",
    "rewards.0.column": "label_key reward_fn_key",
    "rewards.0.function": "custom_reward_function.path custom_reward_function.name",
    "rewards.0.paths": "reward_pretrain reward_model.path reward_model.model.path",
    "rewards.0.weight": "reward_weights",
    "rewards.0.workers": "reward_num_gpus_per_node",
    "rollout.enforce_eager": "enforce_eager",
    "rollout.engines": "vllm_num_engines",
    "rollout.gpu_memory_fraction": "vllm_gpu_memory_utilization gpu_memory_utilization",
    "rollout.max_sequences": "micro_rollout_batch_size max_num_seqs",
    "rollout.max_staleness": "async_train rollout.mode",
    "rollout.max_tokens": "max_completion_length max_new_tokens generate_max_len max_response_length response_length",
    "rollout.max_tokens data.max_prompt_tokens": "vllm_max_model_len max_model_len",
    "rollout.sleep_level": "vllm_enable_sleep free_cache_engine",
    "rollout.stop_token_ids": "stop_token_ids",
    "rollout.temperature": "temperature",
    "rollout.tensor_parallel": "vllm_tensor_parallel_size tensor_parallel_size tensor_model_parallel_size",
    "rollout.top_p": "top_p",
    "run.dir": "logging_dir project_name",
    "run.dir run.name": "output_dir save_path ckpt_path default_local_dir",
    "run.epochs": "epochs num_epochs num_train_epochs total_epochs",
    "run.evaluate_every": "eval_steps eval_strategy evaluation_strategy",
    "run.name": "run_name wandb_run_name experiment_name",
    "run.patience": "early_stopping_patience",
    "run.seed": "seed",
    "run.steps": "max_steps steps max_samples total_training_steps",
    "train.attention": "attn_implementation flash_attn",
    "train.betas": "adam_beta1 adam_beta2 adam_betas",
    "train.clip_grad_norm": "max_grad_norm grad_clip",
    "train.eps": "adam_epsilon",
    "train.gradient_checkpointing": "gradient_checkpointing enable_gradient_checkpointing",
    "train.learning_rate": "lr actor_learning_rate",
    "train.micro_batch_tokens": "ppo_max_token_len_per_gpu log_prob_max_token_len_per_gpu",
    "train.offload.optimizer": "adam_offload optimizer_offload",
    "train.offload.parameters": "param_offload",
    "train.packing": "padding_free packing_samples use_remove_padding",
    "train.schedule.kind": "lr_scheduler_type warmup_style",
    "train.schedule.warmup_steps": "warmup_steps warmup_ratio lr_warmup_steps lr_warmup_steps_ratio",
    "train.weight_decay": "l2",
    "train.workers cluster.gpus_per_node": "actor_num_gpus_per_node",
    "train.zero_stage": "zero_stage",
    "weight_sync.backend": "vllm_sync_backend",
}
"""One or more keys of ours, with the names that other systems have for them."""

_MICRO_BATCHES = (
    "per_device_train_batch_size gradient_accumulation_steps micro_train_batch_size ppo_micro_batch_size "
    "ppo_micro_batch_size_per_gpu micro_batch_size micro_batch_size_per_gpu micro_batch_size_per_device "
    "log_prob_micro_batch_size_per_gpu"
)

_EVALUATION = "per_device_eval_batch_size val_files test_freq val_before_train"

_REMARKS = {
    "rollout.temperature and rollout.top_p alone shape the sampling, because the trainer must compute the same; "
    "remove it": "top_k min_p repetition_penalty",
    "the length of a run is run.steps, in batches of algorithm.prompts_per_step prompts; set run.steps": (
        "num_episodes"
    ),
    "micro-batches have a budget of tokens, train.micro_batch_tokens; the number of rollouts in an optimizer step "
    "is algorithm.prompts_per_step * algorithm.group_size / algorithm.minibatches, and that of examples is "
    "algorithm.batch_size; remove it": _MICRO_BATCHES,
    "only algorithms that learn from examples are evaluated during training (run.evaluate_every, data.held_out); "
    "remove it": _EVALUATION,
    "margins are used where the data has them; remove it": "margin_loss_enable margin_loss",
    "nothing is added to embeddings; remove it": "neftune_noise_alpha",
    "a second limit of the ratio is set by `algorithm.loss`: {kind: clipped, ratio_cap: ...}": "delta",
    "completions always come from vLLM; remove it": "use_vllm rollout.name",
    "every step prints one line and writes one record; remove it": "logging_steps",
    "there is no upload: metrics.jsonl and TensorBoard files are in the run folder, and Prometheus can scrape a "
    "cluster; remove it": "report_to use_wandb wandb wandb_project logger",
    "weights in 4 bits are `model.adapter`: {kind: lora, quantise: nf4}; set model.adapter": "load_in_8bit",
    "adapters freeze embeddings and the head of tokens, and new heads are trained; remove it": "lora_modules_to_save",
    "rsLoRA is `model.adapter`: {kind: lora, rs_lora: true}; DoRA does not exist here; set model.adapter": "use_dora",
    "every token of a completion is trained on; remove it": "top_entropy_quantile",
    "the reference is frozen; remove it": "sync_ref_model",
    "a critic has an optimizer of its own, so its loss has no weight; remove it": "vf_coef",
    "reward models run in the cluster (rewards.0.kind=model); call a server from a `custom` reward": "remote_rm_url",
    "a run is resumed by `ray-rl resume RUN`, or `train --resume auto`; remove it": "load_checkpoint resume_mode",
    "longer prompts than data.max_prompt_tokens are always left out, and never cut; remove it": (
        "filter_overlong_prompts truncation"
    ),
    "micro-batches always have a budget of tokens, train.micro_batch_tokens; remove it": "use_dynamic_bsz",
    "the engine chooses it; remove it": "max_num_batched_tokens",
    "the engine always reports them (algorithm.old_policy); remove it": "calculate_log_probs",
}
"""Remarks on what does not exist here, with the names of other systems."""

_REMARKS_ONLINE = {
    "only algorithms that learn from examples are evaluated during training; remove it": _EVALUATION,
    "micro-batches have a budget of tokens, train.micro_batch_tokens; the number of rollouts in an optimizer step "
    "is algorithm.prompts_per_step * algorithm.group_size / algorithm.minibatches; remove it": _MICRO_BATCHES,
}
"""Remarks in place of those above, for algorithms that learn from rollouts."""

_REMARKS_OFFLINE = {
    "nothing is sampled; remove it": "top_k min_p repetition_penalty calculate_log_probs",
    "the length of a run is run.epochs, or run.steps in batches of algorithm.batch_size examples; set one of them": (
        "num_episodes"
    ),
    "micro-batches have a budget of tokens, train.micro_batch_tokens; the number of examples in an optimizer step is "
    "algorithm.batch_size; remove it": _MICRO_BATCHES,
    "held-out examples are a share of the data, data.held_out, and are evaluated every run.evaluate_every steps; "
    "remove it": _EVALUATION,
    "there is no ratio of probabilities; remove it": "delta",
    "there is no reward; remove it": "remote_rm_url",
    "data.too_long says what happens to longer examples than data.max_tokens; set it": (
        "filter_overlong_prompts truncation"
    ),
}
"""Remarks in place of those above, for algorithms that learn from examples."""


def _by_word(remarks: Mapping[str, str]) -> dict[str, str]:
    return {word: remark for remark, words in remarks.items() for word in words.split()}


FOREIGN: Mapping[str, Ours] = {
    **{word: tuple(ours.split()) for ours, words in _KEYS.items() for word in words.split()},
    **_by_word(_REMARKS),
}
"""Our keys, or a remark, by the names of other systems, with underscores."""

FOREIGN_ONLINE: Mapping[str, Ours] = {**FOREIGN, **_by_word(_REMARKS_ONLINE)}
"""The same for algorithms that learn from rollouts."""

FOREIGN_OFFLINE: Mapping[str, Ours] = {**FOREIGN, **_by_word(_REMARKS_OFFLINE)}
"""The same for algorithms that learn from examples."""

NOTES = {
    "model.adapter": "{kind: lora, rank: 32}",
    "model.adapter.targets": "all-linear, or a list of names of layers",
    "algorithm.batch_size": "examples of an optimizer step, over all workers",
    "algorithm.beta": "of dpo, ipo, kto, orpo and simpo",
    "algorithm.margin": "of simpo, subtracted after beta: gamma, not gamma / beta",
    "data.columns": "{chosen: better, rejected: worse}, ours first",
    "data.max_tokens": "prompt and answer of an example",
    "data.name": "of data.kind: hub",
    "run.epochs": "of algorithms that learn from examples; rollouts have run.steps",
    "algorithm.clip": "a pair: [0.2, 0.28]",
    "algorithm.minibatches": "the number of minibatches, not their size",
    "algorithm.prompts_per_step": "prompts, not completions",
    "algorithm.kind": "grpo, ppo, sft, dpo, ...",
    "algorithm.shaping.overlong_share": "a share of rollout.max_tokens",
    "train.betas": "a pair: [0.9, 0.999]",
    "train.schedule.warmup_steps": "optimizer steps, not a share",
    "rewards.0.column": "of the reward that compares it",
    "rewards.0.function": "package.module:function, of a reward of kind custom",
}
"""Further differences, by our key."""


KINDS = {"rm": "reward_model", "prm": "process_reward_model"}
"""Our kinds, by the words of others that are not like them."""


VALUES = {
    ("train.packing", "true"): (
        "`packing: true` of TRL is nearest to packed, in which examples share a row without padding, stay whole, and "
        "do not see each other"
    ),
    ("train.packing", "false"): "`packing: false` of TRL is padded",
}
"""Our words for values of other systems, by our key and the value as messages show it."""


def our_word(key: str, tree: Located) -> str | None:
    """Returns the end of a sentence about a key of another system: "here it is called train.learning_rate".

    None if it is no such key, or only a key of ours, which exists for other kinds of its section.

    Args:
        key: the dotted key, as the user wrote it: `actor_rollout_ref.actor.optim.lr`, `num-generations`.
        tree: the values of the configuration, whose kinds decide which of our keys it can have.
    """
    key = key.replace("-", "_")
    parts = key.split(".")
    kind = kind_of(tree)
    words = FOREIGN if kind is None else FOREIGN_OFFLINE if kind in OFFLINE else FOREIGN_ONLINE
    for start in range(len(parts)):
        ours = words.get(".".join(parts[start:]))
        if isinstance(ours, str):
            return ours
        others = [each for each in ours or () if each != key]
        if others:
            return f"here it is called {_listed(others, tree)}"
    return FOREIGN["wandb"] if "wandb" in parts and isinstance(FOREIGN["wandb"], str) else None


def _listed(keys: Sequence[str], tree: Located) -> str:
    """Returns those of the keys that the configuration can have; or the first one, and why it cannot have it."""
    reasons = {key: lacks(key, tree) for key in keys}
    allowed = [f"{key} ({NOTES[key]})" if key in NOTES else key for key, reason in reasons.items() if reason is None]
    return " and ".join(allowed) or f"{keys[0]}, but {reasons[keys[0]]}"
