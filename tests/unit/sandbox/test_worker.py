import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ray_rl.errors import SandboxError
from ray_rl.sandbox.worker import Worker

FUNCTIONS = """
import os, re, subprocess, sys, time

def double(x, plus=0):
    return 2 * x + plus

def sleep(seconds):
    time.sleep(seconds)

def hold_the_interpreter():
    re.search("(a+)+$", "a" * 60 + "b")

def start_a_child(path):
    process = subprocess.Popen(["sleep", "60"])
    with open(path, "w") as file:
        file.write(str(process.pid))
    process.wait()

def fail():
    raise ValueError("no such answer")

def leave(code):
    os._exit(code)

def unpicklable():
    return lambda: None

def loaded():
    return sorted(sys.modules)

def shout():
    print("to standard output")

def text(value):
    return str(value)
"""


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    """A module outside the package, which the child must find too."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "users_functions.py").write_text(FUNCTIONS)
    sys.path.insert(0, str(folder))
    yield "users_functions"
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def worker(users):
    worker = Worker()
    yield worker
    worker.close()


def is_running(pid):
    """A zombie is dead, though nobody has waited for it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid):
    give_up_s = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < give_up_s, f"process {pid} still runs"
        time.sleep(0.02)


def test_calls_return_what_the_function_returns_and_share_one_process(worker, users):
    assert worker.call(f"{users}:double", args=[4], kwargs={"plus": 1}, timeout_s=5) == 9
    first = worker.pid
    assert worker.call(f"{users}:double", args=[5], timeout_s=5) == 10
    assert worker.pid == first != os.getpid()


def test_a_result_can_be_converted_before_it_is_pickled(worker, users):
    shown = worker.call(f"{users}:unpicklable", convert=f"{users}:text", timeout_s=5)
    assert shown.startswith("<function unpicklable")


@pytest.mark.parametrize(("function", "args"), [("sleep", [60]), ("hold_the_interpreter", [])])
def test_a_hang_is_killed_within_its_limit_and_the_next_call_is_served(worker, users, function, args):
    worker.call(f"{users}:double", args=[0], timeout_s=5)
    hung, started_s = worker.pid, time.monotonic()
    with pytest.raises(TimeoutError, match=f"{users}:{function} did not return within 0.3 s; its process was killed"):
        worker.call(f"{users}:{function}", args=args, timeout_s=0.3)
    assert time.monotonic() - started_s < 2
    assert not is_running(hung)
    assert worker.call(f"{users}:double", args=[4], timeout_s=5) == 8


def test_what_a_hung_function_started_is_killed_with_it(worker, users, tmp_path):
    with pytest.raises(TimeoutError):
        worker.call(f"{users}:start_a_child", args=[str(tmp_path / "pid")], timeout_s=1)
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_an_exception_comes_back_with_its_traceback_and_the_process_goes_on(worker, users):
    worker.call(f"{users}:double", args=[0], timeout_s=5)
    before = worker.pid
    with pytest.raises(SandboxError, match=f"{users}:fail raised ValueError: no such answer") as raised:
        worker.call(f"{users}:fail", timeout_s=5)
    assert 'raise ValueError("no such answer")' in raised.value.__notes__[0]
    assert worker.pid == before


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("leave", [3], "ended its process with exit code 3"),
        ("unpicklable", [], "raised .*[Pp]ickle"),
        ("missing", [], "users_functions has no 'missing'; it has double, fail"),
    ],
)
def test_a_failure_says_what_happened_and_the_next_call_is_served(worker, users, function, args, message):
    with pytest.raises(SandboxError, match=message):
        worker.call(f"{users}:{function}", args=args, timeout_s=5)
    assert worker.call(f"{users}:double", args=[4], timeout_s=5) == 8


def test_threads_take_turns(worker, users):
    with ThreadPoolExecutor(8) as threads:
        results = threads.map(lambda x: worker.call(f"{users}:double", args=[x], timeout_s=5), range(32))
        assert list(results) == [2 * x for x in range(32)]


def test_a_worker_outlives_the_thread_that_called_it_first(users):
    worker = Worker()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(worker.call, f"{users}:double", args=[1], timeout_s=5).result()
    pid = worker.pid
    time.sleep(0.05)
    assert worker.call(f"{users}:double", args=[2], timeout_s=5) == 4
    assert worker.pid == pid
    worker.close()


def test_the_child_loads_nothing_heavy(worker, users):
    assert not {"torch", "numpy", "ray", "pydantic"} & set(worker.call(f"{users}:loaded", timeout_s=5))


def test_prints_of_a_function_stay_out_of_standard_output(users):
    script = (
        "from ray_rl.sandbox.worker import Worker\n"
        f"worker = Worker()\nworker.call('{users}:shout', timeout_s=5)\nworker.close()"
    )
    environment = {**os.environ, "PYTHONPATH": sys.path[0]}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "to standard output\n")


def test_close_ends_the_child(users):
    worker = Worker()
    worker.call(f"{users}:double", args=[1], timeout_s=5)
    pid = worker.pid
    worker.close()
    assert not is_running(pid)
    assert worker.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel kills a child with its parent")
def test_close_does_not_wait_for_calls_that_hang_and_those_that_wait_behind_them(users):
    worker = Worker()
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(worker.call, f"{users}:sleep", timeout_s=60, args=[60]) for _ in range(4)]
        give_up_s = time.monotonic() + 20
        while worker.pid is None and time.monotonic() < give_up_s:
            time.sleep(0.01)
        start_s = time.monotonic()
        worker.close()
        assert time.monotonic() - start_s < 5
    for call in calls:
        with pytest.raises(SandboxError, match=r"closed|ended its process"):
            call.result(timeout=0)
    with pytest.raises(SandboxError, match="was not called: its worker is closed"):
        worker.call(f"{users}:double", timeout_s=5, args=[1])


def test_a_hung_child_dies_with_its_parent(users, tmp_path):
    script = (
        "import os, threading, time\n"
        "from ray_rl.sandbox.worker import Worker\n"
        "worker = Worker()\n"
        f"worker.call('{users}:double', args=[1], timeout_s=5)\n"
        f"call = lambda: worker.call('{users}:hold_the_interpreter', timeout_s=600)\n"
        "threading.Thread(target=call, daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print(worker.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": sys.path[0]}
    parent = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=30)
    assert parent.returncode == -9
    wait_until_gone(int(parent.stdout))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_child_outlives_what_tells_the_whole_job_to_stop_for_its_driver_has_a_step_to_finish(worker, users, number):
    worker.call(f"{users}:double", args=[1], timeout_s=5)
    asked = worker.pid
    os.kill(asked, number)
    assert worker.call(f"{users}:double", args=[4], timeout_s=5) == 8
    assert worker.pid == asked
