"""Adapters over real DeepSpeed (gloo): gradients, the reference without them, and what is published, in any layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.config import RunConfig
from ray_rl.config.adapter import Lora
from ray_rl.models.adapter import inject, is_adapter
from ray_rl.models.policy import WRAPPED
from ray_rl.models.quantised import round_weights
from ray_rl.training.member import Member
from ray_rl.types import TokenBatch
from tests.system.cluster import test_offline_gradients as offline
from tests.system.cluster.gradients import BATCH, EVERY_TERM, EXACT, PARTITION_ALL, token_losses
from tests.system.cluster.ranks import Ranks
from tests.system.cluster.whole_run import whole_run
from tests.tiny_model import write_tiny_model
from tests.unit.models.tiny import one_by_one, relative_error, tiny_llama

ADAPTER = {"kind": "lora", "rank": 4, "alpha": 8}
WIDE = 64
"""Inputs that weights in 4 bits can have."""
LAYOUTS = [
    (0, "padded", 16, False),
    (1, "packed", 4096, True),
    (2, "shared_prefix", 16, False),
    (3, "padded", 16, True),
    (3, "shared_prefix", 4096, False),
]
"""ZeRO stage, packing, tokens of a micro-batch, gradient checkpointing."""

ONLINE: dict[str, Any] = {
    "data": {"kind": "addition"},
    "rewards": [{"kind": "number"}],
    "algorithm": {"kind": "grpo", "reduction": "token_mean", **EVERY_TERM},
}

Make = Callable[..., RunConfig]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(path)
    return str(path)


@pytest.fixture
def make(tmp_path: Path, ranks: Ranks) -> Make:
    def make_for_ranks(stage: int, packing: str, tokens: int, checkpointing: bool, **sections: Any) -> RunConfig:
        train = {
            "workers": ranks.world,
            "zero_stage": stage,
            "packing": packing,
            "micro_batch_tokens": tokens,
            "gradient_checkpointing": checkpointing,
            "logit_chunk_tokens": 2,
            "deepspeed": PARTITION_ALL if stage == 3 else {},
        }
        return RunConfig.model_validate(
            {
                "run": {"name": "test", "dir": str(tmp_path), "steps": 1, "seed": offline.SEED},
                "model": {"path": "tiny", "dtype": "float32", "adapter": ADAPTER},
                "cluster": {"accelerator": "cpu"},
                "train": train,
                **sections,
            }
        )

    return make_for_ranks


def inject_trained(backbone: nn.Module, lora: Lora, *, seed: int, key: str) -> None:
    """Adds adapters that change the results, with the same values everywhere."""
    inject(backbone, lora, seed=seed, key=key)
    adapters = sorted((name, each) for name, each in backbone.named_parameters() if is_adapter(name))
    with torch.no_grad():
        for index, (_, each) in enumerate(adapters):
            each.copy_((0.05 * torch.sin(0.37 * torch.arange(each.numel()) + index)).view(each.shape))


def plain(*, is_rounded: bool, **settings: Any) -> Any:
    """The model without adapters: a wider one with the values of weights in 4 bits, or the usual one."""
    model = tiny_llama(**settings, **({"width": WIDE} if is_rounded else {}))
    if is_rounded:
        round_weights(model.base_model)
    return model


def adapted(*, is_rounded: bool = False, **settings: Any) -> Any:
    """The model with these adapters, without DeepSpeed."""
    model = plain(is_rounded=is_rounded, **settings).requires_grad_(False)
    inject_trained(model.base_model, Lora(**ADAPTER), seed=0, key="model.path")
    return model


def trained(model: nn.Module) -> dict[str, Any]:
    return {name.removeprefix(WRAPPED): each for name, each in model.named_parameters() if each.requires_grad}


@cache
def expected_gradient(*, is_rounded: bool = False) -> dict[str, Tensor]:
    losses, model = token_losses(BATCH, adapted(is_rounded=is_rounded))
    torch.cat(losses).mean().backward()
    return {name: each.grad for name, each in trained(model).items()}


def measured(member: Member, build: Callable[..., Any], batch: TokenBatch) -> dict[str, Any]:
    """Numbers of a trainer whose adapters change its results; `build` makes it."""
    from deepspeed.utils import safe_get_full_grad

    from ray_rl.training import networks
    from ray_rl.training.adapter_stream import MergedStream

    networks.inject, usual = inject_trained, networks.inject
    try:
        trainer = build(member)
    finally:
        networks.inject = usual
    found: dict[str, Any] = {}
    for name, score in (("with", trainer.scores), ("without", trainer.reference_scores), ("again", trainer.scores)):
        scores, whole = score(batch), np.zeros(batch.tokens_RT.shape, np.float32)
        whole[scores.rows] = scores.values_MT
        found[name] = whole
    trainer.accumulate(batch, np.arange(batch.rows))
    found["gradient"] = {name: safe_get_full_grad(each).clone() for name, each in trained(trainer.model).items()}
    stream = MergedStream(trainer.stream, scale=Lora(**ADAPTER).scale)
    found["merged"] = {
        spec.name: None if tensor is None else tensor.clone() for group in stream.groups() for spec, tensor in group
    }
    found["parts"] = [(start, values.clone()) for start, values in stream.slices()]
    found["sizes"] = stream.part_sizes(stream.specs)
    found["saved"] = [name for name, *_ in trainer.zero.slices()]
    return found


def of_actor(config: RunConfig, folder: str, member: Member) -> Any:
    from ray_rl.app.models import build_actor

    return build_actor(config, (folder,), member)


def of_learner(config: RunConfig, folder: str, member: Member) -> Any:
    from ray_rl.app.models_offline import build_learner

    return build_learner(config, (folder,), member)


def require_gradient(found: dict[str, Any], expected: dict[str, Tensor], layout: str) -> None:
    gradient = found["gradient"]
    assert gradient.keys() == expected.keys()
    names = sorted(expected)
    seen, right = (torch.cat([each[name].flatten().double() for name in names]) for each in (gradient, expected))
    assert relative_error(seen, right) < EXACT, layout
    assert right.norm() > 0


def test_the_numbers_of_a_policy_with_adapters_are_those_of_single_sequences_in_every_layout(
    ranks: Ranks, make: Make, folder: str
) -> None:
    right = right_logprobs(is_rounded=False)
    for layout in LAYOUTS:
        shares = ranks.run(measured, partial(of_actor, make(*layout, **ONLINE), folder), BATCH)
        require_numbers(shares, right, expected_gradient(), f"{layout}")
        require_merged(shares, f"{layout}")


def test_over_weights_in_4_bits_they_are_those_of_single_sequences_over_the_values_of_these_weights(
    ranks: Ranks, make: Make, tmp_path: Path
) -> None:
    tiny_llama(width=WIDE).save_pretrained(tmp_path / "wide")
    folder = str(tmp_path / "wide")
    right, quantised = right_logprobs(is_rounded=True), {"path": "tiny", "dtype": "float32"}
    quantised["adapter"] = {**ADAPTER, "quantise": "nf4"}
    for layout in LAYOUTS[:3]:
        config = make(*layout, **ONLINE, model=quantised)
        shares = ranks.run(measured, partial(of_actor, config, folder), BATCH)
        require_numbers(shares, right, expected_gradient(is_rounded=True), f"{layout}")
        require_merged(shares, f"{layout}", is_rounded=True)


@cache
def right_logprobs(*, is_rounded: bool) -> dict[str, NDArray[np.float32]]:
    with torch.no_grad():
        right = {
            name: one_by_one(model, BATCH).numpy() * BATCH.loss_mask_RT
            for name, model in models(is_rounded=is_rounded).items()
        }
    assert np.abs(right["with"] - right["without"]).max() > 0.1
    return right


def require_numbers(
    shares: list[dict[str, Any]], right: dict[str, NDArray[np.float32]], gradient: dict[str, Tensor], layout: str
) -> None:
    for name in ("with", "without", "again"):
        seen = sum(share[name] for share in shares)
        np.testing.assert_allclose(seen, right[name.replace("again", "with")], rtol=0, atol=1e-5, err_msg=layout)
    for share in shares:
        require_gradient(share, gradient, layout)
        assert share["sizes"] == [values.numel() for _, values in share["parts"]], layout
        assert all("lora_" in name or name.startswith("generator/") for name in share["saved"]), layout


def models(*, is_rounded: bool = False) -> dict[str, Any]:
    return {"with": adapted(is_rounded=is_rounded), "without": plain(is_rounded=is_rounded)}


def require_merged(shares: list[dict[str, Any]], layout: str, *, is_rounded: bool = False) -> None:
    """What is published is W + scale * B A, and the parts of the ranks are bit for bit those of the whole."""
    own, merged = dict(adapted(is_rounded=is_rounded).named_parameters()), shares[0]["merged"]
    assert list(merged) == [name for name, _ in tiny_llama().named_parameters()], layout
    changed = 0
    for index, (name, seen) in enumerate(merged.items()):
        stem = name.removesuffix(".weight")
        if f"{stem}.base_layer.weight" in own:
            a, b = (own[f"{stem}.lora_{part}.default.weight"] for part in "AB")
            right = own[f"{stem}.base_layer.weight"] + 2.0 * b @ a
            changed += 1
        else:
            right = own[name]
        torch.testing.assert_close(seen, right, rtol=0, atol=1e-6, msg=f"{layout}: {name}")
        together = torch.full_like(seen.flatten(), torch.nan)
        for start, values in (share["parts"][index] for share in shares):
            together[start : start + values.numel()] = values
        assert torch.equal(together, seen.flatten()), f"{layout}: {name}"
    assert changed == 14


def test_the_gradient_of_a_reward_model_with_adapters_is_that_of_single_sequences(
    ranks: Ranks, make: Make, folder: str
) -> None:
    kind = "reward_model"
    batch, model, head = offline.batch_of(kind), adapted(dtype=torch.float64), offline.head(folder, kind)

    def logits(tokens: Tensor, at: Tensor) -> Tensor:
        return torch.nn.functional.linear(model.model(input_ids=tokens[None]).last_hidden_state[0, at], *head)

    offline.written_out(kind, batch, offline.one_at_a_time(batch, logits)).backward()
    expected = {f"member_0.{name}": each.grad for name, each in trained(model).items()}
    expected["member_0.score.weight"] = head[0].grad
    for layout in LAYOUTS[1::2]:
        config = make(
            *layout,
            data={"kind": "jsonl", "path": "examples.jsonl"},
            algorithm={"kind": kind, **offline.KINDS[kind]},
        )
        for share in ranks.run(measured, partial(of_learner, config, folder), batch):
            require_gradient(share, expected, str(layout))


async def test_ppo_trains_adapters_of_the_policy_and_of_the_critic(
    connected: RunConfig, make_config: Make, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "model")
    config = make_config(
        run={"name": "adapters", "dir": str(tmp_path), "steps": 3},
        model={"path": str(model), "dtype": "float32", "adapter": ADAPTER},
        data={"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        rewards=[{"kind": "length", "target": 2}],
        algorithm={"kind": "ppo", "prompts_per_step": 8},
        rollout={"max_tokens": 16, "max_sequences": 16, "kv_cache_gib": 0.05},
        train={"learning_rate": 1e-3, "workers": 2, "zero_stage": 3},
        critic={"learning_rate": 1e-3},
        weight_sync={"bucket_mib": 1, "timeout_s": 60},
        cluster={"accelerator": "cpu", "address": connected.cluster.address},
    )
    records, _ = await whole_run(config, model)
    for record in records:
        # The engine, with merged matrices, samples from the policy that the trainer computes with its adapters.
        assert record["sync/logprob_gap_mean"] < 1e-4
        assert record["policy/grad_norm"] > 0 and record["critic/grad_norm"] > 0
        assert record["sync/bytes"] == sum(4 * outputs * inputs for outputs, inputs in tiny_matrices())
    # The reference is the policy without its adapters, which begin without an effect.
    first, *later = (record["policy/kl_before_update"] for record in records)
    assert abs(first) < 1e-6 and all(abs(distance) > 1e-6 for distance in later)
    assert not list((tmp_path / "adapters" / "logs").glob("reference*"))


def tiny_matrices() -> list[tuple[int, int]]:
    """Outputs and inputs of the linear layers of `write_tiny_model`, without embeddings and head."""
    return [(128, 128), (64, 128), (64, 128), (128, 128), (256, 128), (256, 128), (128, 256)] * 4
