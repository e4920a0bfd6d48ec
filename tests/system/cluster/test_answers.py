"""Of many calls, each answers or is named with why it did not."""

import time

import ray

from ray_rl.preflight.answers import gather


def answer() -> int:
    return 7


def fail() -> None:
    raise OSError("no such device")


def sleep() -> None:
    time.sleep(60)


def test_who_does_not_answer_in_time_or_fails_is_named_beside_those_who_do(connected):
    refs = {name: ray.remote(num_cpus=0, max_retries=0)(call).remote() for name, call in
            {"a": answer, "b": fail, "c": sleep}.items()}  # fmt: skip
    gather({"warm": refs["a"], "failed": refs["b"]}, timeout_s=60)
    begin_s = time.monotonic()
    answers = gather(refs, timeout_s=0.5)
    assert time.monotonic() - begin_s < 5
    assert answers.results == {"a": 7}
    assert answers.failures == {"b": "OSError: no such device", "c": "nothing within 0.5 s"}
    ray.cancel(refs["c"], force=True)


def test_nobody_asked_is_nobody_waited_for(connected):
    assert gather({}, timeout_s=60).results == {}
