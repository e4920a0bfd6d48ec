"""What an engine may do while its memory is away, over a scripted vLLM."""

import asyncio

import pytest

from ray_rl.errors import EngineError, EngineLost
from ray_rl.rollout.memory import EngineMemory
from ray_rl.rollout.receiver import WeightReceiver


class Llm:
    """Writes down what it is asked. Says that it is awake after the last part has come back."""

    def __init__(self):
        self.asked, self.errors, self.wakes_up = [], {}, True

    def __getattr__(self, method):
        async def call(*arguments, **keywords):
            self.asked.append((method, *arguments, *keywords.values()))
            if method in self.errors:
                raise self.errors[method]
            if method == "get_weight_version":
                return "7"
            if method == "reset_prefix_cache":
                return True
            return self.wakes_up and arguments == (["kv_cache"],)

        return call

    def methods(self):
        return [method for method, *_ in self.asked]


def does(*calls):
    """Runs the calls one after the other."""

    async def main():
        for call in calls:
            await call()

    asyncio.run(main())


@pytest.mark.parametrize("level", [1, 2])
def test_an_engine_keeps_its_requests_while_it_sleeps_and_gets_its_memory_back_in_two_parts(level):
    llm = Llm()
    receiver = WeightReceiver(llm, sleep_level=level)
    does(
        receiver.memory.sleep,
        receiver.memory.wake_weights,
        receiver.begin_update,
        lambda: receiver.commit(7),
        receiver.memory.wake,
    )
    assert llm.asked[:2] == [("sleep", level, "keep"), ("wake_up", ["weights"])]
    assert llm.asked[-1] == ("wake_up", ["kv_cache"])


def test_what_is_done_already_is_not_asked_again():
    llm = Llm()
    receiver = WeightReceiver(llm)
    does(
        receiver.memory.wake,
        receiver.memory.wake_weights,
        receiver.memory.sleep,
        receiver.memory.sleep,
        receiver.memory.wake_weights,
        receiver.memory.wake_weights,
    )
    assert llm.methods() == ["sleep", "wake_up"]


@pytest.mark.parametrize("method", ["begin_update", "checksums"])
def test_weights_that_are_away_are_neither_written_nor_read(method):
    llm = Llm()
    receiver = WeightReceiver(llm)
    does(receiver.memory.sleep)
    with pytest.raises(EngineError, match="asleep: its weights have to be woken up first"):
        does(getattr(receiver, method))
    assert llm.methods() == ["sleep"]


def test_generation_starts_with_the_cache_and_not_with_the_end_of_a_publish():
    llm = Llm()
    receiver = WeightReceiver(llm)
    does(receiver.memory.sleep, receiver.memory.wake_weights, receiver.resume)
    assert "resume_generation" not in llm.methods()
    does(receiver.memory.wake)
    assert llm.asked[-1] == ("wake_up", ["kv_cache"])
    does(receiver.resume)
    assert llm.methods()[-1] == "resume_generation"


def test_weights_that_were_dropped_are_published_before_the_engine_samples():
    llm = Llm()
    receiver = WeightReceiver(llm, sleep_level=2)
    does(receiver.memory.sleep, receiver.memory.wake_weights)
    with pytest.raises(EngineError, match="'weights' cannot sample; publish weights to it first"):
        does(receiver.memory.wake)
    does(lambda: receiver.commit(7), receiver.memory.wake)
    assert llm.asked[-1] == ("wake_up", ["kv_cache"])


def test_an_engine_that_sleeps_wakes_its_weights_first():
    receiver = WeightReceiver(Llm())
    does(receiver.memory.sleep)
    with pytest.raises(EngineError, match="'asleep' cannot sample"):
        does(receiver.memory.wake)


def test_an_engine_in_the_middle_of_waking_up_cannot_sleep_again_and_restarts():
    receiver = WeightReceiver(Llm())
    does(receiver.memory.sleep, receiver.memory.wake_weights)
    with pytest.raises(EngineLost, match="it has to be restarted"):
        does(receiver.memory.sleep)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("sleep", "could not fall asleep: Memory usage increased"),
        ("wake_up", "could not wake up its weights: CUDA error"),
    ],
)
def test_a_failure_of_vllm_loses_the_engine_with_its_reason(method, reason):
    llm = Llm()
    llm.errors[method] = Exception(reason.partition(": ")[2])
    receiver = WeightReceiver(llm)
    with pytest.raises(EngineLost, match=reason):
        does(receiver.memory.sleep, receiver.memory.wake_weights)


def test_an_engine_that_says_it_still_sleeps_is_lost():
    llm = Llm()
    llm.wakes_up = False
    receiver = WeightReceiver(llm)
    does(receiver.memory.sleep, receiver.memory.wake_weights)
    with pytest.raises(EngineLost, match="still sleeps after all its memory was woken up"):
        does(receiver.memory.wake)


def test_a_sleeping_engine_has_no_update_to_abort():
    llm = Llm()
    receiver = WeightReceiver(llm)
    does(receiver.memory.sleep, receiver.abort_update)
    assert llm.methods() == ["sleep"]


def test_the_state_of_a_new_engine_is_awake_with_weights():
    memory = EngineMemory(Llm)
    assert (memory.state, memory.has_weights, memory.level) == ("awake", True, 1)
