"""What each option of training saves of a GPU's memory, by the planner: `python -m tests.benchmarks.memory_options`.

Prints the tables of docs/memory.md. Each row adds one change to those above it; the last column makes it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ray_rl.config import RunConfig
from ray_rl.planner.adapter_report import checkpoint_bytes
from ray_rl.planner.adapters import TrainedModel
from ray_rl.planner.advice import changed
from ray_rl.planner.assess import Assessment, assess, known_shape
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.sampling import sync_bytes
from ray_rl.sizes import GIB

MODELS = {"Qwen/Qwen2.5-7B-Instruct": 8, "meta-llama/Llama-3.3-70B-Instruct": 32}
"""Name of each model, and the workers of each of its roles."""
WHOLE = 10**6
"""A chunk of logits that no micro-batch fills."""
BASE: Mapping[str, Any] = {
    "model.dtype": "float32",
    "train.zero_stage": 1,
    "train.gradient_checkpointing": False,
    "train.logit_chunk_tokens": WHOLE,
}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "bfloat16 weights and activations": {"model.dtype": "bfloat16"},
    "gradient checkpointing": {"train.gradient_checkpointing": True},
    "logits in chunks of 1,024 tokens": {"train.logit_chunk_tokens": 1024},
    "ZeRO-2 in place of ZeRO-1": {"train.zero_stage": 2},
    "ZeRO-3": {"train.zero_stage": 3},
    "optimizer state on the host": {"train.offload.optimizer": True},
    "parameters on the host (needs ZeRO-3)": {"train.zero_stage": 3, "train.offload.parameters": True},
}


def config_of(path: str, workers: int, kind: str) -> RunConfig:
    """A run in which every role has as many workers as the actor, with micro-batches of 8,192 tokens."""
    trained = {"workers": workers, "zero_stage": 3, "gradient_checkpointing": True, "micro_batch_tokens": 8192}
    roles: dict[str, Any] = {"reference": {"workers": workers, "zero_stage": 3}}
    if kind == "ppo":
        roles["critic"] = trained
    return RunConfig.model_validate(
        {
            "run": {"name": "memory", "steps": 1},
            "model": {"path": path},
            "data": {"kind": "addition", "max_prompt_tokens": 1024},
            "rewards": [{"kind": "number"}],
            "algorithm": {"kind": kind, "kl": {"coefficient": 0.01, "place": "loss"}},
            "train": trained,
            "rollout": {
                "engines": workers // 4,
                "tensor_parallel": 4,
                "max_tokens": 3072,
                "gpu_memory_fraction": 0.85,
            },
            "cluster": {"nodes": 64, "gpus_per_node": 8},
            **roles,
        }
    )


def assessed(config: RunConfig) -> Assessment:
    """The plan of a run on 80 GB GPUs, whether it fits or not."""
    return assess(config, ClusterShape.of(config))


def actor_gib(config: RunConfig) -> float:
    """The peak of a worker of the actor."""
    return assessed(config).memories["actor"].peak / GIB


def of_options(path: str, workers: int) -> Iterator[str]:
    """One row an option."""
    base = changed(config_of(path, workers, "grpo"), dict(BASE))
    first = last = actor_gib(base)
    yield f"| ZeRO-1, float32, nothing else | {first:.0f} | | |"
    done: dict[str, Any] = {}
    for name, change in STEPS.items():
        done |= change
        here, alone = actor_gib(changed(base, done)), actor_gib(changed(base, dict(change)))
        yield f"| {name} | {here:.0f} | {1 - here / last:.0%} | {1 - alone / first:.0%} |"
        last = here
    yield f"| together | {last:.0f} | {1 - last / first:.0%} | |"


def of_roles(path: str, workers: int) -> Iterator[str]:
    """Models and GPUs of PPO and GRPO in bfloat16 with ZeRO-3, gradient checkpointing and chunks of logits."""
    for name, kind, roles in (
        ("PPO, GPUs for each role", "ppo", ()),
        ("GRPO, GPUs for each role", "grpo", ()),
        ("PPO, all roles on the same GPUs", "ppo", ("actor", "critic", "reference", "rollout")),
        ("GRPO, all roles on the same GPUs", "grpo", ("actor", "reference", "rollout")),
    ):
        config = changed(config_of(path, workers, kind), {"cluster.colocate": [list(roles)] if roles else []})
        found = assessed(config)
        models = sum(memory.peak for role, memory in found.memories.items() if role != "rollout") * workers / GIB
        yield f"| {name} | {models:,.0f} | {found.layout.gpus} | {'yes' if found.fits else 'no'} |"


def of_adapters(path: str, workers: int, stage: int) -> Iterator[str]:
    """One row for all weights and one for adapters of rank 32: what is trained, and bytes, with checkpointing."""
    chosen = {"train.workers": workers, "train.zero_stage": stage, "train.micro_batch_tokens": 4096}
    base = changed(config_of(path, 8, "grpo"), chosen | {"reference.workers": workers})
    shape, gpus = known_shape("model.path", path), f"{workers} GPU{'' if workers == 1 else 's'}"
    for name, adapter in (("all weights", None), ("adapters of rank 32", {"kind": "lora"})):
        config = changed(base, {"model.adapter": adapter})
        memories = assessed(config).memories
        cells = (
            f"{path.rpartition('/')[2]}, {gpus}, ZeRO-{stage}: {name}",
            f"{TrainedModel.of(config, config.train, shape).trained / 1e6:,.0f}M",
            f"{actor_gib(config):.0f}",
            f"{memories['reference'].peak / GIB:.0f}" if "reference" in memories else "none",
            f"{sync_bytes(config, shape) / GIB:.2f}",
            f"{checkpoint_bytes(config) / GIB:.1f}",
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    for path, workers in MODELS.items():
        print(f"\n{path}, {workers} workers of the actor, micro-batches of 8,192 tokens\n")
        print("| change | GiB of a GPU of the actor | saves of the row above | alone |\n|---|---|---|---|")
        print(*of_options(path, workers), sep="\n")
        print("\n| layout | GiB of the models, all GPUs | GPUs | fits 80 GB |\n|---|---|---|---|")
        print(*of_roles(path, workers), sep="\n")
    print("\nadapters, micro-batches of 4,096 tokens, gradient checkpointing\n")
    print("| run | trained | GiB of a GPU of the actor | of the reference | of a publish | of a checkpoint |")
    print("|---|---|---|---|---|---|")
    for (path, workers), alone in zip(MODELS.items(), (1, 8), strict=True):
        for count in (alone, workers):
            print(*of_adapters(path, count, 1 if count == 1 else 3), sep="\n")


if __name__ == "__main__":
    main()
