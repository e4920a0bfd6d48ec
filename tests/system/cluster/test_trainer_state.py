"""A trainer saved and restored goes on as if nothing had happened, bit for bit, under every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ray_rl.checkpoint.slices import SliceReader, write_slices
from ray_rl.config import RunConfig
from ray_rl.config.adapter import Lora
from ray_rl.training.member import Member
from ray_rl.types import TrainBatch
from tests.system.cluster.ranks import Ranks
from tests.unit.models.tiny import ragged_batch, tiny_llama

STAGES = (0, 1, 2, 3)
BATCH = ragged_batch((5, 2, 7, 4), (3, 6, 1, 4, 4, 2, 8, 5, 7, 1, 2, 3))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(path)
    return str(path)


@pytest.fixture
def make(make_config, ranks):
    def make_for_ranks(stage: int, *, persist: bool = False, dtype: str = "float32", **more: Any) -> RunConfig:
        # ZeRO-3 keeps small parameters whole otherwise, which would be all of a tiny model.
        threshold = {} if persist else {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
        train = {"workers": ranks.world, "learning_rate": 1e-2, "zero_stage": stage}
        return make_config(
            run={"name": "state", "steps": 8},
            model={"path": "tiny", "dtype": dtype},
            train=train | more | {"schedule": {"kind": "cosine"}, "deepspeed": threshold if stage == 3 else {}},
            cluster={"accelerator": "cpu"},
        )

    return make_for_ranks


def whole_weights(trainer: Any) -> NDArray[np.float32] | None:
    """All weights in one vector, on rank 0."""
    found = [tensor for group in trainer.stream.groups() for _, tensor in group]
    # A copy: memory that numpy shares cannot be freed any more.
    return None if found[0] is None else np.concatenate([tensor.float().clone().numpy().ravel() for tensor in found])


def save(trainer: Any, folder: Path, rank: int) -> None:
    zero = trainer.zero
    write_slices(folder / f"rank_{rank}.safetensors", zero.slices(), zero.state())


def saved_in_the_middle(member: Member, config: RunConfig, model: str, batch: TrainBatch, folder: Path) -> Any:
    """Weights after two steps, which are saved, and after two more."""
    from ray_rl.app.models import build_actor

    trainer = build_actor(config, (model,), member)
    for _ in range(2):
        trainer.update(batch)
    save(trainer, folder, member.rank)
    middle = whole_weights(trainer)
    for _ in range(2):
        trainer.update(batch)
    return middle, whole_weights(trainer)


def restored(member: Member, config: RunConfig, model: str, batch: TrainBatch, folder: Path) -> Any:
    """The same from what was saved: after restoring, and after two steps more."""
    from ray_rl.app.models import build_actor

    trainer = build_actor(config, (model,), member)
    reader = SliceReader(folder)
    trainer.zero.restore(reader.read, reader.states["rank_0"])
    middle = whole_weights(trainer)
    for _ in range(2):
        trainer.update(batch)
    return middle, whole_weights(trainer)


@pytest.mark.parametrize("stage", STAGES)
def test_a_restored_trainer_goes_on_bit_for_bit(ranks: Ranks, make, folder, tmp_path, stage):
    middle, end = ranks.run(saved_in_the_middle, make(stage), folder, BATCH, tmp_path)[0]
    again, end_again = ranks.run(restored, make(stage), folder, BATCH, tmp_path)[0]
    assert not np.array_equal(middle, end)
    assert again.tobytes() == middle.tobytes()
    assert end_again.tobytes() == end.tobytes()


@pytest.mark.parametrize("stage", [1, 3])
def test_master_weights_in_float32_go_on_under_weights_in_bfloat16(ranks: Ranks, make, folder, tmp_path, stage):
    _, end = ranks.run(saved_in_the_middle, make(stage, dtype="bfloat16"), folder, BATCH, tmp_path)[0]
    _, end_again = ranks.run(restored, make(stage, dtype="bfloat16"), folder, BATCH, tmp_path)[0]
    assert end_again.tobytes() == end.tobytes()


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_frozen_stays_as_it_was_and_the_rest_goes_on_bit_for_bit(ranks: Ranks, make, folder, tmp_path, stage):
    # Recomputed layers without gradients of their own, whose weights ZeRO-3 gathers twice.
    config = make(stage, frozen_layers=1, gradient_checkpointing=stage >= 2)
    _, end = ranks.run(saved_in_the_middle, config, folder, BATCH, tmp_path)[0]
    _, end_again = ranks.run(restored, config, folder, BATCH, tmp_path)[0]
    assert end_again.tobytes() == end.tobytes()
    before = {name: parameter.detach().numpy().ravel() for name, parameter in tiny_llama().named_parameters()}
    offset = 0
    for name, values in before.items():
        after = end[offset : offset + values.size]
        offset += values.size
        is_frozen = "embed" in name or ".layers.0." in name
        assert np.array_equal(after, values) == is_frozen, name
    assert offset == end.size


@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (3, "bfloat16")])
def test_adapters_go_on_bit_for_bit_over_the_model_as_it_was(ranks: Ranks, make, folder, tmp_path, stage, dtype):
    config = make(stage, dtype=dtype)
    config = config.model_copy(update={"model": config.model.model_copy(update={"adapter": Lora(rank=4)})})
    middle, end = ranks.run(saved_in_the_middle, config, folder, BATCH, tmp_path)[0]
    _, end_again = ranks.run(restored, config, folder, BATCH, tmp_path)[0]
    assert end_again.tobytes() == end.tobytes()
    model = tiny_llama(dtype=getattr(torch, dtype))
    before = np.concatenate([parameter.detach().float().numpy().ravel() for parameter in model.parameters()])
    assert np.isin(before, end).all() and not np.array_equal(middle, end)


def test_stage_0_in_bfloat16_is_refused_with_the_remedy(ranks: Ranks, make, folder, tmp_path):
    config = make(0, dtype="bfloat16", gradient_dtype="bfloat16")
    with pytest.raises(AssertionError, match=r"CheckpointError: .* set zero_stage to 1 or more"):
        ranks.run(saved_in_the_middle, config, folder, BATCH, tmp_path)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (2, 0), (0, 3)])
def test_the_stage_may_change_in_between(ranks: Ranks, make, folder, tmp_path, before, after):
    middle, end = ranks.run(saved_in_the_middle, make(before), folder, BATCH, tmp_path)[0]
    again, end_again = ranks.run(restored, make(after, persist=True), folder, BATCH, tmp_path)[0]
    assert again.tobytes() == middle.tobytes()
    np.testing.assert_allclose(end_again, end, rtol=1e-5, atol=1e-7)


def test_the_number_of_ranks_may_change_in_between(ranks: Ranks, make, folder, tmp_path):
    """Saved by three ranks, as far as a reader can see."""
    ranks.run(saved_in_the_middle, make(3), folder, BATCH, tmp_path / "as-saved")
    reader = SliceReader(tmp_path / "as-saved")
    for rank in range(3):
        write_slices(tmp_path / "thirds" / f"rank_{rank}.safetensors", thirds(reader, rank), reader.states["rank_0"])
    one = ranks.run(restored, make(3), folder, BATCH, tmp_path / "as-saved")[0]
    other = ranks.run(restored, make(3), folder, BATCH, tmp_path / "thirds")[0]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def thirds(reader: SliceReader, rank: int) -> list[tuple[str, int, torch.Tensor]]:
    found = []
    for name, parts in reader._slices.items():
        total = max(start + size for start, size, _ in parts)
        size = -(-total // 3)
        start, stop = min(rank * size, total), min((rank + 1) * size, total)
        found.append((name, start, reader.read(name, start, stop)))
    return found


def trained_with_absences(member: Member, config: RunConfig, model: str, batch: TrainBatch, folder: Path) -> Any:
    """Weights after four steps between which the model was on the host, and the bytes that this freed, by part.

    The state is saved after two steps, while the model is away.
    """
    from ray_rl.app.models import build_actor
    from ray_rl.training.parts import PARTS
    from ray_rl.training.residence import Residence

    trainer = build_actor(config, (model,), member)
    zero = trainer.zero
    if config.train.zero_stage == 0:  # the mapped file of the weights cannot be freed; on a GPU they are a copy
        for parameter in zero.module.parameters():
            parameter.data = parameter.data.clone()
    zero.residence = Residence(zero._tensors, is_moved=lambda device: True)
    freed: dict[str, int] = {}
    for step in range(4):
        trainer.update(batch)
        sizes = {part: _bytes(tensors) for part, tensors in zero._tensors().items()}
        zero.residence.leave("states")
        there = whole_weights(trainer)  # as a publish reads them
        zero.residence.leave(*PARTS)
        freed = {part: sizes[part] - _bytes(tensors) for part, tensors in zero._tensors().items()}
        sent = whole_weights(trainer)  # as a publish of adapters reads them
        assert (there is None and sent is None) or there.tobytes() == sent.tobytes()
        parts = [values.abs().sum() for _, values in trainer.stream.slices()]
        assert torch.stack(parts).sum() > 0
        if step == 1:
            save(trainer, folder, member.rank)
        zero.residence.come_back("weights")
        zero.residence.come_back(*PARTS)
    return whole_weights(trainer), freed, sizes


def _bytes(tensors: Any) -> int:
    held = (tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta")
    storages = {storage._cdata: storage.nbytes() for storage in held}
    return sum(storages.values())


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        (0, "float32"),
        (1, "bfloat16"),
        (3, "bfloat16"),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((1, "float32"), (2, "float32"), (3, "float32"))),
        pytest.param(2, "bfloat16", marks=pytest.mark.long),
    ],
)
def test_a_model_that_leaves_its_device_between_steps_trains_and_is_saved_bit_for_bit(
    ranks: Ranks, make, folder, tmp_path, stage, dtype
):
    away, here = tmp_path / "away", tmp_path / "here"
    away.mkdir(), here.mkdir()
    config = make(stage, dtype=dtype)
    _, end = ranks.run(saved_in_the_middle, config, folder, BATCH, here)[0]
    again, freed, sizes = ranks.run(trained_with_absences, config, folder, BATCH, away)[0]
    assert again.tobytes() == end.tobytes()
    for part in ("weights", "states"):
        assert freed[part] > 0.9 * sizes[part], (part, freed, sizes)
    for file in here.glob("*.safetensors"):
        assert file.read_bytes() == (away / file.name).read_bytes()


def read_from_the_host(member: Member, config: RunConfig, model: str) -> Any:
    """All weights of a model with adapters over 4 bits, while it is there and while it is away, and bytes that left."""
    from ray_rl.app.models import build_actor
    from ray_rl.training.parts import PARTS
    from ray_rl.training.residence import Residence

    trainer = build_actor(config, (model,), member)
    zero = trainer.zero
    for parameter in zero.module.parameters():  # the mapped file cannot be freed; on a GPU they are a copy
        if parameter.is_floating_point() and not parameter.requires_grad:
            parameter.data = parameter.data.clone()
    zero.residence = Residence(zero._tensors, is_moved=lambda device: True)
    there, size = whole_weights(trainer), _bytes(zero._tensors()["weights"])
    zero.residence.leave(*PARTS)
    away, left = whole_weights(trainer), _bytes(zero._tensors()["weights"])
    zero.residence.come_back(*PARTS)
    return there, away, whole_weights(trainer), left / size


@pytest.mark.parametrize("stage", [0, 2])
def test_weights_in_4_bits_are_read_from_the_host_as_they_are_on_the_device(ranks: Ranks, make, tmp_path, stage):
    tiny_llama(width=64).save_pretrained(tmp_path)  # rows as long as a block of 4 bits
    config = make(stage)
    lora = Lora(rank=4, quantise="nf4")
    config = config.model_copy(update={"model": config.model.model_copy(update={"adapter": lora})})
    there, away, back, left = ranks.run(read_from_the_host, config, str(tmp_path))[0]
    assert left < 0.5
    assert np.abs(there).max() > 0
    assert there.tobytes() == away.tobytes() == back.tobytes()


def trained_through_buffers(member: Member, config: RunConfig, model: str, batch: TrainBatch) -> Any:
    """Weights after four steps in which DeepSpeed reduces gradients as it does by default, also of one rank."""
    from ray_rl.app.models import build_actor
    from ray_rl.training.deepspeed_config import merge

    own = {"zero_optimization": {"reduce_bucket_size": 500_000_000, "reduce_scatter": True}}
    train = config.train.model_copy(update={"deepspeed": merge(config.train.deepspeed, own)})
    trainer = build_actor(config.model_copy(update={"train": train}), (model,), member)
    engine = trainer.zero.engine
    assert engine.enable_backward_allreduce == (member.world > 1 or config.train.zero_stage > 0)
    engine.enable_backward_allreduce = True
    for _ in range(4):
        trainer.update(batch)
    return whole_weights(trainer)


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        *((stage, {}) for stage in STAGES),
        *((stage, {"dtype": "bfloat16"}) for stage in STAGES[1:]),
        (1, {"dtype": "bfloat16", "gradient_dtype": "bfloat16"}),
    ],
)
def test_gradients_that_are_reduced_where_they_are_train_as_through_a_buffer_bit_for_bit(
    ranks: Ranks, make, folder, tmp_path, stage, more
):
    config = make(stage, **more, micro_batch_tokens=32)
    _, end = ranks.run(saved_in_the_middle, config, folder, BATCH, tmp_path)[0]
    assert ranks.run(trained_through_buffers, config, folder, BATCH)[0].tobytes() == end.tobytes()
