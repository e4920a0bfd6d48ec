"""Agents that are programs with an OpenAI client, over the endpoint; the turns of the policy are scripted."""

import asyncio
import json
import os
import sys
import time

import psutil
import pytest

from ray_rl.environments.base import Opening, Reply
from ray_rl.environments.host import Host
from ray_rl.environments.program.program import maker_of_program
from ray_rl.errors import EnvironmentFailed
from ray_rl.types import Message, Prompt, ToolCall
from tests.make import completion

SLEEP = ["sleep", f"3600.{os.getpid()}"]
"""A child of a program, which no other run of these tests has."""
AGENT = """
import json, os, sys
from openai import OpenAI

row, mode = json.load(open(os.environ["RAY_RL_ROW"])), sys.argv[1]
client = OpenAI(timeout=30, max_retries=0)
conversation = [{"role": "system", "content": "be brief"}, {"role": "user", "content": row["prompt"]}]


def ask(**more):
    return client.chat.completions.create(model=os.environ["OPENAI_MODEL"], messages=conversation, **more)


if mode == "stream":
    first = "".join(part.choices[0].delta.content or "" for part in ask(stream=True))
elif mode == "parts":
    conversation[1]["content"] = [{"type": "text", "text": row["prompt"]}]
    first = ask().choices[0].message.content
elif mode == "tools":
    schema = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = ask(tools=[schema]).choices[0].message.tool_calls[0]
    first = call.function.name + call.function.arguments
elif mode == "image":
    conversation[1]["content"] = [{"type": "image_url", "image_url": {"url": "x"}}]
    ask()
elif mode == "silent":
    sys.exit("no model")
else:
    first = ask().choices[0].message.content
said = [{"role": "assistant", "content": first if mode != "tools" else ""}]
if mode == "rewrite":
    said = [{"role": "assistant", "content": "something else"}]
conversation += [*said, {"role": "user", "content": "and then?"}]
if mode == "raise":
    raise KeyError("lost")
second = ask().choices[0].message.content
print("a line of the program")
metrics = {"seed": int(os.environ["RAY_RL_SEED"])}
print("nonsense" if mode == "nonsense" else json.dumps({"reward": len(second), "metrics": metrics}))
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    file = tmp_path_factory.mktemp("agent") / "agent.py"
    file.write_text(AGENT)
    return file


def program(agent, mode):
    return maker_of_program([sys.executable, str(agent), mode], {})()


async def play(environment, *replies):
    try:
        opening = await environment.reset({"prompt": "What is 1 + 1?"}, 7)
        return [opening, *[await environment.step(Reply(text)) for text in replies]]
    finally:
        await environment.close()


@pytest.mark.parametrize("mode", ["plain", "stream", "parts"])
def test_a_program_gets_the_turns_of_the_policy_as_answers_and_says_its_reward(agent, mode):
    opening, step, end = asyncio.run(play(program(agent, mode), "two", "three"))
    assert opening == Opening((Message("system", "be brief"), Message("user", "What is 1 + 1?")))
    assert (step.messages, step.done) == ((Message("user", "and then?"),), False)
    assert (end.reward, end.done, end.metrics) == (5, True, {"seed": 7})


def test_calls_of_tools_reach_the_program_and_its_schemas_the_prompt(agent):
    async def call():
        environment = program(agent, "tools")
        try:
            opening = await environment.reset({"prompt": "What is 1 + 1?"}, 0)
            step = await environment.step(Reply("", (ToolCall("add", {"a": 1}),)))
            return opening, step, await environment.step(Reply("2"))
        finally:
            await environment.close()

    opening, step, end = asyncio.run(call())
    assert opening.tools[0]["function"]["name"] == "add"
    assert step.messages == (Message("user", "and then?"),)
    assert end.reward == 1


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("silent", "ended before it asked for a turn; it printed 'no model'"),
        ("image", "ended before it asked .*a part of type image_url"),
        ("rewrite", "changed its conversation: message 3 is not what it was"),
        ("raise", "ended with code 1; it printed .*KeyError: .*lost"),
        ("nonsense", "the last line of the program is not JSON like .*nonsense"),
    ],
)
def test_a_program_that_fails_says_why(agent, mode, message):
    with pytest.raises(EnvironmentFailed, match=message.replace("'", ".")):
        asyncio.run(play(program(agent, mode), "two", "three"))


def test_a_program_that_hangs_ends_with_its_episode_and_its_children(tmp_path):
    file = tmp_path / "hangs.py"
    file.write_text(f"import subprocess, time\nsubprocess.Popen({SLEEP})\ntime.sleep(3600)\n")

    class Words:
        def begin(self, prompt, messages, tools):
            return prompt

    async def hang():
        host = Host(maker_of_program([sys.executable, str(file)], {}), Words(), parse=None, timeout_s=3)
        with pytest.raises(EnvironmentFailed, match="reset did not return within 3 s"):
            await host.begin("e", Prompt("p/0", (1,), "?"), 0)
        await host.end("e")

    asyncio.run(hang())
    until_s = time.monotonic() + 10
    while sleeping() and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not sleeping()


def sleeping():
    return [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == SLEEP]


def test_a_whole_episode_in_a_host(agent):
    class Words:
        def begin(self, prompt, messages, tools):
            return Prompt(prompt.id, tuple(len(each.content) for each in messages), prompt.text)

        def follow(self, messages, sampled, calls):
            return tuple(len(message.content) for message in messages)

        def decode(self, token_ids):
            return ""

    async def episode():
        host = Host(maker_of_program([sys.executable, str(agent), "plain"], {}), Words(), parse=None, timeout_s=60)
        prompt = await host.begin("e", Prompt("p/0", (1,), "What?"), 3)
        answers = [await host.step("e", completion(2, "two"), 100) for _ in range(2)]
        await host.end("e")
        return prompt, answers

    prompt, (first, second) = asyncio.run(episode())
    assert prompt.token_ids == (len("be brief"), len("What?"))
    assert first.token_ids == (len("and then?"),)
    assert (second.reward, second.done, second.metrics["seed"]) == (3.0, True, 3.0)
    assert json.dumps(second.reward)
