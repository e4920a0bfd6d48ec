import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ray_rl.errors import ConfigError, ProcessDied, SandboxError
from ray_rl.isolation.channel import receive, send
from ray_rl.isolation.pool import Pool
from ray_rl.isolation.worker import Worker

FUNCTIONS = r"""
import os, re, subprocess, sys, time

def double(x, plus=0):
    return 2 * x + plus

def sleep(seconds):
    start_s = time.monotonic()
    time.sleep(seconds)
    return start_s, time.monotonic()

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

def fork_and_return(x):
    # the forked child returns, too, as a careless use of os.fork does
    if os.fork() == 0:
        time.sleep(0.1)
        return "of the child"
    return x

def fork_before_us(x):
    # the forked child is the first to return
    if pid := os.fork():
        os.waitpid(pid, 0)
        return x
    return "of the child"

def pool_of_forks(x):
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(double, [x, x + 1])

def fork_that_exits(code):
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sys.exit(code)

def start_a_session(path, own_environment=False):
    # one child with its own session, and one of its own with another
    command = "sleep 60 & echo $! >> " + path + "; setsid sleep 61 & echo $! >> " + path + "; wait"
    environment = {"PATH": os.environ["PATH"]} if own_environment else None
    process = subprocess.Popen(["sh", "-c", command], start_new_session=True, env=environment)
    with open(path, "a") as file:
        file.write(f"{process.pid}\n")
    time.sleep(0.5)

def start_a_session_and_wait(path, own_environment):
    start_a_session(path, own_environment)
    time.sleep(60)

def start_a_session_and_die(path):
    start_a_session(path)
    os._exit(1)

def print_megabytes(count):
    for _ in range(count):
        print("x" * (1 << 20))
        os.write(2, b"y" * (1 << 20))

def raise_megabytes(count):
    raise ValueError("z" * (count << 20))

def leave_by_sys_exit():
    sys.exit(0)

def eat(count):
    return len(bytearray(count))

def of_a_deep_recursion():
    return of_a_deep_recursion()
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
    shown = worker.call(f"{users}:unpicklable", convert=(f"{users}:text", {}), timeout_s=5)
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
    ],
)
def test_a_failure_says_what_happened_and_the_next_call_is_served(worker, users, function, args, message):
    with pytest.raises(SandboxError, match=message):
        worker.call(f"{users}:{function}", args=args, timeout_s=5)
    assert worker.call(f"{users}:double", args=[4], timeout_s=5) == 8


def test_a_function_that_is_missing_is_the_users_mistake_and_the_next_call_is_served(worker, users):
    with pytest.raises(ConfigError, match="users_functions has no 'missing'; it has double, eat, fail"):
        worker.call(f"{users}:missing", timeout_s=5)
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
        "from ray_rl.isolation.worker import Worker\n"
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
        "from ray_rl.isolation.worker import Worker\n"
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


def test_a_function_that_forks_gets_its_own_results_call_after_call(worker, users):
    for x in range(5):
        assert worker.call(f"{users}:fork_and_return", args=[x], timeout_s=5) == x
        time.sleep(0.03)


@pytest.mark.parametrize("function", ["fork_before_us", "fork_and_return"])
def test_a_forked_child_that_returns_first_does_not_answer(worker, users, function):
    calls = [worker.call(f"{users}:{name}", args=[3], timeout_s=5) for name in (function, "double", function, "double")]
    assert calls == [3, 6, 3, 6]


def test_forks_of_multiprocessing_work_and_later_calls_get_their_own_results(worker, users):
    calls = [worker.call(f"{users}:pool_of_forks", args=[x], timeout_s=20) for x in (1, 2)]
    assert calls == [[2, 4], [4, 6]]
    assert worker.call(f"{users}:double", args=[7], timeout_s=5) == 14


def test_a_forked_child_keeps_its_exit_code(worker, users):
    assert worker.call(f"{users}:fork_that_exits", args=[3], timeout_s=5) == 3


def test_replies_of_other_numbers_are_not_taken_for_the_answer(worker, users):
    """As if a forked child of an earlier call had answered late."""
    worker.call(f"{users}:double", args=[1], timeout_s=5)
    stale = pickle.dumps(("value", "stale"))
    theirs, ours = socket.socketpair()
    real, worker._channel = worker._channel, ours
    try:
        send(theirs, stale, number=worker._number)
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(worker.call, f"{users}:double", args=[4], timeout_s=5)
            number, _request = receive(theirs, deadline_s=time.monotonic() + 5)
            send(theirs, stale, number=number - 1)
            send(theirs, b"", number=number)
            send(theirs, pickle.dumps(("value", "ours")), number=number)
            assert call.result(timeout=5) == "ours"
    finally:
        worker._channel = real
        theirs.close()
        ours.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_that_is_killed_between_two_calls_is_replaced_and_the_call_succeeds(worker, users, number):
    for _ in range(3):
        worker.call(f"{users}:double", args=[1], timeout_s=5)
        killed = worker.pid
        os.kill(killed, number)
        assert worker.call(f"{users}:double", args=[4], timeout_s=5) == 8
        assert worker.pid != killed


def test_a_child_that_ends_during_a_call_is_told_apart_from_a_function_that_raises(worker, users):
    with pytest.raises(ProcessDied):
        worker.call(f"{users}:leave", args=[3], timeout_s=5)
    with pytest.raises(SandboxError) as raised:
        worker.call(f"{users}:fail", timeout_s=5)
    assert not isinstance(raised.value, ProcessDied)


@pytest.mark.parametrize(
    ("function", "more"),
    [
        ("start_a_session_and_wait", [False]),
        ("start_a_session_and_wait", [True]),
        ("start_a_session_and_die", []),
    ],
)
def test_children_with_a_session_of_their_own_end_with_the_call_that_hangs_or_dies(users, tmp_path, function, more):
    worker, pids = Worker(), tmp_path / "pids"
    with pytest.raises((TimeoutError, ProcessDied)):
        worker.call(f"{users}:{function}", args=[str(pids), *more], timeout_s=2)
    assert len(pids.read_text().split()) == 3
    for pid in pids.read_text().split():
        wait_until_gone(int(pid))
    worker.close()


def test_children_with_a_session_of_their_own_end_with_close(users, tmp_path):
    worker, pids = Worker(), tmp_path / "pids"
    worker.call(f"{users}:start_a_session", args=[str(pids)], timeout_s=10)
    assert all(is_running(int(pid)) for pid in pids.read_text().split())
    worker.close()
    for pid in pids.read_text().split():
        wait_until_gone(int(pid))


def test_megabytes_of_prints_do_not_reach_standard_error(users):
    script = (
        "from ray_rl.isolation.worker import Worker\n"
        f"worker = Worker()\nworker.call('{users}:print_megabytes', args=[50], timeout_s=60)\n"
        f"worker.call('{users}:shout', timeout_s=5)\nworker.close()"
    )
    environment = {**os.environ, "PYTHONPATH": sys.path[0]}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert 1000 < len(done.stderr) < 40_000
    assert "more bytes that a function printed are not shown]" in done.stderr
    assert done.stderr.endswith("to standard output\n")


def test_a_text_of_megabytes_in_an_exception_is_shortened_on_its_way(worker, users):
    with pytest.raises(SandboxError, match=r"raised ValueError: zzz.*characters \.\.\.\] zzz") as raised:
        worker.call(f"{users}:raise_megabytes", args=[50], timeout_s=30)
    assert len(str(raised.value)) < 3_000
    assert all(len(note) < 25_000 for note in raised.value.__notes__)


def test_an_error_says_file_and_line_of_the_users_code(worker, users):
    with pytest.raises(SandboxError, match=r"users_functions\.py:22 in fail"):
        worker.call(f"{users}:fail", timeout_s=5)


def test_sys_exit_in_a_function_is_an_error_and_ends_nothing(worker, users):
    worker.call(f"{users}:double", args=[1], timeout_s=5)
    before = worker.pid
    with pytest.raises(SandboxError, match="raised SystemExit: 0"):
        worker.call(f"{users}:leave_by_sys_exit", timeout_s=5)
    assert worker.pid == before


def test_a_recursion_without_end_is_an_error(worker, users):
    with pytest.raises(SandboxError, match="raised RecursionError"):
        worker.call(f"{users}:of_a_deep_recursion", timeout_s=10)


def test_memory_beyond_the_limit_is_an_error_of_the_call(users):
    worker = Worker(memory_bytes=1 << 30)
    assert worker.call(f"{users}:eat", args=[1 << 20], timeout_s=10) == 1 << 20
    with pytest.raises(SandboxError, match="raised MemoryError"):
        worker.call(f"{users}:eat", args=[2 << 30], timeout_s=10)
    worker.close()


def test_a_pool_knows_how_long_its_workers_had_calls(users):
    pool = Pool(2)
    try:
        started_s = time.perf_counter()
        calls = [pool.submit(f"{users}:sleep", args=[0.2], timeout_s=5) for _ in range(2)]
        for call in calls:
            call.result(timeout=20)
        both_s = time.perf_counter() - started_s
        busy_s = pool.busy_s
        assert 0.4 <= busy_s <= 2 * both_s
        time.sleep(0.1)
        assert pool.busy_s == busy_s, "nobody was busy"
    finally:
        pool.close()


def test_a_pool_starts_a_process_only_when_the_others_are_busy(users):
    pool = Pool(2)
    try:
        for x in range(3):
            assert pool.submit(f"{users}:double", args=[x], timeout_s=5).result(timeout=20) == 2 * x
        assert pool.processes == 1
        pool.submit(f"{users}:sleep", args=[0.2], timeout_s=5)
        pool.submit(f"{users}:double", args=[1], timeout_s=5).result(timeout=20)  # both have started
        calls = [pool.submit(f"{users}:sleep", args=[0.3], timeout_s=5).result for _ in range(4)]
        times = sorted(call(timeout=20) for call in calls)
        assert pool.processes == 2
        assert times[1][0] < times[0][1], "the second began before the first had ended"
    finally:
        pool.close()
    with pytest.raises(SandboxError, match="closed"):
        pool.submit(f"{users}:double", args=[1], timeout_s=5)
