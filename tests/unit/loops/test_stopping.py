"""Signals as they come, and what they end."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from ray_rl.exit_codes import CHECKPOINTED
from ray_rl.loops.stopping import SIGNALS, Stop, StopAsked


async def until_asked(stop):
    """Waits for something that never comes."""
    with pytest.raises(StopAsked):
        await asyncio.wait_for(stop.unless_asked(asyncio.sleep(3600)), 10)


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_gives_up_what_is_waited_for_and_says_what_follows(number):
    stop, said = Stop(grace_s=60), []
    stop.listen()
    stop.finish_steps(said.append)
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
    await until_asked(stop)
    assert stop.signal == number
    assert not stop.is_immediate
    again = "; Ctrl-C again ends now" if number == signal.SIGINT else ""
    assert said == [
        f"{number.name}: cancelling the step, which still waits for rollouts, and saving, within run.grace_s=60{again}"
    ]


async def test_a_signal_after_the_rollouts_says_that_the_step_is_finished():
    stop, said = Stop(grace_s=60), []
    stop.listen()
    stop.finish_steps(said.append)
    assert await stop.unless_asked(asyncio.sleep(0, "rollouts")) == "rollouts"
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        while stop.signal is None:
            await asyncio.sleep(0.01)
    assert said == ["SIGTERM: finishing the step and saving, within run.grace_s=60"]


async def test_the_second_ctrl_c_cancels_whatever_is_under_way():
    stop = Stop(grace_s=60)
    stop.listen()
    stop.finish_steps(lambda text: None)
    os.kill(os.getpid(), signal.SIGINT)
    await until_asked(stop)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(10)
    assert stop.is_immediate


async def test_a_second_signal_of_a_scheduler_does_not_hurry():
    stop = Stop(grace_s=60)
    stop.listen()
    stop.finish_steps(lambda text: None)
    os.kill(os.getpid(), signal.SIGUSR1)
    await until_asked(stop)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    assert not stop.is_immediate
    assert stop.signal == signal.SIGUSR1


async def test_before_the_grace_is_over_the_task_is_cancelled():
    stop = Stop(grace_s=0.4)
    stop.listen()
    stop.finish_steps(lambda text: None)
    loop = asyncio.get_running_loop()
    asked_s = loop.time()
    with pytest.raises(asyncio.CancelledError):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(10)
    assert loop.time() - asked_s < 0.39


HANGS = """
import asyncio, os, signal, time
from ray_rl.loops.stopping import Stop

async def main():
    stop = Stop(grace_s=0.5)
    stop.listen()
    stop.finish_steps(lambda text: None)
    os.kill(os.getpid(), signal.SIGTERM)
    while {is_loop_free} and stop.signal is None:
        await asyncio.sleep(0)
    time.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.parametrize("is_loop_free", [True, False], ids=["hangs-later", "hangs-when-it-comes"])
def test_a_process_that_hangs_ends_with_its_grace(is_loop_free):
    done = subprocess.run([sys.executable, "-c", HANGS.format(is_loop_free=is_loop_free)], timeout=30, check=False)
    assert done.returncode == CHECKPOINTED


async def test_the_exit_that_ray_makes_of_sigterm_while_it_starts_is_the_request_to_stop():
    stop = Stop(grace_s=60)
    with pytest.raises(asyncio.CancelledError), stop.others_listen():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == signal.SIGTERM
    with pytest.raises(SystemExit), stop.others_listen():
        sys.exit(1)
    stop = Stop(grace_s=60)
    with stop.others_listen():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    stop.finish_steps(lambda text: None)
    os.kill(os.getpid(), signal.SIGTERM)
    await until_asked(stop)
