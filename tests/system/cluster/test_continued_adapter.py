"""Trainers that continue adapters, over real DeepSpeed (gloo), against peft's own model in every layout."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_rl.checkpoint.slices import SliceReader, write_slices
from ray_rl.config import RunConfig
from ray_rl.models.policy import WRAPPED
from ray_rl.training.member import Member
from ray_rl.types import TokenBatch
from tests.adapter_folder import peft_model, write_adapters
from tests.system.cluster import test_offline_gradients as offline
from tests.system.cluster.gradients import BATCH, EVERY_TERM, EXACT, PARTITION_ALL, token_losses
from tests.system.cluster.ranks import Ranks
from tests.unit.models.tiny import one_by_one, relative_error, tiny_llama

LAYOUTS = [
    (0, "padded", 16, False),
    (3, "padded", 16, True),
    pytest.param((1, "packed", 4096, True), marks=pytest.mark.long),
    pytest.param((2, "shared_prefix", 16, False), marks=pytest.mark.long),
    pytest.param((3, "shared_prefix", 4096, False), marks=pytest.mark.long),
]
"""ZeRO stage, packing, tokens of a micro-batch, gradient checkpointing."""
SIZES = {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["q_proj", "down_proj"]}
LOGPROBS = 1e-5

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The folder of a model, and that of its adapters."""
    path = tmp_path_factory.mktemp("models")
    tiny_llama().save_pretrained(path / "model")
    write_adapters(path / "adapters", tiny_llama(), base=str(path / "model"))
    return str(path / "model"), str(path / "adapters")


def config_of(
    ranks: Ranks, place: Path, folders: tuple[str, str], layout: tuple[int, str, int, bool], **sections: Any
) -> RunConfig:
    stage, packing, tokens, checkpointing = layout
    train = {
        "workers": ranks.world,
        "zero_stage": stage,
        "packing": packing,
        "micro_batch_tokens": tokens,
        "gradient_checkpointing": checkpointing,
        "logit_chunk_tokens": 2,
        "learning_rate": 1e-2,
        "deepspeed": PARTITION_ALL if stage == 3 else {},
    }
    online = {
        "data": {"kind": "addition"},
        "rewards": [{"kind": "number"}],
        "algorithm": {"kind": "grpo", "reduction": "token_mean", **EVERY_TERM},
    }
    return RunConfig.model_validate(
        {
            "run": {"name": "test", "dir": str(place), "steps": 8, "seed": offline.SEED},
            "model": {"path": folders[1], "dtype": "float32"},
            "cluster": {"accelerator": "cpu"},
            "train": train,
            **online,
            **sections,
        }
    )


def build(config: RunConfig, folders: tuple[str, str], member: Member) -> Any:
    from ray_rl.app.models import build_actor
    from ray_rl.app.models_offline import build_learner

    return (build_learner if config.is_offline else build_actor)(config, folders, member)


def whole(scores: Any, batch: TokenBatch) -> NDArray[np.float32]:
    """The rows of this rank; 0 elsewhere."""
    values_RT = np.zeros(batch.tokens_RT.shape, np.float32)
    values_RT[scores.rows] = scores.values_MT
    return values_RT


def measured(member: Member, build: Any, batch: Any, saved: Path) -> dict[str, Any]:
    """Log-probabilities and gradient at the start, and what remains of the start after two steps."""
    from deepspeed.utils import safe_get_full_grad

    from ray_rl.training.discard import discard_gradients

    trainer = build(member)
    found: dict[str, Any] = {"first": whole(trainer.scores(batch), batch)}
    found["reference"] = whole(trainer.reference_scores(batch), batch)
    trainer.accumulate(batch, np.arange(batch.rows))
    found["gradient"] = {
        name.removeprefix(WRAPPED): safe_get_full_grad(each).clone()
        for name, each in trainer.model.named_parameters()
        if each.requires_grad
    }
    discard_gradients(trainer.zero.engine)
    for _ in range(2):
        trainer.update(batch)
    found["learnt"] = whole(trainer.scores(batch), batch)
    found["reference later"] = whole(trainer.reference_scores(batch), batch)
    found["sent"] = [spec.name for spec in trainer.stream.specs]
    found["saved"] = [name for name, *_ in trainer.zero.slices()]
    write_slices(saved / f"rank_{member.rank}.safetensors", trainer.zero.slices(), trainer.zero.state())
    trainer.update(batch)
    found["in the end"] = whole(trainer.scores(batch), batch)
    return found


def resumed(member: Member, build: Any, batch: Any, saved: Path) -> dict[str, Any]:
    """The same numbers of a trainer that is restored after these two steps."""
    trainer, reader = build(member), SliceReader(saved)
    trainer.zero.restore(reader.read, reader.states["rank_0"])
    found = {"learnt": whole(trainer.scores(batch), batch)}
    found["reference later"] = whole(trainer.reference_scores(batch), batch)
    trainer.update(batch)
    return found | {"in the end": whole(trainer.scores(batch), batch)}


@cache
def expected() -> tuple[NDArray[np.float32], dict[str, Tensor]]:
    """Log-probabilities and gradient of peft's own model with these adapters."""
    model = peft_model(tiny_llama())
    with torch.no_grad():
        logprobs_RT = one_by_one(model, BATCH).numpy() * BATCH.loss_mask_RT
    losses, _ = token_losses(BATCH, model)
    torch.cat(losses).mean().backward()
    found = {name.removeprefix("base_model.model."): each.grad for name, each in model.named_parameters()}
    return logprobs_RT, {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_policy_starts_as_pefts_model_and_its_reference_stays_there_also_when_resumed(
    ranks: Ranks, folders: tuple[str, str], tmp_path: Path, layout: tuple[int, str, int, bool]
) -> None:
    right, gradient = expected()
    with torch.no_grad():
        bare = one_by_one(tiny_llama(), BATCH).numpy() * BATCH.loss_mask_RT
    assert np.abs(right - bare).max() > 0.1
    make = partial(build, config_of(ranks, tmp_path, folders, layout), folders)
    shares = ranks.run(measured, make, BATCH, tmp_path)
    total = {name: sum(share[name] for share in shares) for name in ("first", "reference", "reference later", "learnt")}
    for name in ("first", "reference", "reference later"):
        np.testing.assert_allclose(total[name], right, rtol=0, atol=LOGPROBS, err_msg=name)
    assert np.abs(total["learnt"] - right).max() > 0.1
    for share in shares:
        require_gradient(share["gradient"], gradient)
        names = "".join(share["sent"] + share["saved"])
        assert ".lora_A.default." in names and ".start." not in names
    again = ranks.run(resumed, make, BATCH, tmp_path)
    for share, other in zip(shares, again, strict=True):
        for name, values in other.items():
            assert values.tobytes() == share[name].tobytes(), name


def require_gradient(found: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert found.keys() == right.keys()
    seen, wanted = (torch.cat([each[name].flatten().double() for name in sorted(right)]) for each in (found, right))
    assert relative_error(seen, wanted) < EXACT
    assert wanted.norm() > 0


def test_with_the_model_as_reference_path_the_adapters_are_off(
    ranks: Ranks, folders: tuple[str, str], tmp_path: Path
) -> None:
    config = config_of(ranks, tmp_path, folders, (3, "padded", 16, True), reference={"path": folders[0]})
    shares = ranks.run(measured, partial(build, config, folders), BATCH, tmp_path)
    with torch.no_grad():
        bare = one_by_one(tiny_llama(), BATCH).numpy() * BATCH.loss_mask_RT
    for name in ("reference", "reference later"):
        np.testing.assert_allclose(sum(share[name] for share in shares), bare, rtol=0, atol=LOGPROBS)


def critic_backbone(member: Member, config: RunConfig, folders: tuple[str, str]) -> dict[str, Tensor]:
    """The adapters of the critic at the start, by their names in the backbone."""
    from ray_rl.app.models import build_critic

    critic = build_critic(config, folders, member)
    return {
        name.removeprefix("backbone."): each.detach().clone()
        for name, each in critic.model.named_parameters()
        if ".lora_" in name
    }


def test_the_critic_starts_with_the_adapters_too(ranks: Ranks, folders: tuple[str, str], tmp_path: Path) -> None:
    sections = {"algorithm": {"kind": "ppo"}, "critic": {"workers": ranks.world}}
    config = config_of(ranks, tmp_path, folders, LAYOUTS[0], **sections)
    right = {
        name.removeprefix("base_model.model.model."): each
        for name, each in peft_model(tiny_llama()).named_parameters()
        if ".lora_" in name
    }
    for found in ranks.run(critic_backbone, config, folders):
        assert found.keys() == right.keys()
        assert all(torch.equal(found[name], right[name]) for name in right)


def test_a_reward_model_starts_with_the_adapters(ranks: Ranks, folders: tuple[str, str], tmp_path: Path) -> None:
    kind = "reward_model"
    config = config_of(
        ranks,
        tmp_path,
        folders,
        LAYOUTS[0],
        data={"kind": "jsonl", "path": "examples.jsonl"},
        rewards=[],
        algorithm={"kind": kind, **offline.KINDS[kind]},
    )
    batch = offline.batch_of(kind)
    model = peft_model(tiny_llama(dtype=torch.float64))
    head = offline.head(folders[0], kind)
    causal_lm = model.get_base_model()

    def logits(tokens: Tensor, at: Tensor) -> Tensor:
        return torch.nn.functional.linear(causal_lm.model(input_ids=tokens[None]).last_hidden_state[0, at], *head)

    offline.written_out(kind, batch, offline.one_at_a_time(batch, logits)).backward()
    right = {
        name.replace("base_model.model.", "member_0."): each.grad
        for name, each in model.named_parameters()
        if each.grad is not None
    }
    right["member_0.score.weight"] = head[0].grad
    for found in ranks.run(gradient_of, partial(build, config, folders), batch):
        require_gradient(found, right)


def gradient_of(member: Member, build: Any, batch: Any) -> dict[str, Tensor]:
    from deepspeed.utils import safe_get_full_grad

    trainer = build(member)
    trainer.accumulate(batch, np.arange(batch.rows))
    parameters = trainer.model.named_parameters()
    return {n.removeprefix(WRAPPED): safe_get_full_grad(p).clone() for n, p in parameters if p.requires_grad}
