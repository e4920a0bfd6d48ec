import gc
import multiprocessing
import sys

import pytest

from ray_rl.imports import IMPORTING, USUAL, collect_as_usual, quick_imports, quicken_spawned


@pytest.fixture(autouse=True)
def usual():
    yield
    collect_as_usual()
    multiprocessing.current_process()._config.pop("ray_rl_imports", None)


def tell_threshold():
    """Ends a process with the answer to whether it looks for cycles less often."""
    sys.exit(3 if gc.get_threshold() == IMPORTING else 4)


def tell_of_a_child():
    """Ends a process with the answer of one that it spawns, while its own thresholds are Python's."""
    collect_as_usual()
    sys.exit(answer_of(tell_threshold))


def answer_of(target):
    process = multiprocessing.get_context("spawn").Process(target=target)
    process.start()
    process.join(timeout=60)
    return process.exitcode


def test_an_import_looks_for_cycles_less_often_and_what_follows_as_before():
    assert gc.get_threshold() == USUAL
    with quick_imports():
        assert gc.get_threshold() == IMPORTING
    assert gc.get_threshold() == USUAL


def test_an_import_that_fails_does_not_change_how_often_cycles_are_looked_for():
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # noqa: F401
    assert gc.get_threshold() == USUAL


def test_spawned_processes_and_theirs_look_for_cycles_less_often_only_when_asked_to():
    assert answer_of(tell_threshold) == 4
    quicken_spawned()
    assert gc.get_threshold() == USUAL, "this process imports nothing more"
    assert answer_of(tell_of_a_child) == 3
