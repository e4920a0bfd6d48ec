"""Objectives without rollouts over real DeepSpeed (gloo): the gradient is that of single sequences in any layout."""

from __future__ import annotations

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
from torch.nn.functional import logsigmoid

from ray_rl.batching.pack_examples import pack_examples
from ray_rl.config import RunConfig
from ray_rl.metrics.metric import reduce_metrics
from ray_rl.models.classifier import load_classifier
from ray_rl.training.member import Member
from ray_rl.types import Answer, Example, LossAt, OfflineBatch
from tests.system.cluster.gradients import EXACT, PARTITION_ALL
from tests.system.cluster.ranks import Ranks
from tests.unit.models.tiny import VOCABULARY, relative_error, tiny_llama

WHOLE, SOME, ONE = 4096, 48, 1
"""Tokens of a micro-batch: one micro-batch, several examples in each, or one."""
LAYOUTS = [
    (0, "padded", SOME),
    (0, "shared_prefix", ONE),
    (1, "packed", WHOLE),
    (2, "shared_prefix", SOME),
    (3, "padded", ONE),
    (3, "packed", SOME),
]
KINDS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"beta": 0.5, "label_smoothing": 0.1, "likelihood": {"coefficient": 0.5}},
    "kto": {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.5},
    "reward_model": {"centering": 0.1},
    "process_reward_model": {},
}
SEED = 5

pytestmark = pytest.mark.usefixtures("one_thread")


def answer(random: np.random.Generator, length: int) -> Answer:
    mask = random.random(length) < 0.7
    mask[int(random.integers(length))] = True
    return Answer(random.integers(3, VOCABULARY, length).astype(np.int32), mask)


@cache
def batch_of(kind: str) -> OfflineBatch:
    """Seven examples of very different lengths, an odd number for two workers."""
    random = np.random.default_rng(0)
    answers = 2 if kind in ("dpo", "reward_model") else 1
    examples = []
    for i, (prompt, lengths) in enumerate(
        [(5, (3, 9)), (2, (6, 1)), (7, (4, 4)), (1, (2, 8)), (9, (1, 1)), (3, (12, 5)), (4, (7, 2))]
    ):
        made = tuple(answer(random, length) for length in lengths[:answers])
        examples.append(
            Example(
                id=str(i),
                prompt_ids=tuple(random.integers(3, VOCABULARY, prompt).tolist()),
                answers=made,
                label=i % 3 == 0 if kind == "kto" else None,
                margin=i / 4 if kind == "reward_model" else None,
                step_labels=random.random(made[0].loss_mask.sum()).astype(np.float32),
            )
        )
    loss_at: LossAt = {"reward_model": "end", "process_reward_model": "steps"}.get(kind, "tokens")
    batch = pack_examples(examples, loss_at=loss_at)
    if kind in ("dpo", "kto"):
        reference_R = random.normal(-3.0, 1.0, batch.rows) * batch.loss_mask_RT.sum(1)
        batch = replace(batch, reference_R=reference_R, baseline=0.3 if kind == "kto" else None)
    return batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(path)
    return str(path)


@pytest.fixture
def make(tmp_path: Path, ranks: Ranks) -> Callable[..., RunConfig]:
    def make_for_ranks(kind: str, *, zero_stage: int = 0, **train: Any) -> RunConfig:
        return RunConfig.model_validate(
            {
                "run": {"name": "test", "dir": str(tmp_path), "steps": 1, "seed": SEED},
                "model": {"path": "tiny", "dtype": "float32"},
                "data": {"kind": "jsonl", "path": "examples.jsonl"},
                "algorithm": {"kind": kind, **KINDS[kind]},
                "train": {
                    "workers": ranks.world,
                    "zero_stage": zero_stage,
                    "logit_chunk_tokens": 4,
                    "deepspeed": PARTITION_ALL if zero_stage == 3 else {},
                    **train,
                },
                "cluster": {"accelerator": "cpu"},
            }
        )

    return make_for_ranks


def head(folder: str, kind: str) -> Any:
    """The weights and the bias of a new head, in float64."""
    made = load_classifier(
        folder,
        "end" if kind == "reward_model" else "steps",
        head_seed=SEED,
        dtype="float32",
        attention="eager",
        trust_remote_code=False,
    )
    return torch.nn.ParameterList([weight.detach().double() for weight in made.score.parameters()])


def one_at_a_time(batch: OfflineBatch, read: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """What is read of each sequence: `read(tokens, positions that predict loss tokens)`."""
    found = []
    for row, length in enumerate(batch.lengths_R):
        prompt = batch.prompt_ids[row // batch.group_size]
        tokens = torch.from_numpy(np.concatenate([prompt, batch.tokens_RT[row, :length]])).long()
        times = np.flatnonzero(batch.loss_mask_RT[row])
        found.append(read(tokens, torch.from_numpy(len(prompt) + times - 1)))
    return found


def expected(folder: str, kind: str) -> tuple[float, Tensor]:
    """Loss and gradient in float64, with the formulas written out for single sequences."""
    batch, model = batch_of(kind), tiny_llama(dtype=torch.float64)
    weights = list(model.parameters())
    if kind in ("sft", "dpo", "kto"):

        def logprobs(tokens: Tensor, at: Tensor) -> Tensor:
            return model(input_ids=tokens[None]).logits[0, at].log_softmax(-1)[torch.arange(len(at)), tokens[at + 1]]

        read = one_at_a_time(batch, logprobs)
    else:
        parts = head(folder, kind)
        weights += list(parts)

        def logits(tokens: Tensor, at: Tensor) -> Tensor:
            # The states before loss tokens do not see the dummy.
            return torch.nn.functional.linear(model.model(input_ids=tokens[None]).last_hidden_state[0, at], *parts)

        read = one_at_a_time(batch, logits)
    loss = written_out(kind, batch, read)
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, weights)])


def written_out(kind: str, batch: OfflineBatch, read: list[Tensor]) -> Tensor:
    match kind:
        case "sft":
            return -torch.cat(read).mean()
        case "dpo":
            assert batch.reference_R is not None
            ratios = [row.sum() - reference for row, reference in zip(read, batch.reference_R.tolist(), strict=True)]
            gaps = torch.stack([0.5 * (c - r) for c, r in zip(ratios[::2], ratios[1::2], strict=True)])
            return (-0.9 * logsigmoid(gaps) - 0.1 * logsigmoid(-gaps)).mean() - 0.5 * torch.cat(read[::2]).mean()
        case "kto":
            assert batch.reference_R is not None
            assert batch.labels_R is not None
            losses = []
            for row, reference, is_good in zip(read, batch.reference_R, batch.labels_R, strict=True):
                gap = 0.5 * (row.sum() - reference - 0.3)
                losses.append(1.5 * (1 - torch.sigmoid(gap)) if is_good else 0.5 * (1 - torch.sigmoid(-gap)))
            return torch.stack(losses).mean()
        case "reward_model":
            assert batch.margins_J is not None
            chosen, rejected = torch.cat(read[::2])[:, 0], torch.cat(read[1::2])[:, 0]
            margins = torch.from_numpy(batch.margins_J)
            return (-logsigmoid(chosen - rejected - margins) + 0.1 * (chosen + rejected) ** 2).mean()
        case _:
            assert batch.labels_RT is not None
            labels = torch.from_numpy(batch.labels_RT[batch.loss_mask_RT])
            odds = torch.cat(read).log_softmax(-1)
            return -(labels * odds[:, 1] + (1 - labels) * odds[:, 0]).mean()


def read_gradient(
    member: Member, config: RunConfig, folder: str, batch: OfflineBatch
) -> tuple[list[Any], NDArray[np.float32]]:
    from deepspeed.utils import safe_get_full_grad

    from ray_rl.app.models_offline import offline_parts
    from ray_rl.training.trainer import Trainer

    trainer = Trainer(*offline_parts(config, (folder,)), member)
    evaluated = trainer.evaluate(batch)
    trainer.accumulate(batch, np.arange(batch.rows))
    return evaluated, np.concatenate([safe_get_full_grad(p).flatten().numpy() for p in trainer.model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_single_sequences_in_every_layout(
    ranks: Ranks, make: Callable[..., RunConfig], folder: str, kind: str
) -> None:
    loss, gradient = expected(folder, kind)
    for stage, packing, tokens in LAYOUTS if kind in ("dpo", "reward_model") else LAYOUTS[::2]:
        config = make(kind, zero_stage=stage, packing=packing, micro_batch_tokens=tokens)
        found = ranks.run(read_gradient, config, folder, batch_of(kind))
        metrics = reduce_metrics(metric for of_rank, _ in found for metric in of_rank)
        layout = f"ZeRO {stage}, {packing}, {tokens} tokens"
        assert metrics[f"{kind}/loss"] == pytest.approx(loss, rel=1e-6), layout
        for _, of_rank in found:
            error = relative_error(torch.from_numpy(of_rank).double(), gradient)
            assert error < EXACT, f"{layout}: {error}"


def exported(member: Member, config: RunConfig, folder: str, batch: OfflineBatch, to: str) -> tuple[Any, Any]:
    """The scores after an update, of the rows of this rank."""
    from ray_rl.app.models_offline import offline_parts
    from ray_rl.checkpoint.hugging_face import export_models
    from ray_rl.training.trainer import Trainer

    trainer = Trainer(*offline_parts(config, (folder,)), member)
    trainer.update(batch)
    parameters = ((spec.name, tensor) for group in trainer.stream.groups() for spec, tensor in group)
    export_models(trainer.model.exported, parameters, source=folder, to=Path(to), step=1)
    scores = trainer.scores(batch)
    return scores.rows, scores.values_MT


@pytest.mark.parametrize("stage", [1, 3])
def test_transformers_gives_the_scores_of_the_exported_reward_model(
    ranks: Ranks, make: Callable[..., RunConfig], folder: str, tmp_path: Path, stage: int
) -> None:
    from transformers import AutoModelForSequenceClassification

    from tests.tiny_model import write_tiny_model

    source, batch = write_tiny_model(tmp_path / "source"), batch_of("reward_model")

    def of_model(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """Tokens of this model, whose vocabulary is smaller; many are its end token."""
        return np.where(tokens % 3 == 0, 1, 4 + tokens % 20).astype(np.int32)

    prompts = tuple(of_model(prompt) for prompt in batch.prompt_ids)
    batch = replace(batch, tokens_RT=of_model(batch.tokens_RT), prompt_ids=prompts)
    config = make("reward_model", zero_stage=stage, learning_rate=1e-2)
    shares = ranks.run(exported, config, str(source), batch, str(tmp_path / "export"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export", dtype=torch.float32)
    found = {row: values_T.sum() for rows, values_MT in shares for row, values_T in zip(rows, values_MT, strict=True)}
    assert len(found) == batch.rows
    for row, length in enumerate(batch.lengths_R):
        tokens = np.concatenate([batch.prompt_ids[row // 2], batch.tokens_RT[row, : length - 1]])
        with torch.no_grad():
            score = float(loaded(input_ids=torch.from_numpy(tokens).long()[None]).logits)
        assert found[row] == pytest.approx(score, abs=1e-4)
