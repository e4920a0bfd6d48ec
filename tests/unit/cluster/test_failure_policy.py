import pytest

from ray_rl.cluster.engines.policy import (
    Abandon,
    Died,
    EndRun,
    NotStarted,
    Poisoned,
    Restart,
    Silent,
    Standing,
    Wait,
    decide,
)

GONE = [Died("killed"), Silent(10.1), Poisoned("the digests differ"), NotStarted("no memory")]


def standing(*, restarts=0, others=1, max_restarts=3):
    return Standing(restarts=restarts, max_restarts=max_restarts, others=others, heartbeat_timeout_s=10.0)


@pytest.mark.parametrize("seconds", [0.0, 9.9, 10.0])
def test_silence_within_the_limit_is_waited_for_whatever_was_before(seconds):
    for restarts in (0, 3, 9):
        assert decide(Silent(seconds), standing(restarts=restarts, others=0)) == Wait()


@pytest.mark.parametrize("fault", GONE)
@pytest.mark.parametrize(
    ("restarts", "others", "max_restarts", "decision"),
    [
        (0, 1, 3, Restart(1.0)),
        (1, 1, 3, Restart(2.0)),
        (2, 0, 3, Restart(4.0)),
        (4, 1, 9, Restart(16.0)),
        (5, 1, 9, Restart(30.0)),
        (2000, 1, 2001, Restart(30.0)),
        (3, 1, 3, Abandon()),
        (3, 0, 3, EndRun()),
        (0, 2, 0, Abandon()),
        (0, 0, 0, EndRun()),
    ],
)
def test_a_lost_engine_is_restarted_ever_later_and_given_up_after_the_last_restart(
    fault, restarts, others, max_restarts, decision
):
    assert decide(fault, standing(restarts=restarts, others=others, max_restarts=max_restarts)) == decision
