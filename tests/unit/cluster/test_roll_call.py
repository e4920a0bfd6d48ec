"""Waiting for nodes, and missing them."""

import pytest

from ray_rl.cluster import roll_call
from ray_rl.errors import ClusterError


@pytest.fixture
def nodes(monkeypatch):
    """Makes the nodes that are alive at each look; the last look stays."""
    monkeypatch.setattr(roll_call, "POLL_S", 0.0)
    monkeypatch.setattr(roll_call, "WATCH_S", 0.0)

    def set_looks(*looks: set[str]) -> None:
        left = list(looks)
        monkeypatch.setattr(roll_call, "living", lambda: left.pop(0) if len(left) > 1 else left[0])

    return set_looks


def test_every_node_is_told_once_until_all_are_there(nodes):
    told = []
    nodes({"a"}, {"a"}, {"a", "c"}, {"a", "b", "c"})
    roll_call.await_nodes(3, timeout_s=10, note=told.append)
    assert told == ["1 of 3 nodes: a has joined", "2 of 3 nodes: c has joined", "3 of 3 nodes: b has joined"]


def test_more_nodes_than_wanted_are_enough(nodes):
    nodes({"a", "b", "c"})
    roll_call.await_nodes(2, timeout_s=0, note=lambda text: None)


def test_nodes_that_do_not_come_are_an_error_that_names_those_that_did(nodes):
    nodes({"a", "b"})
    with pytest.raises(ClusterError, match="2 of 3 nodes joined within 0 s: a, b"):
        roll_call.await_nodes(3, timeout_s=0, note=lambda text: None)


def test_the_first_node_that_is_lost_is_named_and_one_that_joins_is_not(nodes):
    nodes({"a", "b"}, {"a", "b", "c"}, {"a", "c"})
    assert roll_call.lost_of({"a", "b"}) == {"b"}
