"""What is raised for a worker that failed. Futures that are set by hand stand for Ray's references."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from ray_rl.cluster.calls import Loss, answers
from ray_rl.errors import ClusterError, EngineError, TrainingError, WorkerLost


def done(result):
    future = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future


def failed(error, *, after_s=0.0):
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(after_s, future.set_exception, error)
    return future


def never():
    return asyncio.get_running_loop().create_future()


def raised_by_worker(cause):
    """As Ray delivers it: an error that is both a RayTaskError and the cause's class."""
    return RayTaskError("update", "Traceback ...", cause).as_instanceof_cause()


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "actor-1.log").write_text("".join(f"line {i}\n" for i in range(40)))
    return tmp_path


async def test_results_come_by_name():
    assert await answers({"actor-0": done(1), "actor-1": done(2)}, doing="the update", timeout_s=5) == {
        "actor-0": 1,
        "actor-1": 2,
    }


@pytest.mark.parametrize("error", [TrainingError("the loss is nan"), EngineError("vLLM could not start")])
async def test_an_error_of_ours_arrives_as_itself_with_the_name_of_the_worker(error):
    with pytest.raises(type(error)) as raised:
        await answers({"actor-0": never(), "actor-1": failed(raised_by_worker(error))}, doing="x", timeout_s=0.5)
    assert type(raised.value) is type(error)
    assert str(raised.value) == f"actor-1: {error}"


async def test_an_error_of_an_engine_quotes_its_log(logs):
    error = raised_by_worker(EngineError("the engine died during request 3/1; see its log"))
    with pytest.raises(EngineError) as raised:
        await answers({"actor-1": failed(error)}, doing="generating", timeout_s=5, logs=logs)
    lines = str(raised.value).splitlines()
    assert lines[0] == "actor-1: the engine died during request 3/1; see its log"
    assert lines[1] == f"Last lines of {logs}/actor-1.log:"
    assert lines[-1] == "line 39"


async def test_any_other_error_names_worker_class_message_and_log(logs):
    error = raised_by_worker(OSError("no space left on device"))
    with pytest.raises(ClusterError) as raised:
        await answers({"actor-1": failed(error)}, doing="the export", timeout_s=5, logs=logs)
    lines = str(raised.value).splitlines()
    assert lines[0] == "the export: actor-1 raised OSError: no space left on device"
    assert lines[1] == f"Last lines of {logs}/actor-1.log:"
    assert lines[2:] == [f"line {i}" for i in range(25, 40)]


async def test_a_death_names_worker_usual_causes_and_log(logs):
    with pytest.raises(ClusterError) as raised:
        await answers({"actor-1": failed(ActorDiedError())}, doing="the update", timeout_s=5, logs=logs)
    message = str(raised.value)
    assert message.startswith("the update: actor-1 died (")
    assert "out of memory" in message
    assert message.endswith("line 39")


RAYS_TEXT = """\
The actor died unexpectedly before finishing this task.
\tclass_name: Shell
\tpid: 4711
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) it was killed."""


async def test_of_rays_page_about_a_death_node_process_and_reason_remain():
    error = RayActorError(error_msg=RAYS_TEXT)
    with pytest.raises(ClusterError) as raised:
        await answers({"actor-1": failed(error)}, doing="the update", timeout_s=5)
    assert str(raised.value).startswith(
        "the update: actor-1 died on 10.0.0.7 (process 4711: SYSTEM_ERROR, Worker unexpectedly exits with a connection "
        "error code 2. End of file). Usual causes: "
    )


async def test_a_worker_without_a_log_is_reported_without_it(tmp_path):
    with pytest.raises(ClusterError) as raised:
        await answers({"actor-9": failed(ActorDiedError())}, doing="the update", timeout_s=5, logs=tmp_path)
    assert "Last lines" not in str(raised.value)


@pytest.mark.parametrize("cause", [ActorDiedError(), raised_by_worker(TrainingError("the loss is nan"))])
async def test_the_cause_is_raised_although_a_peer_complained_first(cause):
    """A peer of a dead rank sees its connection close before Ray tells of the death."""
    refs = {
        "actor-0": failed(raised_by_worker(RuntimeError("Connection closed by peer"))),
        "actor-1": failed(cause, after_s=0.1),
    }
    with pytest.raises((ClusterError, TrainingError), match=r"actor-1(: the loss is nan| died)"):
        await answers(refs, doing="the update", timeout_s=5)


async def test_the_workers_that_were_not_done_in_time_are_named():
    with pytest.raises(ClusterError) as raised:
        await answers({"a-0": never(), "a-1": done(1), "a-2": never()}, doing="loading", timeout_s=0.05)
    assert str(raised.value) == "loading: a-0, a-2 did not finish within 0.05 s; see the logs of the run"


OUT_OF_MEMORY = """\
\x1b[36m2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 1f30) was \
22.55GB used / 23.54GB limit (0.958036)
OOM kill reason: Memory usage 24121171968B exceeded threshold of 24012677120B (95.0% of 25276502016B limit)
Ray killed 2 worker(s) based on the killing policy
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
28602\t9.15\tray::actor-0
29007\t4.65\tpython -c from multiprocessing.spawn import spawn_main...
28720\t1.97\tVLLM::EngineCore
28601\t0.50\tray::rollout-0
28423\t0.35\tpython
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/"""


async def test_a_worker_that_ray_killed_for_its_memory_is_lost_and_the_largest_processes_are_named():
    refs = {"actor-0": failed(ClusterError("a closed connection")), "actor-1": failed(OutOfMemoryError(OUT_OF_MEMORY))}
    with pytest.raises(WorkerLost) as raised:
        await answers(refs, doing="the update", timeout_s=5)
    assert str(raised.value) == (
        "the update: actor-1 was killed by Ray, as the memory of its node ran out: node 10.0.0.7 had 22.55GB of "
        "23.54GB in use, most of it ray::actor-0 9.15 GB (process 28602), python -c from multiprocessing.spawn "
        "import spawn_main... 4.65 GB (process 29007), VLLM::EngineCore 1.97 GB (process 28720), ray::rollout-0 "
        "0.50 GB (process 28601). Lower train.micro_batch_tokens or rollout.kv_cache_gib (`ray-rl plan` shows "
        "the memory of each part), or end other processes there."
    )


async def test_memory_that_ran_out_in_other_words_is_told_in_those():
    with pytest.raises(WorkerLost, match=r"as the memory of its node ran out: Task was killed\. Lower"):
        await answers({"actor-0": failed(OutOfMemoryError("Task was\n killed"))}, doing="x", timeout_s=5)


async def test_whatever_else_ray_raises_names_worker_and_class(logs):
    with pytest.raises(ClusterError, match=r"^scoring: actor-1 cannot be reached: ObjectLostError: .*") as raised:
        await answers(
            {"actor-1": failed(ObjectLostError("aa", "owner", "here"))}, doing="scoring", timeout_s=5, logs=logs
        )
    assert str(raised.value).endswith("line 39")


async def test_workers_that_are_written_off_end_the_wait_at_once_and_the_first_reason_is_given():
    loss = Loss()
    asyncio.get_running_loop().call_later(0.01, loss.tell, "actor-1 has not answered for 60.0 s")
    asyncio.get_running_loop().call_later(0.01, loss.tell, "another reason")
    with pytest.raises(WorkerLost, match=r"^update: actor-1 has not answered for 60\.0 s$"):
        await answers({"actor-0": done(1), "actor-1": never()}, doing="update", timeout_s=5, loss=loss)


async def test_results_that_have_arrived_are_not_lost_with_the_workers():
    assert await answers({"actor-0": done(1)}, doing="update", timeout_s=5, loss=Loss()) == {"actor-0": 1}
