"""Optimizer steps against TRL's own trainers: the loss, and the gradient of every parameter, from the same tokens.

TRL computes in float64; this project, as always, in float32, on two workers, in several micro-batches with shared
prefixes. Where TRL's loss depends on the split into micro-batches, it has one. What else TRL does otherwise:

- Its DPO ignores `label_smoothing` under the loss `sigmoid`. Its `aot` of one pair at a time is the conservative loss.
- Its ORPO has the prompt in the likelihood, all but the first token. So prompts have one token here.
- KTO's baseline leaves out mismatched pairs that are longer than all examples; TRL does not. So all prompts are of one
  length here, and no such pair exists.
- It has no process reward model, no IPO over sums, and no likelihood as a mean over pairs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ray_rl.batching.pack_examples import pack_examples
from ray_rl.cluster.roles import whole
from ray_rl.config import RunConfig
from ray_rl.loops.reference import Baseline, LiveReference, mismatched
from ray_rl.metrics.metric import reduce_metrics
from ray_rl.training.member import Member
from ray_rl.training.share import Scores
from ray_rl.types import Answer, Example, OfflineBatch, TokenBatch
from tests.system.cluster.ranks import Ranks
from tests.system.cluster.trl_trainers import trl_step
from tests.tiny_reward_model import WORDS, write_tiny_reward_model, write_tiny_tokenizer
from tests.unit.models.tiny import tiny_llama

EXACT = 1e-6
"""Relative error allowed to the loss and to the gradient."""
WORKERS = 2
EXAMPLES = 8
INITIALIZER_RANGE = 0.1
"""Small enough for errors of float32 not to grow over the layers."""


@dataclass(frozen=True)
class Case:
    """A loss, with its settings here and in TRL."""

    kind: str
    own: dict[str, Any]
    trainer: str
    trl: dict[str, Any]
    at_once: int = EXAMPLES
    """Examples of a micro-batch in TRL."""
    prompt_tokens: tuple[int, int] = (1, 6)
    """The shortest and the longest prompt."""
    has_margins: bool = False


SMOOTHING = {"label_smoothing": 0.1}
LIKELIHOOD = {"likelihood": {"coefficient": 0.5, "over": "token"}}
KTO = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
SIMPO = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}
DPO = {"beta": 0.05}
CASES = {
    "sft": Case("sft", {}, "SFT", {"loss_type": "nll"}, at_once=2),
    "dft": Case("sft", {"loss": "dft"}, "SFT", {"loss_type": "dft"}, at_once=2),
    "dpo": Case("dpo", DPO, "DPO", DPO, at_once=4),
    "cdpo": Case("dpo", DPO | SMOOTHING, "DPO", {**DPO, **SMOOTHING, "loss_type": ["aot"]}, at_once=1),
    "robust-dpo": Case(
        "dpo", {**DPO, **SMOOTHING, "smoothing": "robust"}, "DPO", {**DPO, **SMOOTHING, "loss_type": ["robust"]}
    ),
    "dpo-with-likelihood": Case(
        "dpo", DPO | LIKELIHOOD, "DPO", {**DPO, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    ),
    "ipo": Case("ipo", DPO, "DPO", {**DPO, "loss_type": ["ipo"]}, at_once=4),
    "kto": Case("kto", KTO, "KTO", KTO, prompt_tokens=(3, 3)),
    "orpo": Case("orpo", {"beta": 0.3, "over": "token"}, "ORPO", {"beta": 0.3}, prompt_tokens=(1, 1)),
    "simpo": Case("simpo", {}, "CPO", {**SIMPO, "cpo_alpha": 0.0}, at_once=4),
    "simpo-with-likelihood": Case("simpo", LIKELIHOOD, "CPO", {**SIMPO, "cpo_alpha": 0.5}),
    "reward-model": Case("reward_model", {"centering": 0.0}, "Reward", {}, at_once=4),
    "reward-model-with-margins": Case(
        "reward_model",
        {"centering": 0.1},
        "Reward",
        {"center_rewards_coefficient": 0.1},
        at_once=4,
        has_margins=True,
    ),
}


def examples_of(case: Case) -> list[Example]:
    """Examples of different lengths, each with a prompt of its own."""
    random = np.random.default_rng(1)

    def tokens(least: int, most: int) -> NDArray[np.int32]:
        # None of them is the token for padding: TRL's reward model does not read a last one.
        return random.integers(5, len(WORDS), random.integers(least, most + 1)).astype(np.int32)

    def answer() -> Answer:
        return Answer(made := tokens(1, 9), np.ones(len(made), np.bool_))

    return [
        Example(
            id=str(i),
            prompt_ids=(5 + i, *tokens(*case.prompt_tokens)[1:].tolist()),
            answers=(answer(),) if case.kind in ("sft", "kto") else (answer(), answer()),
            label=i % 3 == 0 if case.kind == "kto" else None,
            margin=i / 4 if case.has_margins else None,
        )
        for i in range(EXAMPLES)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a reference from which it has moved, and a reward model."""
    root = tmp_path_factory.mktemp("models")
    random = torch.Generator().manual_seed(9)  # a reference for which KTO's baseline is above its bound, 0
    model = tiny_llama()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight *= INITIALIZER_RANGE / model.config.initializer_range
        model.save_pretrained(root / "policy")
        for weight in model.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=random)
        model.save_pretrained(root / "reference")
    write_tiny_tokenizer(root / "policy")
    write_tiny_reward_model(root / "reward_model", initializer_range=INITIALIZER_RANGE)
    return root


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    started = Ranks(WORKERS)
    yield started
    started.close()


@pytest.fixture(scope="module")
def trl_process() -> Iterator[Ranks]:
    """A process for TRL, which keeps state in globals."""
    pytest.importorskip("trl", reason="trl is not installed; make setup-test installs it")
    started = Ranks(1)
    yield started
    started.close()


def config_for(case: Case, reference: Path) -> RunConfig:
    sections: dict[str, Any] = {}
    if case.kind in ("dpo", "ipo", "kto"):
        sections["reference"] = {"path": str(reference), "when": "during", "workers": WORKERS}
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "model": {"path": "tiny", "dtype": "float32"},
            "data": {"kind": "jsonl", "path": "examples.jsonl"},
            "algorithm": {"kind": case.kind, **case.own},
            "train": {"workers": WORKERS, "zero_stage": 2, "packing": "shared_prefix", "micro_batch_tokens": 48},
            "cluster": {"accelerator": "cpu"},
            **sections,
        }
    )


def scores(member: Member, config: RunConfig, folder: Path, batch: TokenBatch, is_reference: bool) -> Scores:
    from ray_rl.app.models import build_reference
    from ray_rl.app.models_offline import build_learner

    return (build_reference if is_reference else build_learner)(config, [str(folder)], member).scores(batch)


@dataclass(frozen=True)
class Scorer:
    """The log-probabilities of a model in ranks."""

    ranks: Ranks
    config: RunConfig
    folder: Path
    is_reference: bool = False

    async def logprobs(self, batch: TokenBatch) -> NDArray[np.float32]:
        return whole(batch, self.ranks.run(scores, self.config, self.folder, batch, self.is_reference))


def packed(examples: list[Example], ranks: Ranks, config: RunConfig, models: Path) -> OfflineBatch:
    """The batch with what the driver adds to it: sums of the reference, and KTO's baseline."""
    pack = partial(pack_examples, loss_at=config.offline.loss_at)
    batch = pack(examples)
    if config.reference is None:
        return batch
    reference = LiveReference(Scorer(ranks, config, models / "reference", is_reference=True))
    batch = replace(batch, reference_R=asyncio.run(reference.sums(examples, batch)))
    if config.offline.kind == "kto":
        actor = Scorer(ranks, config, models / "policy")
        baseline = Baseline(mismatched(examples), actor=actor, reference=reference, pack=pack)
        batch = replace(batch, baseline=asyncio.run(baseline.of(examples)))
        assert batch.baseline, "a baseline of 0 tells nothing"
    return batch


def own_step(
    member: Member, config: RunConfig, folder: Path, batch: OfflineBatch
) -> tuple[list[Any], dict[str, NDArray[Any]]]:
    from deepspeed.utils import safe_get_full_grad

    from ray_rl.app.models_offline import build_learner

    trainer = build_learner(config, [str(folder)], member)
    metrics = trainer.accumulate(batch, np.arange(batch.rows))
    return metrics, {name: safe_get_full_grad(p).numpy() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_the_gradient_of_a_step_are_those_of_trls_trainer(
    ranks: Ranks, trl_process: Ranks, models: Path, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    folder, examples = models / ("reward_model" if case.kind == "reward_model" else "policy"), examples_of(case)
    settings = {**case.trl, "per_device_train_batch_size": case.at_once}
    ((loss, gradient),) = trl_process.run(
        trl_step, case.trainer, str(folder), str(models / "reference"), examples, settings, tmp_path
    )

    config = config_for(case, models / "reference")
    found = ranks.run(own_step, config, folder, packed(examples, ranks, config, models))
    metrics = reduce_metrics(metric for of_rank, _ in found for metric in of_rank)
    assert metrics[f"{case.kind}/loss"] == pytest.approx(loss, rel=EXACT)
    names = sorted(gradient)
    expected = np.concatenate([gradient[key].ravel() for key in names])
    for _, of_rank in found:
        own = {key.removeprefix("causal_lm.").removeprefix("member_0."): value for key, value in of_rank.items()}
        assert sorted(own) == names
        error = np.concatenate([own[key].ravel() for key in names]) - expected
        assert np.linalg.norm(error) < EXACT * np.linalg.norm(expected)
