"""The critic and the sharded reference over real DeepSpeed (gloo)."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_rl.config import RunConfig
from ray_rl.metrics.metric import Metric, reduce_metrics
from ray_rl.training.member import Member
from ray_rl.types import TrainBatch
from tests.system.cluster.ranks import Ranks
from tests.unit.models.tiny import one_by_one, ragged_batch, relative_error, tiny_llama

EXACT = 1e-5
"""Relative error allowed to float32 gradients."""
VALUE_CLIP = 0.5
STAGES = (0, 1, 2, 3)
QUARTER = 16
"""Tokens of a micro-batch, so that there are several."""
PARTITION_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}}

Make = Callable[..., RunConfig]

pytestmark = pytest.mark.usefixtures("one_thread")


def reward_model() -> Any:
    """The tiny Llama with a head for one label: with the critic's own head of zeros no gradient would reach it."""
    from transformers import LlamaForSequenceClassification

    llama = tiny_llama()
    llama.config.num_labels = 1
    model = LlamaForSequenceClassification(llama.config)
    model.model.load_state_dict(llama.model.state_dict())
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place: Path = tmp_path_factory.mktemp("models")
    tiny_llama().save_pretrained(place / "policy")
    reward_model().save_pretrained(place / "reward")
    return {"policy": str(place / "policy"), "reward": str(place / "reward")}


@pytest.fixture
def make(make_config: Make, ranks: Ranks) -> Make:
    def make_for_ranks(*, offload: bool = False, **critic: Any) -> RunConfig:
        deepspeed = PARTITION_ALL if critic.get("zero_stage") == 3 else {}
        own = {"workers": ranks.world, "micro_batch_tokens": QUARTER, "deepspeed": deepspeed}
        return make_config(
            algorithm={"kind": "ppo", "group_size": 1, "update_epochs": 1, "kl": {"coefficient": 0.0, "place": "loss"}},
            critic=own | {"value_clip": VALUE_CLIP} | critic,
            train={"micro_batch_tokens": QUARTER, "logit_chunk_tokens": 2},
            reference={"workers": ranks.world, "zero_stage": 3, "offload": offload},
            cluster={"accelerator": "cpu"},
        )

    return make_for_ranks


@cache
def valued_batch() -> TrainBatch:
    batch = ragged_batch((5, 2, 7, 4), (3, 6, 1, 4, 4, 2, 8, 5, 7, 1, 2, 3))
    random = np.random.default_rng(1)
    old_RT, returns_RT = (random.normal(0, 1, batch.tokens_RT.shape).astype(np.float32) for _ in range(2))
    return replace(batch, old_values_RT=old_RT, returns_RT=returns_RT)


BATCH = valued_batch()


def values_one_by_one(model: Any) -> Tensor:
    """float32 [R, T], the head on the hidden state before each token, each sequence by itself; 0 outside the mask."""
    values_RT = torch.zeros(BATCH.tokens_RT.shape)
    for row, length in enumerate(BATCH.lengths_R):
        prompt = BATCH.prompt_ids[row // BATCH.group_size]
        tokens = torch.from_numpy(np.concatenate([prompt, BATCH.tokens_RT[row, :length]])).long()
        hidden = model.model(input_ids=tokens[None]).last_hidden_state[0]
        values_RT[row, :length] = model.score(hidden)[len(prompt) - 1 : -1, 0]
    return values_RT * torch.from_numpy(BATCH.loss_mask_RT)


def plain_gradients() -> dict[str, Tensor]:
    """Of the clipped value loss, a mean over all loss tokens; by name."""
    model = reward_model()
    mask_RT = torch.from_numpy(BATCH.loss_mask_RT)
    values, old, returns = (
        array_RT[mask_RT]
        for array_RT in (
            values_one_by_one(model),
            torch.from_numpy(BATCH.old_values_RT),
            torch.from_numpy(BATCH.returns_RT),
        )
    )
    near = old + (values - old).clamp(-VALUE_CLIP, VALUE_CLIP)
    torch.maximum((values - returns) ** 2, (near - returns) ** 2).div(2).mean().backward()
    named = {
        f"backbone.{name.removeprefix('model.')}": p for name, p in model.named_parameters() if "score" not in name
    }
    return {name: p.grad for name, p in named.items()} | {"head.weight": model.score.weight.grad}


def read_gradients(member: Member, config: RunConfig, folder: str) -> dict[str, NDArray[np.float32]]:
    from deepspeed.utils import safe_get_full_grad

    from ray_rl.app.models import build_critic

    critic = build_critic(config, (folder,), member)
    critic.accumulate(BATCH, np.arange(BATCH.rows))
    return {name: safe_get_full_grad(p).numpy() for name, p in critic.model.named_parameters()}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("packing", ["padded", "shared_prefix"])
def test_the_gradient_of_the_value_loss_depends_on_the_batch_alone(
    ranks: Ranks, make: Make, folders: dict[str, str], stage: int, packing: str
) -> None:
    expected = plain_gradients()
    for found in ranks.run(read_gradients, make(zero_stage=stage, packing=packing), folders["reward"]):
        assert set(found) == {*expected, "head.bias"}
        for name, gradient in expected.items():
            assert relative_error(torch.from_numpy(found[name]), gradient) < EXACT, name


def read_values(member: Member, config: RunConfig, folder: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from ray_rl.app.models import build_critic

    scores = build_critic(config, (folder,), member).scores(BATCH)
    return scores.rows, scores.values_MT


def assembled(shares: list[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> NDArray[np.float32]:
    values_RT = np.zeros(BATCH.tokens_RT.shape, np.float32)
    for rows, values_MT in shares:
        values_RT[rows] += values_MT
    return values_RT


@pytest.mark.parametrize("stage", [1, 3])
def test_a_critic_from_a_reward_model_starts_with_its_head(
    ranks: Ranks, make: Make, folders: dict[str, str], stage: int
) -> None:
    with torch.no_grad():
        expected_RT = values_one_by_one(reward_model()).numpy()
    found_RT = assembled(ranks.run(read_values, make(zero_stage=stage), folders["reward"]))
    np.testing.assert_allclose(found_RT, expected_RT, atol=EXACT)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_critic_from_a_language_model_starts_with_values_of_zero(
    ranks: Ranks, make: Make, folders: dict[str, str], stage: int
) -> None:
    assert not assembled(ranks.run(read_values, make(zero_stage=stage), folders["policy"])).any()


def learn(member: Member, config: RunConfig, folder: str) -> tuple[list[Metric], float]:
    """Metrics of the first update, and the mean squared error after fifteen."""
    from ray_rl.app.models import build_critic

    critic = build_critic(config, (folder,), member)
    constant = replace(
        BATCH, old_values_RT=np.zeros_like(BATCH.old_values_RT), returns_RT=np.ones_like(BATCH.returns_RT)
    )
    first = critic.update(constant)
    for _ in range(14):
        critic.update(constant)
    scores = critic.scores(constant)
    mask_MT = constant.loss_mask_RT[scores.rows]
    return first, float(((scores.values_MT - 1.0)[mask_MT] ** 2).mean())


@pytest.mark.parametrize("stage", [1, 3])
def test_a_critic_learns_its_targets_and_says_how_it_does(
    ranks: Ranks, make: Make, folders: dict[str, str], stage: int
) -> None:
    config = make(zero_stage=stage, learning_rate=3e-2, value_clip=None)
    outcomes = ranks.run(learn, config, folders["policy"])
    metrics = reduce_metrics(metric for found, _ in outcomes for metric in found)
    assert metrics["critic/loss"] == pytest.approx(0.5)
    assert metrics["critic/clip_fraction"] == 0.0
    assert metrics["critic/grad_norm"] > 0
    assert metrics["critic/learning_rate"] == 3e-2
    assert max(error for _, error in outcomes) < 0.3


def read_reference(member: Member, config: RunConfig, folder: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from ray_rl.app.models import build_reference

    scores = build_reference(config, (folder,), member).scores(BATCH)
    return scores.rows, scores.values_MT


@pytest.mark.parametrize("offload", [False, True])
def test_a_reference_that_its_workers_share_gives_the_log_probabilities_of_the_whole_model(
    ranks: Ranks, make: Make, folders: dict[str, str], offload: bool
) -> None:
    with torch.no_grad():
        expected_RT = one_by_one(tiny_llama(), BATCH).numpy() * BATCH.loss_mask_RT
    found_RT = assembled(ranks.run(read_reference, make(offload=offload), folders["policy"]))
    np.testing.assert_allclose(found_RT, expected_RT, atol=EXACT)
