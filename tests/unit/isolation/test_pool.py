"""Which worker a pool gives a call, with workers of this machine and of another one."""

from concurrent.futures import Future

import pytest

from ray_rl.errors import ProcessDied, SandboxClosed
from ray_rl.isolation.pool import Pool


class Scripted:
    """A worker whose calls end when the test says so."""

    def __init__(self, name: str, lost: set[str]) -> None:
        self.name, self.lost = name, lost
        self.is_closed = False
        self.calls: list[Future] = []

    @property
    def is_lost(self) -> bool:
        return self.name in self.lost

    def submit(self, function: str, *, timeout_s: float, **options: object) -> Future:
        self.calls.append(Future())
        return self.calls[-1]

    def close(self) -> None:
        self.is_closed = True


class Machines:
    """A pool of two processes here and two on another machine, and the workers that it has started."""

    def __init__(self) -> None:
        self.started: list[Scripted] = []
        self.lost: set[str] = set()
        self.pool = Pool(2, make=self.maker("here"), others=[self.maker("there")] * 2)

    def maker(self, name: str):
        def make() -> Scripted:
            self.started.append(Scripted(name, self.lost))
            return self.started[-1]

        return make

    def submit(self, calls: int) -> list[Future]:
        return [self.pool.submit("module:function", timeout_s=1) for _ in range(calls)]

    @property
    def running(self) -> list[tuple[str, int]]:
        return [(worker.name, sum(not call.done() for call in worker.calls)) for worker in self.started]


@pytest.fixture
def machines() -> Machines:
    return Machines()


def test_processes_of_another_machine_start_once_all_of_this_one_are_busy(machines):
    machines.submit(2)
    assert machines.running == [("here", 1), ("here", 1)]
    machines.submit(1)
    assert machines.running == [("here", 1), ("here", 1), ("there", 1)]


def test_the_least_busy_process_of_all_machines_gets_the_next_call(machines):
    machines.submit(6)
    assert machines.running == [("here", 2), ("here", 2), ("there", 1), ("there", 1)]
    for call in machines.started[1].calls:
        call.set_result(None)
    machines.submit(1)
    assert machines.running == [("here", 2), ("here", 1), ("there", 1), ("there", 1)]


def test_a_lost_machine_gets_no_call_and_counts_no_longer(machines):
    *_, call = machines.submit(3)
    assert machines.pool.most == 4
    machines.lost.add("there")
    call.set_exception(ProcessDied("the node is lost"))
    machines.submit(2)  # the second process there never gets a call
    assert machines.running == [("here", 2), ("here", 2), ("there", 0), ("there", 0)]
    assert machines.pool.most == 2


def test_closing_ends_the_processes_of_all_machines(machines):
    machines.submit(4)
    machines.pool.close()
    assert [worker.is_closed for worker in machines.started] == [True] * 4
    with pytest.raises(SandboxClosed):
        machines.submit(1)
