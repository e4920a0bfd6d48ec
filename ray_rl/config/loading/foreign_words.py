"""What TRL, OpenRLHF and verl call things, and where they live here: for users who come from there.

By the last part of a key, or by more of it where the last part alone could mean several things. A value is a list of
our keys, or a sentence for what has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Ours = tuple[str, ...] | str
"""Our keys; or what to do, where there is none."""

_RATE = ("train.learning_rate",)
_GROUP = ("algorithm.group_size",)
_PROMPTS = ("algorithm.prompts_per_step",)
_MINIBATCHES = ("algorithm.minibatches",)
_KL = ("algorithm.kl.coefficient",)
_MICRO = ("train.micro_batch_tokens",)
_ANSWER = ("rollout.max_tokens",)
_PROMPT = ("data.max_prompt_tokens",)
_STEPS = ("run.steps",)
_TENSOR = ("rollout.tensor_parallel",)
_MEMORY = ("rollout.gpu_memory_fraction",)
_SAVE = ("checkpoint.every_steps",)
_NODES = ("cluster.nodes",)
_GPUS = ("cluster.gpus_per_node",)
_CLIP = ("algorithm.clip",)
_TENSORBOARD = (
    "there is no upload: metrics.jsonl and TensorBoard files are in the run folder, Prometheus scrapes a cluster; "
    "remove it"
)
_BY_TOKENS = (
    "micro-batches have a budget of tokens, train.micro_batch_tokens, and what a step accumulates follows from "
    "algorithm.prompts_per_step * algorithm.group_size / algorithm.minibatches; remove it"
)
_SAMPLING = (
    "rollout.temperature and rollout.top_p are what shapes sampling, and the trainer computes the same; remove it"
)
_EPOCHS = "the length of a run is run.steps, batches of algorithm.prompts_per_step prompts; set that"

FOREIGN: Mapping[str, Ours] = {
    # All three.
    "lr": _RATE,
    "beta": _KL,
    "temperature": ("rollout.temperature",),
    "top_p": ("rollout.top_p",),
    "top_k": _SAMPLING,
    "min_p": _SAMPLING,
    "repetition_penalty": _SAMPLING,
    "max_steps": _STEPS,
    "epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "steps": _STEPS,
    "seed": ("run.seed",),
    # TRL and transformers.
    "model_name_or_path": ("model.path",),
    "model_name": ("model.path",),
    "num_generations": _GROUP,
    "num_iterations": ("algorithm.update_epochs",),
    "per_device_train_batch_size": _BY_TOKENS,
    "per_device_eval_batch_size": "there is no evaluation during training; remove it",
    "gradient_accumulation_steps": _BY_TOKENS,
    "train_batch_size": _PROMPTS,
    "steps_per_generation": _MINIBATCHES,
    "generation_batch_size": _PROMPTS,
    "num_train_epochs": _EPOCHS,
    "max_completion_length": _ANSWER,
    "max_new_tokens": _ANSWER,
    "max_prompt_length": _PROMPT,
    "max_length": ("rollout.max_tokens", "data.max_prompt_tokens"),
    "epsilon": _CLIP,
    "epsilon_high": _CLIP,
    "delta": "a second bound of the ratio is `algorithm.loss`: {kind: clipped, ratio_cap: ...}",
    "loss_type": ("algorithm.kind", "algorithm.reduction"),
    "scale_rewards": ("algorithm.advantage.divide_by_std",),
    "mask_truncated_completions": ("algorithm.mask_truncated",),
    "reward_weights": ("rewards.0.weight",),
    "reward_funcs": ("rewards",),
    "use_vllm": "completions always come from vLLM; remove it",
    "vllm_gpu_memory_utilization": _MEMORY,
    "vllm_tensor_parallel_size": _TENSOR,
    "vllm_mode": "engines have GPUs of their own, or share them by cluster.colocate; remove it",
    "vllm_max_model_len": ("rollout.max_tokens", "data.max_prompt_tokens"),
    "max_grad_norm": ("train.clip_grad_norm",),
    "warmup_steps": ("train.schedule.warmup_steps",),
    "warmup_ratio": ("train.schedule.warmup_steps",),
    "lr_scheduler_type": ("train.schedule.kind",),
    "adam_beta1": ("train.betas",),
    "adam_beta2": ("train.betas",),
    "adam_epsilon": ("train.eps",),
    "adam_betas": ("train.betas",),
    "bf16": ("model.dtype",),
    "fp16": ("model.dtype",),
    "torch_dtype": ("model.dtype",),
    "output_dir": ("run.dir", "run.name"),
    "run_name": ("run.name",),
    "logging_steps": "every step is one line and one record; remove it",
    "logging_dir": ("run.dir",),
    "save_steps": _SAVE,
    "save_total_limit": ("checkpoint.keep_last",),
    "save_strategy": _SAVE,
    "report_to": _TENSORBOARD,
    "attn_implementation": ("train.attention",),
    "padding_free": ("train.packing",),
    "use_lora": "all weights are trained, or all but train.frozen_layers; LoRA is not supported; remove it",
    "use_peft": "all weights are trained, or all but train.frozen_layers; LoRA is not supported; remove it",
    "lora_r": "all weights are trained, or all but train.frozen_layers; LoRA is not supported; remove it",
    "lora_rank": "all weights are trained, or all but train.frozen_layers; LoRA is not supported; remove it",
    "lora_alpha": "all weights are trained, or all but train.frozen_layers; LoRA is not supported; remove it",
    "load_in_4bit": "weights are float32 or bfloat16; remove it",
    "top_entropy_quantile": "every token of a completion is trained on; remove it",
    "ref_model": ("reference.path",),
    "sync_ref_model": "the reference is frozen; remove it",
    "dataset_name": ("data.name",),
    "dataset_train_split": ("data.split",),
    "dataset_config": ("data.subset",),
    "vf_coef": "the critic has an optimizer of its own, critic.learning_rate, so its loss has no weight; remove it",
    "cliprange": _CLIP,
    "cliprange_value": ("critic.value_clip",),
    "lam": ("algorithm.advantage.lam",),
    "gamma": ("algorithm.advantage.gamma",),
    "whiten_rewards": ("algorithm.shaping.whiten",),
    "kl_estimator": ("algorithm.kl.estimator",),
    "num_ppo_epochs": ("algorithm.update_epochs",),
    "num_mini_batches": _MINIBATCHES,
    # OpenRLHF.
    "pretrain": ("model.path",),
    "reward_pretrain": ("rewards.0.paths",),
    "remote_rm_url": "reward models run in the cluster (rewards.0.kind=model); call a server from a `custom` reward",
    "critic_pretrain": ("critic.path",),
    "prompt_data": ("data.path", "data.name"),
    "input_key": ("data.prompt_column",),
    "label_key": ("rewards.0.column",),
    "apply_chat_template": ("data.chat",),
    "input_template": ("data.system_prompt",),
    "n_samples_per_prompt": _GROUP,
    "rollout_batch_size": _PROMPTS,
    "micro_train_batch_size": _BY_TOKENS,
    "micro_rollout_batch_size": ("rollout.max_sequences",),
    "prompt_max_len": _PROMPT,
    "generate_max_len": _ANSWER,
    "max_samples": ("run.steps",),
    "num_episodes": _EPOCHS,
    "max_epochs": ("algorithm.update_epochs",),
    "actor_learning_rate": _RATE,
    "critic_learning_rate": ("critic.learning_rate",),
    "init_kl_coef": _KL,
    "kl_coef": _KL,
    "kl_target": ("algorithm.kl.control.target",),
    "kl_horizon": ("algorithm.kl.control.horizon",),
    "use_kl_loss": ("algorithm.kl.place",),
    "advantage_estimator": ("algorithm.kind", "algorithm.advantage.kind"),
    "eps_clip": _CLIP,
    "eps_clip_low_high": _CLIP,
    "value_clip": ("critic.value_clip",),
    "entropy_loss_coef": ("algorithm.entropy_coefficient",),
    "vllm_num_engines": ("rollout.engines",),
    "vllm_sync_backend": ("weight_sync.backend",),
    "vllm_enable_sleep": "engines and trainers have GPUs of their own; remove it",
    "enforce_eager": ("rollout.enforce_eager",),
    "colocate_all_models": ("cluster.colocate",),
    "colocate_actor_ref": ("cluster.colocate",),
    "actor_num_nodes": _NODES,
    "actor_num_gpus_per_node": ("train.workers", "cluster.gpus_per_node"),
    "ref_num_gpus_per_node": ("reference.workers",),
    "critic_num_gpus_per_node": ("critic.workers",),
    "reward_num_gpus_per_node": ("rewards.0.workers",),
    "async_train": ("rollout.max_staleness",),
    "dynamic_filtering": ("algorithm.dynamic_sampling",),
    "zero_stage": ("train.zero_stage",),
    "adam_offload": ("train.offload.optimizer",),
    "packing_samples": ("train.packing",),
    "gradient_checkpointing": ("train.gradient_checkpointing",),
    "flash_attn": ("train.attention",),
    "l2": ("train.weight_decay",),
    "save_path": ("run.dir", "run.name"),
    "ckpt_path": ("run.dir", "run.name"),
    "load_checkpoint": "a run is resumed by `ray-rl resume RUN`, or `train --resume auto`; remove it",
    "overlong_buffer_len": ("algorithm.shaping.overlong_share",),
    "overlong_penalty_factor": ("algorithm.shaping.overlong_penalty",),
    "use_wandb": _TENSORBOARD,
    "wandb": _TENSORBOARD,
    "wandb_project": _TENSORBOARD,
    "wandb_run_name": ("run.name",),
    # verl.
    "train_files": ("data.path",),
    "val_files": "there is no evaluation during training; remove it",
    "prompt_key": ("data.prompt_column",),
    "reward_fn_key": ("rewards.0.column",),
    "max_response_length": _ANSWER,
    "response_length": _ANSWER,
    "filter_overlong_prompts": "prompts longer than data.max_prompt_tokens are always filtered out; remove it",
    "truncation": "prompts longer than data.max_prompt_tokens are filtered out and never cut; remove it",
    "adv_estimator": ("algorithm.kind", "algorithm.advantage.kind"),
    "norm_adv_by_std_in_grpo": ("algorithm.advantage.divide_by_std",),
    "use_kl_in_reward": ("algorithm.kl.place",),
    "kl_penalty": ("algorithm.kl.estimator",),
    "kl_loss_coef": _KL,
    "kl_loss_type": ("algorithm.kl.estimator",),
    "kl_ctrl.type": ("algorithm.kl.control.kind",),
    "target_kl": ("algorithm.kl.control.target",),
    "horizon": ("algorithm.kl.control.horizon",),
    "clip_ratio": _CLIP,
    "clip_ratio_low": _CLIP,
    "clip_ratio_high": _CLIP,
    "clip_ratio_c": ("algorithm.loss.dual_clip",),
    "loss_agg_mode": ("algorithm.reduction",),
    "entropy_coeff": ("algorithm.entropy_coefficient",),
    "ppo_epochs": ("algorithm.update_epochs",),
    "ppo_mini_batch_size": _MINIBATCHES,
    "ppo_micro_batch_size": _BY_TOKENS,
    "ppo_micro_batch_size_per_gpu": _BY_TOKENS,
    "micro_batch_size": _BY_TOKENS,
    "micro_batch_size_per_gpu": _BY_TOKENS,
    "micro_batch_size_per_device": _BY_TOKENS,
    "log_prob_micro_batch_size_per_gpu": _BY_TOKENS,
    "ppo_max_token_len_per_gpu": _MICRO,
    "log_prob_max_token_len_per_gpu": _MICRO,
    "use_dynamic_bsz": "micro-batches always have a budget of tokens, train.micro_batch_tokens; remove it",
    "use_remove_padding": ("train.packing",),
    "enable_gradient_checkpointing": ("train.gradient_checkpointing",),
    "grad_clip": ("train.clip_grad_norm",),
    "param_offload": ("train.offload.parameters",),
    "optimizer_offload": ("train.offload.optimizer",),
    "lr_warmup_steps": ("train.schedule.warmup_steps",),
    "lr_warmup_steps_ratio": ("train.schedule.warmup_steps",),
    "warmup_style": ("train.schedule.kind",),
    "tensor_parallel_size": _TENSOR,
    "tensor_model_parallel_size": _TENSOR,
    "gpu_memory_utilization": _MEMORY,
    "max_num_seqs": ("rollout.max_sequences",),
    "max_model_len": ("rollout.max_tokens", "data.max_prompt_tokens"),
    "max_num_batched_tokens": "the engine chooses it; remove it",
    "free_cache_engine": "engines and trainers have GPUs of their own; remove it",
    "rollout.n": _GROUP,
    "rollout.name": "completions always come from vLLM; remove it",
    "rollout.mode": ("rollout.max_staleness",),
    "calculate_log_probs": "the engine always reports them (algorithm.old_policy); remove it",
    "actor_rollout_ref.model.path": ("model.path",),
    "critic.model.path": ("critic.path",),
    "critic.optim.lr": ("critic.learning_rate",),
    "reward_model.path": ("rewards.0.paths",),
    "reward_model.model.path": ("rewards.0.paths",),
    "reward_model.enable": ("rewards",),
    "custom_reward_function.path": ("rewards.0.function",),
    "custom_reward_function.name": ("rewards.0.function",),
    "total_epochs": _EPOCHS,
    "total_training_steps": _STEPS,
    "save_freq": _SAVE,
    "test_freq": "there is no evaluation during training; remove it",
    "val_before_train": "there is no evaluation during training; remove it",
    "max_actor_ckpt_to_keep": ("checkpoint.keep_last",),
    "default_local_dir": ("run.dir", "run.name"),
    "resume_mode": "a run is resumed by `ray-rl resume RUN`, or `train --resume auto`; remove it",
    "experiment_name": ("run.name",),
    "project_name": ("run.dir",),
    "logger": _TENSORBOARD,
    "nnodes": _NODES,
    "n_gpus_per_node": _GPUS,
    "critic_warmup": ("critic.warmup_steps",),
    "enable_thinking": ("data.template_options",),
    "chat_template_kwargs": ("data.template_options",),
    "chat_template_path": ("model.chat_template",),
    "stop_token_ids": ("rollout.stop_token_ids",),
    "filter_groups.enable": ("algorithm.dynamic_sampling",),
    "max_num_gen_batches": ("algorithm.dynamic_sampling.max_draws",),
}
"""By key, with underscores."""

NOTES = {
    "algorithm.clip": "a pair: [0.2, 0.28]",
    "algorithm.minibatches": "how many a pass has, not how large they are",
    "algorithm.prompts_per_step": "prompts, not completions",
    "algorithm.kind": "grpo, dapo, rloo, ppo, ...",
    "algorithm.shaping.overlong_share": "a share of rollout.max_tokens",
    "train.betas": "a pair: [0.9, 0.999]",
    "train.schedule.warmup_steps": "optimizer steps, not a share",
    "rewards.0.column": "of the reward that reads it",
    "rewards.0.function": "package.module:function, of a reward of kind custom",
}
"""What differs besides the name."""


def our_word(key: str) -> str | None:
    """What a foreign key is called here, as the end of a sentence: "here it is called train.learning_rate".

    Args:
        key: dotted, as it was written: `actor_rollout_ref.actor.optim.lr`, `num-generations`.
    """
    parts = key.replace("-", "_").split(".")
    for start in range(len(parts)):
        ours = FOREIGN.get(".".join(parts[start:]))
        if ours is not None:
            return ours if isinstance(ours, str) else f"here it is called {_listed(ours)}"
    return FOREIGN["wandb"] if "wandb" in parts and isinstance(FOREIGN["wandb"], str) else None


def _listed(keys: Sequence[str]) -> str:
    return " and ".join(f"{key} ({NOTES[key]})" if key in NOTES else key for key in keys)
