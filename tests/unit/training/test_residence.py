"""Memory of tensors that leaves and comes back, on a device where it can be seen: the CPU, counted as one."""

import pytest
import torch

from ray_rl.training.parts import PARTS
from ray_rl.training.residence import Residence, of_accelerators, tensors_within


def residence(**parts):
    found = {part: parts.get(part, []) for part in PARTS}
    return Residence(lambda: found, is_moved=lambda device: True)


def held_bytes(tensor):
    return tensor.untyped_storage().nbytes()


def test_every_view_of_a_block_is_valid_again_when_it_is_back():
    whole = torch.arange(1000.0)
    part = whole[200:300].view(10, 10)
    away = residence(weights=[whole, part])
    away.leave("weights")
    assert held_bytes(whole) == held_bytes(part) == 0
    away.come_back("weights")
    assert whole.tolist() == list(range(1000))
    assert part[3, 4] == 234


def test_what_is_away_is_read_from_the_host():
    whole = torch.arange(1000.0)
    turned = whole[200:300].view(10, 10).T
    away = residence(states=[whole])
    assert away.on_host(whole) is whole
    away.leave("states")
    assert away.on_host(turned)[4, 3] == 234


def test_a_block_of_both_parts_leaves_with_the_weights_alone():
    shared, own = torch.zeros(1000), torch.zeros(1000)
    away = residence(weights=[shared], states=[shared, own])
    away.leave("states")
    assert (held_bytes(shared), held_bytes(own)) == (4000, 0)
    away.leave("weights")
    assert held_bytes(shared) == 0
    away.come_back("weights")
    assert (held_bytes(shared), held_bytes(own)) == (4000, 0)


def test_to_leave_twice_and_to_come_back_twice_changes_nothing():
    whole = torch.arange(1000.0)
    away = residence(weights=[whole])
    for _ in range(2):
        away.leave("weights")
    for _ in range(2):
        away.come_back("weights")
    assert whole.tolist() == list(range(1000))


def test_memory_of_the_host_is_used_again_by_blocks_of_its_size_and_no_other():
    held = [torch.full((1000,), 1.0)]
    away = residence(states=held)
    away.leave("states")
    (first,) = [block._host.data_ptr() for block in away._away["states"].values()]
    away.come_back("states")
    held[:] = [torch.full((2000,), 2.0), torch.full((1000,), 3.0)]
    away.leave("states")
    hosts = {block._size: block._host.data_ptr() for block in away._away["states"].values()}
    assert hosts[4000] == first
    assert len(hosts) == 2
    away.come_back("states")
    assert [tensor.unique().tolist() for tensor in held] == [[2.0], [3.0]]


def test_small_blocks_and_tensors_of_the_cpu_stay():
    small, large = torch.zeros(8), torch.zeros(1000)
    away = residence(states=[small])
    away.leave("states")
    assert held_bytes(small) == 32
    at_home = Residence(lambda: {"weights": [large], "states": []})
    at_home.leave("weights")
    assert held_bytes(large) == 4000
    assert not of_accelerators(torch.device("cpu"))
    assert of_accelerators(torch.device("cuda", 0))


@pytest.mark.parametrize("steps", [0, 1])
def test_tensors_of_an_optimizer_are_found_at_any_depth(steps):
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([weight])
    for _ in range(steps):
        weight.grad = torch.ones(4)
        optimizer.step()
    found = {id(tensor) for tensor in tensors_within(optimizer)}
    moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert len(moments) == 3 * steps
    assert {id(weight), *map(id, moments)} <= found
    assert (id(weight.grad) in found) == bool(steps)
