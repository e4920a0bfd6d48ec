"""Runs that others have published, as near as a configuration can say them, with their seconds.

What a source leaves out is assumed and marked so. For the `fitted` runs, constants of the planner or lengths were
chosen with a look at their seconds; the others were held out. Runs of which the GPU, the engines or both lengths and
phases are not published are left out. `python -m tests.unit.planner.published` prints the table of docs/planning.md.

The publish of OpenRLHF (4.3 and 112 s) is left out: it broadcast one parameter after another, as nothing here does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_rl.config import RunConfig
from ray_rl.planner.assess import assess
from ray_rl.planner.gpus import GPUS, ClusterShape
from ray_rl.planner.lengths import parse_lengths
from ray_rl.planner.throughput import Assumptions, Estimate, estimate
from tests.algorithm import algorithm

LLAMA_8B, LLAMA_70B = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "Llama-2-7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
    },
    "Llama-2-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 32000,
    },
    "Qwen3-32B": {
        "model_type": "qwen3",
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 25600,
        "vocab_size": 151936,
    },
}
"""config.json of models that the catalogue does not have."""

CHECKPOINTING = {"gradient_checkpointing": True}
SHARED = {"colocate": [["actor", "reference", "rollout"]]}


@dataclass(frozen=True)
class Published:
    """A run and its seconds."""

    source: str
    model: str
    gpu: str
    nodes: int
    lengths: str
    seconds: Mapping[str, float]
    """`step`, and phases by the names of `Estimate` if they were published."""
    sections: Mapping[str, Any]
    assumed: str = ""
    """What the source does not say."""
    fitted: bool = False
    shared: Mapping[str, Any] = field(default_factory=dict)

    def estimate(self, folder: Path) -> Estimate:
        """Returns what the planner computes; models that it does not know are written to the folder."""
        for name, shape in SHAPES.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "config.json").write_text(json.dumps(shape))

        def path(model: str) -> str:
            return str(folder / model) if model in SHAPES else model

        sections = dict(self.sections)
        rewards = [
            {**part, "paths": [path(each) for each in part["paths"]]} if "paths" in part else part
            for part in sections.pop("rewards", [{"kind": "number"}])
        ]
        config = RunConfig.model_validate(
            {
                "run": {"name": "published", "steps": 1},
                "model": {"path": path(self.model), "dtype": "bfloat16"},
                "data": {"kind": "addition", "max_prompt_tokens": 1024},
                "rewards": rewards,
                "cluster": {"address": "auto", **self.shared},
                **sections,
                # These systems score a batch when it is complete.
                "rollout": sections["rollout"] | {"score_as_finished": False},
                "algorithm": algorithm(**sections["algorithm"]),
            }
        )
        cluster = ClusterShape(self.nodes, 8, GPUS[self.gpu])
        assumed = Assumptions(parse_lengths(self.lengths, maximum=config.rollout.max_tokens))
        return estimate(config, assess(config, cluster), assumed)


NEMO = "NeMo-RL 0.4, docs/about/performance-summary.md at 06beed9 and its recipes"
NEMO_GRPO = {
    "kind": "grpo",
    "prompts_per_step": 64,
    "group_size": 32,
    "minibatches": 4,
    "old_policy": "trainer",
    "kl": {"coefficient": 0.01},
}
OPENRLHF = "OpenRLHF technical report (arXiv:2405.11143), tables 2, 3 and 5, and its scripts"
OPENRLHF_PPO = {
    "kind": "ppo",
    "prompts_per_step": 1024,
    "update_epochs": 1,
    "minibatches": 8,
    "kl": {"coefficient": 0.01},
}
OFFLOADED = {"zero_stage": 3, "offload": {"optimizer": True}, **CHECKPOINTING}
VERL = "verl, docs/advance/fully_async.md at 1947b75 (colocate sync) and its dapo_7b_math_fsdp2 scripts"
ALIGNER = "NeMo-Aligner, docs/user-guide/rlhf.rst at 0a22550"

RUNS = {
    "nemo-rl-8b": Published(
        NEMO,
        LLAMA_8B,
        "h100-80gb",
        2,
        "mean=950,prompt=110",
        {"step": 97.7},
        {
            "algorithm": NEMO_GRPO,
            "train": {"workers": 16, "zero_stage": 1, "micro_batch_tokens": 4096, **CHECKPOINTING},
            "reference": {"workers": 16},
            "rollout": {"engines": 16, "max_tokens": 3986, "gpu_memory_fraction": 0.6},
        },
        assumed="110 tokens of a prompt",
        fitted=True,
        shared=SHARED,
    ),
    "nemo-rl-8b-one-step-off": Published(
        NEMO,
        LLAMA_8B,
        "h100-80gb",
        2,
        "mean=1019,prompt=110",
        {"step": 74.6},
        {
            "algorithm": NEMO_GRPO,
            "train": {"workers": 8, "zero_stage": 1, "micro_batch_tokens": 4096, **CHECKPOINTING},
            "reference": {"workers": 8},
            "rollout": {"engines": 8, "max_tokens": 3986, "gpu_memory_fraction": 0.8, "max_staleness": 1},
        },
        assumed="110 tokens of a prompt",
        shared={"colocate": [["actor", "reference"]]},
    ),
    "nemo-rl-32b": Published(
        NEMO,
        "Qwen3-32B",
        "h100-80gb",
        4,
        "mean=3096,prompt=110",
        {"step": 393.0},
        {
            "algorithm": NEMO_GRPO,
            "train": {"workers": 32, "zero_stage": 3, "micro_batch_tokens": 4096},
            "reference": {"workers": 32, "zero_stage": 3},
            "rollout": {"engines": 8, "tensor_parallel": 4, "max_tokens": 3986, "gpu_memory_fraction": 0.6},
        },
        assumed="110 tokens of a prompt; ZeRO-3 for tensor and pipeline parallelism",
        shared=SHARED,
    ),
    "nemo-rl-32b-one-step-off": Published(
        NEMO,
        "Qwen3-32B",
        "h100-80gb",
        8,
        "mean=3097,prompt=110",
        {"step": 215.0},
        {
            "algorithm": NEMO_GRPO,
            "train": {"workers": 32, "zero_stage": 3, "micro_batch_tokens": 4096},
            "reference": {"workers": 32, "zero_stage": 3},
            "rollout": {
                "engines": 8,
                "tensor_parallel": 4,
                "max_tokens": 3986,
                "gpu_memory_fraction": 0.8,
                "max_staleness": 1,
            },
        },
        assumed="110 tokens of a prompt; ZeRO-3 for tensor and pipeline parallelism",
        shared={"colocate": [["actor", "reference"]]},
    ),
    "openrlhf-7b": Published(
        OPENRLHF,
        "Llama-2-7b",
        "a100-80gb",
        2,
        "mean=600,prompt=250",
        {"step": 471.0, "rollout_s": 263.0, "score_s": 32.7, "update_s": 171.0},
        {
            "algorithm": OPENRLHF_PPO,
            "train": {"workers": 4, "micro_batch_tokens": 6800, **OFFLOADED},
            "critic": {"workers": 4, "micro_batch_tokens": 6800, **OFFLOADED},
            "reference": {"workers": 2, "zero_stage": 3},
            "rewards": [{"kind": "model", "paths": ["Llama-2-7b"], "workers": 2}],
            "rollout": {"engines": 4, "max_tokens": 1024, "max_sequences": 16},
        },
        assumed="lengths, from the rollouts of both OpenRLHF runs; 16 sequences of an engine",
        fitted=True,
    ),
    "openrlhf-70b": Published(
        OPENRLHF,
        "Llama-2-70b",
        "a100-80gb",
        4,
        "mean=600,prompt=250",
        {"step": 4489.0, "rollout_s": 2253.0, "score_s": 323.0, "update_s": 1801.0},
        {
            "algorithm": OPENRLHF_PPO,
            "train": {"workers": 4, "micro_batch_tokens": 850, **OFFLOADED},
            "critic": {"workers": 4, "micro_batch_tokens": 850, **OFFLOADED},
            "reference": {"workers": 4, "zero_stage": 3},
            "rewards": [{"kind": "model", "paths": ["Llama-2-70b"], "workers": 4}],
            "rollout": {"engines": 4, "tensor_parallel": 4, "max_tokens": 1024, "max_sequences": 2},
        },
        assumed="lengths, from the rollouts of both OpenRLHF runs",
        fitted=True,
    ),
    "nemo-aligner-70b-96": Published(
        ALIGNER,
        LLAMA_70B,
        "h100-80gb",
        12,
        "mean=350.7,prompt=350",
        {"step": 366.7},
        {
            "algorithm": {
                "kind": "ppo",
                "prompts_per_step": 1024,
                "update_epochs": 1,
                "minibatches": 8,
                "kl": {"coefficient": 0.003},
            },
            "train": {"workers": 64, "zero_stage": 3, "micro_batch_tokens": 700, **CHECKPOINTING},
            "critic": {"workers": 32, "zero_stage": 3, "micro_batch_tokens": 700, **CHECKPOINTING},
            "reference": {"workers": 64, "zero_stage": 3},
            "rewards": [{"kind": "model", "paths": [LLAMA_70B], "workers": 32}],
            "rollout": {"engines": 8, "tensor_parallel": 8, "max_tokens": 1024, "max_sequences": 8},
        },
        assumed="prompts; static batches of 8 are not in the model",
        shared={"colocate": [["actor", "reference", "rollout"], ["critic", "reward"]]},
    ),
    **{
        f"verl-7b-{gpus}": Published(
            VERL,
            "Qwen/Qwen2.5-7B-Instruct",
            "h20-96gb",
            gpus // 8,
            "mean=1700,prompt=150",
            {"step": step_s, "rollout_s": rollout_s, "score_s": score_s, "update_s": update_s},
            {
                "algorithm": {
                    "kind": "grpo",
                    "prompts_per_step": 512,
                    "group_size": 16,
                    "minibatches": 16,
                    "old_policy": "trainer",
                    "kl": {"coefficient": 0.0},
                },
                "train": {"workers": gpus, "zero_stage": 3, "micro_batch_tokens": 15360, **CHECKPOINTING},
                "rollout": {
                    "engines": gpus // 4,
                    "tensor_parallel": 4,
                    "max_tokens": 28672,
                    "max_sequences": 1024,
                    "gpu_memory_fraction": 0.8,
                },
            },
            assumed="the mean length, from the pass for old log-probabilities on 32 GPUs; checkpointing",
            fitted=gpus == 32,
            shared={"colocate": [["actor", "rollout"]]},
        )
        for gpus, step_s, rollout_s, score_s, update_s in (
            (32, 790.10, 357.41, 107.71, 269.80),
            (64, 365.28, 150.72, 70.26, 133.41),
            (128, 356.30, 177.85, 53.92, 113.81),
        )
    },
}


def table() -> list[str]:
    """Returns the planned and published seconds of every run, as rows of Markdown."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, run in RUNS.items():
            times, step_s = run.estimate(Path(folder)), run.seconds["step"]
            phases = ", ".join(
                f"{phase.removesuffix('_s')} {getattr(times, phase) / seconds:.2f}"
                for phase, seconds in run.seconds.items()
                if phase != "step"
            )
            kind = "fitted" if run.fitted else "held out"
            cells = (name, f"{step_s:,.0f}", f"{times.step_s:,.0f}", f"{times.step_s / step_s:.2f}", phases, kind)
            rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
