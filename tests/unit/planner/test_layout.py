from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.planner.layout import Packed, Place, Request, nodes_used, pack


def places(packing: list[Packed]) -> dict[int, list[tuple[int, tuple[int, ...]]]]:
    return {packed.request: [(place.node, place.gpus) for place in packed.places] for packed in packing}


def test_bundles_take_the_lowest_free_gpus_node_after_node():
    assert places(pack([Request(3, 1), Request(2, 2)], gpus_per_node=4)) == {
        0: [(0, (0,)), (0, (1,)), (0, (2,))],
        1: [(1, (0, 1)), (1, (2, 3))],
    }


def test_a_gap_that_a_wide_bundle_leaves_is_filled_by_a_later_narrow_one():
    assert places(pack([Request(3, 1), Request(1, 4), Request(1, 1)], gpus_per_node=4))[2] == [(0, (3,))]


def test_wide_bundles_go_first_where_that_saves_a_node():
    packing = pack([Request(3, 1), Request(1, 2), Request(1, 3)], gpus_per_node=4)
    assert nodes_used(packed.places for packed in packing) == 2
    assert [packed.request for packed in packing] == [2, 1, 0]


def test_nothing_takes_one_node():
    assert nodes_used([]) == 1


def test_a_block_of_bundles_is_on_one_node():
    packed = places(pack([Request(3, 1), Request(4, 1, block=2)], gpus_per_node=4))
    assert packed == {0: [(0, (0,)), (0, (1,)), (0, (2,))], 1: [(1, (0,)), (1, (1,)), (1, (2,)), (1, (3,))]}
    packed = places(pack([Request(6, 1, block=3), Request(2, 1)], gpus_per_node=4))
    assert packed == {0: [(n, (gpu,)) for n in (0, 1) for gpu in (0, 1, 2)], 1: [(0, (3,)), (1, (3,))]}


NARROW = st.builds(Request, st.integers(1, 12), st.sampled_from([1, 2, 4, 8]))
BLOCKS = st.builds(
    lambda blocks, block: Request(blocks * block, 1, block), st.integers(1, 4), st.sampled_from([2, 3, 8])
)
REQUESTS = st.lists(NARROW | BLOCKS, min_size=1, max_size=6)


@settings(deadline=None)
@given(REQUESTS)
def test_every_bundle_is_whole_on_one_node_and_no_gpu_is_given_twice(requests: list[Request]):
    packing = pack(requests, gpus_per_node=8)
    taken = [(place.node, gpu) for packed in packing for place in packed.places for gpu in place.gpus]
    assert len(taken) == len(set(taken)) == sum(request.bundles * request.gpus for request in requests)
    assert all(gpu < 8 for _, gpu in taken)
    for packed in packing:
        request = requests[packed.request]
        assert [len(place.gpus) for place in packed.places] == [request.gpus] * request.bundles
        nodes = [place.node for place in packed.places]
        assert all(len(set(nodes[i : i + request.block])) == 1 for i in range(0, len(nodes), request.block))


@settings(deadline=None)
@given(REQUESTS)
def test_who_reserves_in_the_order_of_the_packing_and_takes_the_lowest_free_gpus_gets_those_of_the_plan(
    requests: list[Request],
):
    taken: dict[int, int] = {}
    for packed in pack(requests, gpus_per_node=8):
        for place in packed.places:
            first = taken.get(place.node, 0)
            assert place == Place(place.node, tuple(range(first, first + len(place.gpus))))
            taken[place.node] = first + len(place.gpus)


@settings(deadline=None)
@given(REQUESTS)
def test_rank_order_is_topology_order(requests: list[Request]):
    for packed in pack(requests, gpus_per_node=8):
        assert list(packed.places) == sorted(packed.places, key=lambda place: (place.node, place.gpus))
