"""The trainer over real DeepSpeed (gloo): the gradient depends on the batch alone, and bad numbers reach no weight."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ray_rl.config import RunConfig
from ray_rl.errors import TrainingError
from ray_rl.metrics.metric import Metric, reduce_metrics
from ray_rl.training.member import Member
from ray_rl.types import TrainBatch
from tests.system.cluster.gradients import (
    BATCH,
    CLIP,
    EVERY_TERM,
    EXACT,
    PARTITION_ALL,
    plain_gradient,
    read_gradient,
    token_losses,
)
from tests.system.cluster.ranks import Ranks
from tests.unit.models.tiny import gradients, one_by_one, relative_error, tiny_llama

STAGES = (0, 1, 2, 3)
PACKINGS = ("padded", "packed", "shared_prefix")
WHOLE, QUARTER = 4096, 16
"""Tokens of a micro-batch: one micro-batch, or at least four."""

Make = Callable[..., RunConfig]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(path)
    return str(path)


@pytest.fixture
def make(make_config: Make, ranks: Ranks) -> Make:
    """A configuration for these ranks, in float32, with a chunk of logits for every two tokens."""

    def make_for_ranks(*, algorithm: dict[str, Any] | None = None, temperature: float = 1.0, **train: Any) -> RunConfig:
        deepspeed = PARTITION_ALL if train.get("zero_stage") == 3 else {}
        return make_config(
            algorithm=algorithm or {},
            train={"workers": ranks.world, "logit_chunk_tokens": 2, "deepspeed": deepspeed} | train,
            rollout={"temperature": temperature},
            cluster={"accelerator": "cpu"},
        )

    return make_for_ranks


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("packing", PACKINGS)
def test_the_gradient_is_the_same_for_any_workers_accumulation_and_micro_batch(
    ranks: Ranks, make: Make, folder: str, stage: int, packing: str
) -> None:
    for reduction, micro_batch in itertools.product(("token_mean", "sequence_mean"), (WHOLE, QUARTER)):
        config = make(
            algorithm=EVERY_TERM | {"reduction": reduction},
            zero_stage=stage,
            packing=packing,
            micro_batch_tokens=micro_batch,
        )
        for gradient in ranks.run(read_gradient, config, folder, BATCH):
            error = relative_error(torch.from_numpy(gradient), plain_gradient(reduction))
            assert error < EXACT, f"{reduction}, {micro_batch} tokens a micro-batch: {error}"


def test_the_batch_tells_global_counts_from_local_ones() -> None:
    losses, model = token_losses(BATCH)
    halves = torch.cat(losses[:6]).mean(), torch.cat(losses[6:]).mean()
    torch.stack(halves).mean().backward()
    assert relative_error(gradients(model), plain_gradient("token_mean")) > 1000 * EXACT


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_gradient_that_is_checkpointed_is_the_same(ranks: Ranks, make: Make, folder: str, packing: str) -> None:
    config = make(algorithm=EVERY_TERM, zero_stage=3, packing=packing, gradient_checkpointing=True)
    for gradient in ranks.run(read_gradient, config, folder, BATCH):
        assert relative_error(torch.from_numpy(gradient), plain_gradient("token_mean")) < EXACT


def count_gathers(member: Member, config: RunConfig, folder: str) -> int:
    """Collectives of DeepSpeed's that gather parameters, in an update of the whole batch and two of a part of it."""
    from deepspeed.runtime.zero import partition_parameters

    from ray_rl.app.models import build_actor

    trainer, gathers = build_actor(config, (folder,), member), 0
    gather = partition_parameters._dist_allgather_fn

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal gathers
        gathers += 1
        return gather(*args, **kwargs)

    partition_parameters._dist_allgather_fn = counted
    try:
        for rows in (BATCH.rows, 6, 3):
            trainer.accumulate(BATCH, np.arange(rows))
    finally:
        partition_parameters._dist_allgather_fn = gather
    return gathers


def test_zero_3_gathers_no_more_often_for_more_chunks_of_logits(ranks: Ranks, make: Make, folder: str) -> None:
    one, many = (
        ranks.run(count_gathers, make(zero_stage=3, logit_chunk_tokens=tokens), folder) for tokens in (1000, 1)
    )
    assert one == many
    assert ranks.world == 1 or one[0] > 0


def parameters_of(trainer: Any) -> dict[str, NDArray[np.float32]]:
    """What the stream yields, on the rank that gets it."""
    groups = list(trainer.stream.groups())
    return {spec.name: value.clone().numpy() for group in groups for spec, value in group if value is not None}


def read_parameters(member: Member, config: RunConfig, folder: str) -> dict[str, NDArray[np.float32]]:
    from ray_rl.app.models import build_actor

    return parameters_of(build_actor(config, (folder,), member))


@pytest.mark.parametrize("stage", STAGES)
def test_the_stream_yields_the_whole_parameters_of_the_model_on_disk(
    ranks: Ranks, make: Make, folder: str, stage: int
) -> None:
    expected = {name: value.detach().numpy() for name, value in tiny_llama().named_parameters()}
    first, *others = ranks.run(read_parameters, make(zero_stage=stage), folder)
    assert list(first) == list(expected)
    assert all(np.array_equal(first[name], value) for name, value in expected.items())
    assert not any(others)


def read_update(
    member: Member, config: RunConfig, folder: str, batch: TrainBatch
) -> tuple[str | list[Metric], dict[str, float]]:
    """The metrics of an update, or its error, and the largest change of each parameter."""
    from ray_rl.app.models import build_actor

    trainer = build_actor(config, (folder,), member)
    before = parameters_of(trainer)
    try:
        outcome: str | list[Metric] = trainer.update(batch)
    except TrainingError as error:
        outcome = str(error)
    after = parameters_of(trainer)
    return outcome, {name: float(np.abs(after[name] - value).max()) for name, value in before.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_nan_on_one_rank_stops_all_and_changes_nothing(
    ranks: Ranks, make: Make, folder: str, stage: int
) -> None:
    advantages_RT = BATCH.advantages_RT.copy()
    advantages_RT[4] = np.nan
    outcomes = ranks.run(
        read_update, make(zero_stage=stage), folder, replace(BATCH, advantages_RT=advantages_RT, old_logprobs_RT=None)
    )
    assert all("non-finite loss on at least one rank" in error for error, _ in outcomes)
    assert not any(outcomes[0][1].values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_changes_nothing(ranks: Ranks, make: Make, folder: str, stage: int) -> None:
    # The loss is the advantage over the count, whatever the temperature; the gradient is divided by the temperature.
    advantages_RT = np.zeros_like(BATCH.advantages_RT)
    advantages_RT[0, 0] = 1e38
    huge = replace(BATCH, advantages_RT=advantages_RT, old_logprobs_RT=None)
    outcomes = ranks.run(read_update, make(zero_stage=stage, temperature=1e-3), folder, huge)
    assert all("the norm of its gradient is not" in error for error, _ in outcomes)
    assert not any(outcomes[0][1].values())


@pytest.mark.parametrize("stage", STAGES)
def test_an_update_reports_the_norm_of_the_gradient_and_moves_every_parameter(
    ranks: Ranks, make: Make, folder: str, stage: int
) -> None:
    config = make(algorithm=EVERY_TERM, zero_stage=stage, micro_batch_tokens=QUARTER, learning_rate=1e-3)
    outcomes = ranks.run(read_update, config, folder, BATCH)
    metrics = reduce_metrics(metric for rank, _ in outcomes for metric in rank)
    assert metrics["policy/grad_norm"] == pytest.approx(float(plain_gradient("token_mean").norm()), rel=EXACT)
    # The first step of Adam moves a weight by the learning rate, whatever its gradient.
    assert all(change == pytest.approx(1e-3, rel=0.01) for change in outcomes[0][1].values())


def test_a_batch_without_advantages_changes_nothing_on_any_rank(ranks: Ranks, make: Make, folder: str) -> None:
    idle = replace(BATCH, advantages_RT=np.zeros_like(BATCH.advantages_RT), kl_coefficient=0.0)
    outcomes = ranks.run(read_update, make(zero_stage=1), folder, idle)
    metrics = reduce_metrics(metric for rank, _ in outcomes for metric in rank)
    assert metrics == {"train/skipped_fraction": 1.0}
    assert not any(outcomes[0][1].values())


def test_later_epochs_on_a_batch_are_clipped_against_the_policy_before_it(
    ranks: Ranks, make: Make, folder: str
) -> None:
    with torch.no_grad():
        old_logprobs_RT = one_by_one(tiny_llama(), BATCH).numpy()
    config = make(algorithm={"update_epochs": 2, "minibatches": 2}, zero_stage=2, learning_rate=1e-2)
    outcomes = ranks.run(read_update, config, folder, replace(BATCH, old_logprobs_RT=old_logprobs_RT))
    metrics = reduce_metrics(metric for rank, _ in outcomes for metric in rank)
    assert 0 < metrics["policy/clip_fraction"] < 1
    assert metrics["policy/ratio_max"] > 1 + CLIP


def read_logprobs(member: Member, config: RunConfig, folder: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from ray_rl.app.models import build_actor

    scores = build_actor(config, (folder,), member).scores(BATCH)
    return scores.rows, scores.values_MT


@pytest.mark.parametrize("stage", STAGES)
def test_the_ranks_compute_the_logprobs_of_every_loss_token_between_them(
    ranks: Ranks, make: Make, folder: str, stage: int
) -> None:
    with torch.no_grad():
        expected_RT = one_by_one(tiny_llama(), BATCH).numpy() * BATCH.loss_mask_RT
    logprobs_RT = np.zeros_like(expected_RT)
    for rows, values_MT in ranks.run(read_logprobs, make(zero_stage=stage, micro_batch_tokens=QUARTER), folder):
        logprobs_RT[rows] += values_MT
    np.testing.assert_allclose(logprobs_RT, expected_RT, atol=EXACT)
