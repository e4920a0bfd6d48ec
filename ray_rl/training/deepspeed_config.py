"""The DeepSpeed configuration that our own configuration means."""

from __future__ import annotations

from typing import Any

from ray_rl.config import RunConfig


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """DeepSpeed's configuration as a dictionary; `train.deepspeed` is merged over it.

    Gradient accumulation is driven by hand (`set_gradient_accumulation_boundary`), and the loss is divided by the
    global count before it reaches DeepSpeed, so both of DeepSpeed's own divisors are 1.
    """
    train = config.train
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.offload.optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.cluster.accelerator == "gpu"}
    if train.offload.parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.cluster.accelerator == "gpu"}
    generated: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip_grad_norm,
        "zero_optimization": zero,
        # torch's fused AdamW: DeepSpeed's own is compiled on first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if config.model.dtype == "bfloat16":
        generated["bf16"] = {"enabled": True}
        if train.gradient_dtype == "float32":
            generated["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge(generated, train.deepspeed)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
