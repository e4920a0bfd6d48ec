"""The planner's memory of a worker against what a real one takes: SmolLM2-135M under DeepSpeed, on CPU."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_rl.config import RunConfig
from ray_rl.config.loading.load import load_config
from ray_rl.config.roles import roles_of
from ray_rl.planner.assess import known_shape, role_memories
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.memory import trained_memory
from ray_rl.training.member import Member
from ray_rl.types import TrainBatch
from tests import make
from tests.system.cluster.ranks import Ranks
from tests.zero_conventions import deepspeed_states

ROOT = Path(__file__).parents[3]
RECIPES = sorted(ROOT.glob("configs/*xh100.yaml"))

MODEL = "smollm2-135m-instruct"
PROMPT, COMPLETION = 32, 32
PROMPTS, GROUP = 2, 4
MICRO_BATCH_TOKENS = 256
TOLERANCE = 0.2
LAYOUTS = [
    pytest.param(stage, workers, marks=[] if (stage, workers) == (3, 2) else pytest.mark.long)
    for stage in (1, 2, 3)
    for workers in (1, 2)
]
MIB = 2**20


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_states_of_every_recipe_are_what_the_estimators_of_deepspeed_say(recipe: Path):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    config = load_config(recipe)
    trained = [(role, role.trained) for role in roles_of(config) if role.trained is not None]
    assert [role.name for role, _ in trained] == (["actor"] if config.critic is None else ["actor", "critic"])
    for role, settings in trained:
        ((_, path),) = role.models
        shape = known_shape(role.name, path)
        is_scorer = role.name == "critic" or (config.is_offline and config.offline.is_scorer)
        parameters = shape.scorer_parameters if is_scorer else shape.parameters
        offload = {"cpu_offload": settings.offload.optimizer}
        gpus = {"num_gpus_per_node": settings.workers, "num_nodes": 1}
        if settings.zero_stage == 3:
            offload["cpu_offload_params"] = settings.offload.parameters
            _, theirs, _ = estimate_zero3_model_states_mem_needs(parameters, shape.largest_module, **gpus, **offload)
        else:
            assert settings.zero_stage == 2
            _, theirs = estimate_zero2_model_states_mem_needs(parameters, **gpus, **offload)
        ours = deepspeed_states(
            parameters,
            stage=settings.zero_stage,
            workers=settings.workers,
            largest_module=shape.largest_module,
            offload_optimizer=settings.offload.optimizer,
            offload_parameters=settings.offload.parameters,
        )
        assert sum(ours.values()) == pytest.approx(theirs, rel=0.01)
        # The plan has the same weights and optimizer state; it differs in the gradients, as docs/planning.md says.
        planned = trained_memory(config, role.name, settings, shape).held
        for term in ("weights", "optimizer"):
            assert planned[term] == pytest.approx(ours.get(term, 0.0), rel=0.01)
        if settings.zero_stage == 3:
            assert planned["gradients"] == pytest.approx(ours.get("gradients", 0.0), rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("stage", "workers"), LAYOUTS)
def test_the_planned_memory_of_a_worker_is_within_a_fifth_of_what_it_takes(
    make_config: Callable[..., RunConfig], stage: int, workers: int
):
    config = planned(make_config, stage, workers)
    memories, _ = role_memories(config, ClusterShape.of(config))
    growths = measure(config, workers)
    for growth in growths:
        assert memories["actor"].peak / MIB == pytest.approx(growth, rel=TOLERANCE)


def planned(make_config: Callable[..., RunConfig], stage: int, workers: int) -> RunConfig:
    return make_config(
        model={"path": MODEL, "dtype": "float32"},
        data={"kind": "addition", "max_prompt_tokens": PROMPT},
        algorithm={"prompts_per_step": PROMPTS, "group_size": GROUP},
        rollout={"max_tokens": COMPLETION},
        train={"workers": workers, "zero_stage": stage, "micro_batch_tokens": MICRO_BATCH_TOKENS, "packing": "padded"},
        cluster={"accelerator": "cpu"},
    )


def measure(config: RunConfig, workers: int) -> list[float]:
    """MiB that each worker has taken at most since its libraries were imported, in two updates."""
    ranks = Ranks(workers)
    try:
        before = ranks.run(import_libraries)
        ranks.run(load, config)
        for seed in range(2):
            peaks = ranks.run(train, seed)
    finally:
        ranks.close()
    return [round(peak - base) for peak, base in zip(peaks, before, strict=True)]


def import_libraries(member: Member) -> float:
    """MiB resident with everything imported that a trainer needs, and no model."""
    import deepspeed  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import ray_rl.training.trainer  # noqa: F401

    return resident("VmRSS")


TRAINERS: list[Any] = []
"""Of this process, between calls."""


def load(member: Member, config: RunConfig) -> None:
    from ray_rl.app.models import build_actor
    from ray_rl.models.packaged import resolve_model

    TRAINERS.append(build_actor(config, (resolve_model(config.model.path),), member))
    # VmHWM starts again from VmRSS: reading the file takes more for a moment.
    Path("/proc/self/clear_refs").write_text("5")


def train(member: Member, seed: int) -> float:
    """MiB resident at most, since the model is loaded."""
    TRAINERS[0].update(batch(seed))
    return resident("VmHWM")


def resident(kind: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def batch(seed: int) -> TrainBatch:
    """Sequences of full length, with advantages of both signs."""
    rows = PROMPTS * GROUP
    random = np.random.default_rng(seed)
    return make.batch(
        (rows, COMPLETION),
        prompts=[random.integers(0, 49152, PROMPT) for _ in range(PROMPTS)],
        tokens_RT=random.integers(0, 49152, (rows, COMPLETION)).astype(np.int32),
        rollout_logprobs_RT=np.full((rows, COMPLETION), -5.0, np.float32),
        advantages_RT=np.where(np.arange(rows)[:, None] % 2, 1.0, -1.0).repeat(COMPLETION, 1).astype(np.float32),
    )
