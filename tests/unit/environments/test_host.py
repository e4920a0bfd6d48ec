"""Environments in a host: those that work, and those that raise, hang, or answer nonsense."""

import asyncio
import threading
import time

import pytest

from ray_rl.environments.base import Opening, Step
from ray_rl.environments.host import Host
from ray_rl.environments.tools.calls import Parsed
from ray_rl.errors import ConfigError, DataError, EnvironmentFailed
from ray_rl.types import Message, Prompt, ToolCall
from tests.make import completion

PROMPT = Prompt("p/0", (1, 2), "question", {"answer": 3}, messages=(Message("user", "question"),))
LIMIT_S = 0.2


class Words:
    """A conversation in which each message is one token, its length."""

    def begin(self, prompt, messages, tools):
        return Prompt(prompt.id, (*prompt.token_ids, *(len(each.content) for each in messages)), prompt.text)

    def follow(self, messages, sampled, calls):
        return tuple(len(message.content) for message in messages)

    def decode(self, token_ids):
        return f"<{len(token_ids)}>"


class Plain:
    """Counts to two, in plain functions."""

    def __init__(self):
        self.turns, self.closed = 0, 0

    def reset(self, row, seed):
        self.row, self.seed = row, seed
        return [Message("user", "begin")]

    def step(self, reply):
        self.turns += 1
        self.reply = reply
        return Step((Message("user", "more"),), 0.5, self.turns == 2, {"turn": self.turns})

    def close(self):
        self.closed += 1


class Waiting(Plain):
    """The same in coroutines."""

    async def reset(self, row, seed):
        return super().reset(row, seed)

    async def step(self, reply):
        await asyncio.sleep(0)
        return super().step(reply)

    async def close(self):
        super().close()


def with_step(step):
    return type("Other", (Plain,), {"step": lambda self, reply: step(reply)})


def host_of(make, *, parse=None):
    made = []

    def remembered():
        made.append(make())
        return made[-1]

    return Host(remembered, Words(), parse=parse, timeout_s=LIMIT_S), made


async def play(host, steps=1):
    await host.begin("e", PROMPT, 7)
    answers = [await host.step("e", completion(4, "said"), 100) for _ in range(steps)]
    await host.end("e")
    return answers


@pytest.mark.parametrize("kind", [Plain, Waiting])
def test_an_episode_in_plain_functions_or_coroutines(kind):
    host, made = host_of(kind)
    first, second = asyncio.run(play(host, steps=2))
    (environment,) = made
    assert (environment.row, environment.seed) == ({"prompt": "question", "answer": 3}, 7)
    assert (first.token_ids, first.reward, first.done) == ((4,), 0.5, False)
    assert (second.token_ids, second.done) == ((), True)
    assert first.metrics["turn"] == 1
    assert first.metrics["seconds"] >= 0
    assert environment.reply.text == "said"
    assert environment.closed == 1


def test_the_first_messages_follow_the_prompt():
    host, _ = host_of(Plain)
    assert asyncio.run(host.begin("e", PROMPT, 0)).token_ids == (1, 2, 5)


def test_a_whole_conversation_may_begin_an_episode_and_bring_tools():
    class Agent(Plain):
        def reset(self, row, seed):
            return Opening((Message("system", "be"), Message("assistant", "yes")), ({"name": "add"},))

    seen = []

    class Recording(Words):
        def begin(self, prompt, messages, tools):
            seen.append((messages, tools))
            return prompt

    asyncio.run(Host(Agent, Recording(), parse=None, timeout_s=5).begin("e", PROMPT, 0))
    assert seen == [((Message("system", "be"), Message("assistant", "yes")), ({"name": "add"},))]


def test_calls_of_tools_are_read_from_the_text_with_special_tokens():
    def parse(text):
        return Parsed("without", (ToolCall(text, {}),))

    host, made = host_of(Plain, parse=parse)
    (answer,) = asyncio.run(play(host))
    assert answer.tool_calls == made[0].reply.tool_calls == (ToolCall("<4>", {}),)
    assert made[0].reply.text == "without"


def test_a_message_that_cannot_fit_is_not_tokenised():
    class Counting(Words):
        def follow(self, messages, sampled, calls):
            raise AssertionError

    make = with_step(lambda _: Step((Message("tool", "x" * 1_000_000),)))
    (answer,) = asyncio.run(play(Host(make, Counting(), parse=None, timeout_s=5)))
    assert (answer.is_too_long, answer.token_ids) == (True, ())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "NoneType None, not a ray_rl.environments.base.Step"),
        (Step(), "neither messages nor done"),
        (Step("hello"), "messages of str 'hello'"),
        (Step((Message("assistant", "x"),)), "the role user or tool"),
        (Step((Message("user", 3),)), "with text"),
        (Step(({"role": "user", "content": "x"},)), "the message dict"),
        (Step(done=True, reward=float("nan")), "the reward float nan"),
        (Step(done=True, reward="1"), "the reward str '1'"),
        (Step(done=True, reward=[1]), "the reward list"),
        (Step(done=True, metrics={"a": float("inf")}), "the metric a="),
    ],
)
def test_an_answer_that_is_none_is_a_failure_that_says_what_was_seen(answer, message):
    host, _ = host_of(with_step(lambda _: answer))
    with pytest.raises(EnvironmentFailed, match=message.replace("'", ".")):
        asyncio.run(play(host))


def test_a_completion_without_calls_is_replied_word_for_word():
    host, made = host_of(Plain, parse=lambda text: Parsed("without"))
    (answer,) = asyncio.run(play(host))
    assert (made[0].reply.text, answer.tool_calls) == ("said", ())


def test_a_coroutine_that_cancels_itself_is_a_failure():
    class Leaving(Plain):
        async def step(self, reply):
            raise asyncio.CancelledError

    with pytest.raises(EnvironmentFailed, match="step raised CancelledError"):
        asyncio.run(play(Host(Leaving, Words(), parse=None, timeout_s=5)))


@pytest.mark.parametrize("error", [KeyError("board"), SystemExit(3), KeyboardInterrupt(), RecursionError()])
def test_an_environment_that_raises_is_a_failure_with_its_place(error, capsys):
    def step(_):
        raise error

    host, _ = host_of(with_step(step))
    with pytest.raises(EnvironmentFailed, match=rf"step raised {type(error).__name__}.*test_host.py:\d+"):
        asyncio.run(play(host))
    assert "Traceback" in capsys.readouterr().err


def test_text_that_the_policy_cannot_read_is_a_failure_of_the_environment():
    class Unwritable(Words):
        def follow(self, messages, sampled, calls):
            raise DataError("the tokenizer loses text")

    with pytest.raises(EnvironmentFailed, match="loses text"):
        asyncio.run(play(Host(Plain, Unwritable(), parse=None, timeout_s=5)))


def test_a_constructor_and_a_reset_that_raise_are_failures():
    def make():
        raise OSError("no display")

    with pytest.raises(EnvironmentFailed, match="its function raised OSError: no display"):
        asyncio.run(play(Host(make, Words(), parse=None, timeout_s=5)))


def test_what_is_no_environment_is_refused():
    with pytest.raises(ConfigError, match=r"made dict \{\}, which has no reset"):
        asyncio.run(play(Host(dict, Words(), parse=None, timeout_s=5)))


def test_a_hanging_plain_function_holds_up_no_other_episode_and_is_counted():
    gate = threading.Event()
    host, _ = host_of(with_step(lambda _: gate.wait(30) and Step(done=True)))
    other, _ = host_of(Plain)

    async def both():
        began_s = time.monotonic()
        failed = asyncio.ensure_future(play(host))
        assert len(await play(other)) == 1
        with pytest.raises(EnvironmentFailed, match=f"step did not return within {LIMIT_S:g} s"):
            await failed
        stuck = host.stuck
        gate.set()
        while host.stuck:
            await asyncio.sleep(0.01)
        return stuck, time.monotonic() - began_s

    stuck, took_s = asyncio.run(both())
    assert stuck == 1
    assert took_s < 10


def test_a_coroutine_that_ignores_its_end_is_not_waited_for():
    class Stubborn(Plain):
        async def step(self, reply):
            for _ in range(2):
                try:
                    await asyncio.sleep(2)
                except asyncio.CancelledError:
                    continue
            return Step(done=True)

    host, _ = host_of(Stubborn)

    async def timed():
        began_s = time.monotonic()
        with pytest.raises(EnvironmentFailed, match="did not return"):
            await play(host)
        return time.monotonic() - began_s, host.stuck

    took_s, stuck = asyncio.run(timed())
    assert took_s < 1.5
    assert stuck == 1


def test_what_close_raises_ends_nothing(capsys):
    class Leaving(Plain):
        def close(self):
            raise OSError("gone already")

    host, _ = host_of(Leaving)
    asyncio.run(play(host))
    asyncio.run(host.end("unknown"))
    assert "gone already" in capsys.readouterr().err
