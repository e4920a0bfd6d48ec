"""An adapter in vLLM's buffers, and everything that vLLM would say nothing of, over vLLM's own manager.

Beside the contract of publishes, whose process has imported vLLM.
"""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from vllm.config.lora import MaxLoRARanks

from ray_rl.config.adapter import ENGINE_RANKS
from ray_rl.errors import WeightMismatch
from ray_rl.rollout.adapter import EngineAdapter
from ray_rl.weight_sync.receivers.adapter import install, served
from ray_rl.weight_sync.receivers.loading import Loading
from tests.scripted_lora import ADAPTER, NAME, RANK, SCALE, Worker, holds, make_manager


def values(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in ADAPTER.items()}


def installed(seed=1, **layout):
    manager = make_manager(**layout)
    install(manager, values(seed), scale=SCALE)
    return manager


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)], ids=["alone", "first-of-two", "second-of-two"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_worker_has_its_slices_of_the_last_adapter_with_the_factor_in_b(rank, world, dtype):
    manager = make_manager(rank=rank, world=world, dtype=dtype)
    for version in (1, 2):
        matrices = {name: matrix.to(dtype) for name, matrix in values(version).items()}
        install(manager, matrices, scale=SCALE)
        assert holds(manager, matrices)
    assert not holds(manager, {name: matrix.to(dtype) for name, matrix in values(1).items()})


def test_what_arrived_is_not_changed():
    matrices = values(1)
    install(make_manager(), matrices, scale=SCALE)
    assert all(torch.equal(matrix, values(1)[name]) for name, matrix in matrices.items())


def test_an_adapter_that_vllm_keeps_because_it_knows_its_number_is_caught(monkeypatch):
    manager = installed()
    monkeypatch.setattr(manager, "remove_adapter", lambda number: False)
    with pytest.raises(WeightMismatch, match=r"that arrived: 6 of 6 matrices differ \(layers\.0\.down A0, "):
        install(manager, values(2), scale=SCALE)


@pytest.mark.parametrize("place", ["layers.0.down B0", "layers.1.qk A1"])
def test_a_layer_that_vllm_leaves_as_it_was_is_caught(place, monkeypatch):
    manager = installed()
    before = {str(there): buffer.clone() for there, buffer in served(manager).items()}
    activate = manager.activate_adapter

    def activate_without(number):
        activate(number)
        {str(there): buffer for there, buffer in served(manager).items()}[place].copy_(before[place])

    monkeypatch.setattr(manager, "activate_adapter", activate_without)
    with pytest.raises(WeightMismatch, match=rf"1 of 6 matrices differ \({place}\)$"):
        install(manager, values(2), scale=SCALE)


def test_a_flipped_bit_and_what_lies_beside_a_matrix_are_caught(monkeypatch):
    for row in (0, RANK):
        manager = make_manager()
        activate = manager.activate_adapter

        def spoil(number, manager=manager, activate=activate, row=row):
            activate(number)
            manager.modules["layers.0.down"].lora_a_stacked[0].view(torch.uint8)[0, 0, row, 0] ^= 1

        monkeypatch.setattr(manager, "activate_adapter", spoil)
        with pytest.raises(WeightMismatch, match=r"1 of 6 matrices differ \(layers\.0\.down A0\)$"):
            install(manager, values(1), scale=SCALE)


def test_another_factor_is_caught(monkeypatch):
    manager = make_manager()
    add = manager.add_adapter

    def add_doubled(adapter):
        for layer in adapter.loras.values():
            layer.lora_b *= 2
        add(adapter)

    monkeypatch.setattr(manager, "add_adapter", add_doubled)
    with pytest.raises(WeightMismatch, match=r"3 of 6 matrices differ \(layers\.0\.down B0, layers\.1\.qk B0, "):
        install(manager, values(1), scale=SCALE)


def test_an_adapter_that_vllm_does_not_activate_is_caught(monkeypatch):
    manager = make_manager()
    monkeypatch.setattr(manager, "activate_adapter", lambda number: True)
    with pytest.raises(WeightMismatch, match="it has not been activated"):
        install(manager, values(1), scale=SCALE)


def test_a_layer_that_vllm_does_not_know_is_an_error_with_a_remedy():
    other = {NAME.format("0.gate", half): torch.ones(2, 2) for half in "AB"}
    complaint = (
        "it has no place for the adapter of layers.0.gate; name other layers in model.adapter.targets, or set "
        "weight_sync.adapter=merged"
    )
    with pytest.raises(WeightMismatch, match=re.escape(complaint)):
        install(make_manager(), values(1) | other, scale=SCALE)


@pytest.mark.parametrize("left", ["A", "B"])
def test_half_of_an_adapter_is_an_error(left):
    matrices = {name: matrix for name, matrix in values(1).items() if name != NAME.format("1.k", left)}
    with pytest.raises(WeightMismatch, match=r"3 matrices A and 2 matrices B|2 matrices A and 3 matrices B"):
        install(make_manager(), matrices, scale=SCALE)


def test_no_adapter_is_an_error():
    with pytest.raises(WeightMismatch, match="0 matrices A and 0 matrices B arrived"):
        install(make_manager(), {}, scale=SCALE)


def test_a_layer_without_an_adapter_has_zeros_also_after_one_that_had_it():
    manager = installed()
    only = {name: matrix for name, matrix in values(2).items() if "0.down" in name}
    install(manager, only, scale=SCALE)
    assert not any(buffer.any() for place, buffer in served(manager).items() if place.layer == "layers.1.qk")


def test_checksums_name_every_matrix_and_change_with_it():
    first, second = (Worker(None, installed(seed)).adapter_checksums() for seed in (1, 2))
    assert list(first) == [
        "layers.0.down A0",
        "layers.0.down B0",
        "layers.1.qk A0",
        "layers.1.qk A1",
        "layers.1.qk B0",
        "layers.1.qk B1",
    ]
    assert first == Worker(None, installed(1)).adapter_checksums()
    assert all(first[place] != second[place] for place in first)


def test_vllm_allocates_buffers_for_these_ranks_alone():
    assert get_args(MaxLoRARanks) == ENGINE_RANKS


def test_requests_name_one_adapter_whose_matrices_vllm_reads_from_no_file():
    request = EngineAdapter(most_rank=1, scale=1.0, targets=(), worker="").request
    assert (request.lora_int_id, request.load_inplace, Path(request.lora_path).exists()) == (1, False, False)


def test_an_update_forgets_the_adapter_of_the_one_before():
    loading, matrices = Loading(takes_adapter=True), values(1)
    loading.begin()
    loading.load(None, list(matrices.items()), {name: matrix.numel() for name, matrix in matrices.items()})
    assert loading.adapter.keys() == matrices.keys()
    loading.begin()
    assert loading.adapter == {}
