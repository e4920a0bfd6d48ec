"""Ctrl-C in a program that trains through `ray_rl.api`."""

import os
import signal
import subprocess
import sys

import pytest

SLOW_START = """
import threading, time
start = threading.Thread.start
threading.Thread.start = lambda thread: start(thread) or time.sleep(1)
"""


@pytest.mark.parametrize("prepare", ["", SLOW_START], ids=["while waiting", "before all output is read"])
def test_an_interrupt_reaches_the_driver_once_and_is_waited_for(prepare):
    """As in a terminal: the whole foreground group gets the signal, the driver one of it."""
    driver = "import signal, sys, time; n = []; signal.signal(2, lambda *_: n.append(1)); print('up', flush=True)\n"
    driver += (
        "while not n: time.sleep(0.01)\ntime.sleep(0.3); print('ray-rl: saved', len(n), file=sys.stderr); sys.exit(75)"
    )
    # Whoever runs the tests in the background ignores the signal, and a process inherits that.
    program = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom ray_rl import api\n"
    program += f"{prepare}\nprint(api._shown([sys.executable, '-c', {driver!r}]))"
    caller = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "up\n"
    os.killpg(caller.pid, signal.SIGINT)
    out, _ = caller.communicate(timeout=20)
    assert out == "(75, 'saved 1')\n"
