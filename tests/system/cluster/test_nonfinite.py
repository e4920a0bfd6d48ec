"""A step with numbers that are not finite, over real DeepSpeed: skipped, it leaves no trace in weights or moments."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_rl.config import RunConfig
from ray_rl.errors import TrainingError
from ray_rl.metrics.metric import reduce_metrics
from ray_rl.training.member import Member
from ray_rl.types import TrainBatch
from tests.system.cluster.ranks import Ranks
from tests.unit.models.tiny import ragged_batch, tiny_llama

Make = Callable[..., RunConfig]

QUARTER = 16
"""Tokens of a micro-batch: several of them."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    """Two ranks."""
    started = Ranks(2)
    yield started
    started.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(path)
    return str(path)


GOOD = ragged_batch((5, 2, 7, 4), (3, 6, 1, 4, 4, 2, 8, 5, 7, 1, 2, 3))


def bad_batch(kind: str) -> TrainBatch:
    """A loss of nan in the tokens of one rank; or a finite loss whose gradient overflows."""
    advantages_RT = GOOD.advantages_RT.copy() if kind == "loss" else np.zeros_like(GOOD.advantages_RT)
    if kind == "loss":
        advantages_RT[4] = np.nan
    else:
        advantages_RT[0, 0] = 1e38
    return replace(GOOD, advantages_RT=advantages_RT)


def train_on(
    member: Member, config: RunConfig, folder: str, batches: Sequence[TrainBatch]
) -> tuple[list[Any], dict[str, NDArray[np.float32]], dict[str, int]]:
    """What each update returned or raised, and then all that the optimizer holds on this rank."""
    from ray_rl.app.models import build_actor

    trainer = build_actor(config, (folder,), member)
    outcomes: list[Any] = []
    for batch in batches:
        try:
            outcomes.append(trainer.update(batch))
        except TrainingError as error:
            outcomes.append(str(error))
    held = {f"{name}/{start}": part.clone().numpy() for name, start, part in trainer.zero.slices()}
    return outcomes, held, trainer.zero.state()


@pytest.fixture(scope="module")
def train(pair: Ranks, make_config: Make, folder: str) -> Callable[..., list[Any]]:
    """Trains on batches by new trainers, the same only once; answers by rank."""

    @cache
    def trained(bad: tuple[str, ...], stage: int, dtype: str, on_nonfinite: str, temperature: float) -> list[Any]:
        config = make_config(
            model={"path": "tiny", "dtype": dtype},
            train={
                "workers": pair.world,
                "zero_stage": stage,
                "micro_batch_tokens": QUARTER,
                "learning_rate": 1e-2,
                "on_nonfinite": on_nonfinite,
            },
            # The loss is the advantage over the count, whatever the temperature; its gradient is divided by that.
            rollout={"temperature": temperature},
            cluster={"accelerator": "cpu"},
        )
        return pair.run(train_on, config, folder, [GOOD, *map(bad_batch, bad), GOOD])

    return trained


@pytest.mark.parametrize(
    ("stage", "dtype", "kind"),
    [
        *((stage, "float32", "loss") for stage in (0, 1, 3)),
        *((stage, "bfloat16", "loss") for stage in (1, 2, 3)),
        (0, "float32", "gradient"),
        (2, "bfloat16", "gradient"),
        (3, "float32", "gradient"),
    ],
)
def test_a_skipped_step_leaves_weights_and_moments_bit_for_bit_and_the_next_step_is_right(
    train: Callable[..., list[Any]], stage: int, dtype: str, kind: str
) -> None:
    temperature = 1e-3 if kind == "gradient" else 1.0
    straight = train((), stage, dtype, "skip", temperature)
    skipping = train((kind,), stage, dtype, "skip", temperature)
    for (_, expected, counted), (_, held, state) in zip(straight, skipping, strict=True):
        assert held.keys() == expected.keys()
        assert all(np.array_equal(held[name], value) for name, value in expected.items())
        assert state == counted | {"steps": counted["steps"] + 1}
    metrics = [reduce_metrics(m for outcomes, _, _ in skipping for m in outcomes[step]) for step in range(3)]
    assert [line.get("policy/skipped_optimizer_steps") for line in metrics] == [None, 1, None]
    assert ["policy/grad_norm" in line for line in metrics] == [True, False, True]


def test_a_step_that_stops_the_run_forgets_its_gradient_too(train: Callable[..., list[Any]]) -> None:
    straight = train((), 3, "float32", "skip", 1.0)
    stopped = train(("loss",), 3, "float32", "stop", 1.0)
    for (_, expected, counted), (outcomes, held, state) in zip(straight, stopped, strict=True):
        assert "non-finite loss on at least one rank" in outcomes[1]
        assert all(np.array_equal(held[name], value) for name, value in expected.items())
        assert state == counted
