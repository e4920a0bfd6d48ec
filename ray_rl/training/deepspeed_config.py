"""Translates our configuration into DeepSpeed's."""

from __future__ import annotations

from typing import Any

from ray_rl.config.train import REDUCE_BUCKET, Trained


def deepspeed_config(role: Trained, *, dtype: str, accelerator: str) -> dict[str, Any]:
    """Returns DeepSpeed's configuration of a model under training, with `role.deepspeed` merged over it.

    Gradient accumulation is driven by hand (`set_gradient_accumulation_boundary`), and the loss is divided by the
    global count before it reaches DeepSpeed, so both of DeepSpeed's own divisors are 1.
    """
    zero: dict[str, Any] = {"stage": role.zero_stage}
    if accelerator == "cpu":
        zero["reduce_bucket_size"] = REDUCE_BUCKET[accelerator]
        if role.zero_stage < 3:
            # Otherwise DeepSpeed copies what it reduces into one more buffer and back, to all-reduce it all the same.
            zero["reduce_scatter"] = False
    if role.offload.optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": accelerator == "gpu"}
    if role.offload.parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": accelerator == "gpu"}
    generated: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": role.clip_grad_norm,
        "zero_optimization": zero,
        # torch's fused AdamW: DeepSpeed's own is compiled on first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if dtype == "bfloat16":
        generated["bf16"] = {"enabled": True}
        if role.gradient_dtype == "float32":
            generated["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge(generated, role.deepspeed)


def with_bucket(config: dict[str, Any], *, elements: int) -> dict[str, Any]:
    """Returns DeepSpeed's configuration with a buffer for reduced gradients that is no larger than all of them.

    DeepSpeed allocates it as a whole. A size that is set stays as it is.

    Args:
        config: the configuration of a model under training.
        elements: the elements of all gradients.
    """
    return merge({"zero_optimization": {"reduce_bucket_size": min(REDUCE_BUCKET["gpu"], elements)}}, config)


def frozen_config(*, offload: bool, dtype: str, accelerator: str) -> dict[str, Any]:
    """Returns DeepSpeed's configuration of a frozen model whose parameters the ranks share (ZeRO-3)."""
    zero: dict[str, Any] = {"stage": 3}
    if offload:
        zero["offload_param"] = {"device": "cpu", "pin_memory": accelerator == "gpu"}
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "steps_per_print": None}
    return settings | ({"bf16": {"enabled": True}} if dtype == "bfloat16" else {})


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Returns `base` with the entries of `over`, merged mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
