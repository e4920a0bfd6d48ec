import socket
import time

import pytest

from ray_rl.training.process_group import rendezvous_store


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_ranks_meet_in_the_store_and_it_listens_at_its_address_alone(port):
    master = rendezvous_store("127.0.0.1", port, world=2, is_master=True, timeout_s=5)
    other = rendezvous_store("127.0.0.1", port, world=2, is_master=False, timeout_s=5)
    other.set("key", "value")
    assert master.get("key") == b"value"
    # All of 127.0.0.0/8 is this machine: what listened on every interface would answer here, too.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=1)


def test_a_master_that_does_not_come_is_waited_for_no_longer_than_the_limit(port):
    start_s = time.monotonic()
    with pytest.raises(RuntimeError):
        rendezvous_store("127.0.0.1", port, world=2, is_master=False, timeout_s=1)
    assert time.monotonic() - start_s < 10
