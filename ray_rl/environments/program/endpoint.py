"""An endpoint like OpenAI's on this machine, whose answers come from the episodes of a run.

A program sends `POST /v1/chat/completions` and waits; its request is what the environment of its episode says next, and
the next turn of the policy is the answer. The key of the request names the episode.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray_rl.environments.base import Reply
from ray_rl.types import Message

if TYPE_CHECKING:
    from aiohttp import web

MODEL = "policy"
"""The name of the only model of the endpoint."""
MOST_BYTES = 64 * 2**20
"""The largest request."""
SHUTDOWN_S = 1.0
"""How long the end of the server may wait for its connections."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a program for the next turn of the policy."""

    messages: tuple[Message, ...]
    """The whole conversation."""
    tools: tuple[Mapping[str, Any], ...]
    """The schemas of its tools, in OpenAI's form."""
    answer: asyncio.Future[Reply] = field(compare=False)
    """What the policy says; cancelled if the episode ends instead."""


class Endpoint:
    """Serves the programs of many episodes."""

    def __init__(self) -> None:
        self._sessions: dict[str, asyncio.Queue[Asked]] = {}
        self._changing = asyncio.Lock()
        self._runner: web.AppRunner | None = None

    async def open(self, key: str) -> tuple[str, asyncio.Queue[Asked]]:
        """Returns the address for `OPENAI_BASE_URL`, and the requests with a key. The first key starts the server."""
        from aiohttp import web

        async with self._changing:
            queue: asyncio.Queue[Asked] = asyncio.Queue()
            self._sessions[key] = queue
            if self._runner is None:
                app = web.Application(client_max_size=MOST_BYTES)
                app.router.add_post("/v1/chat/completions", self._complete)
                app.router.add_get("/v1/models", self._models)
                self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
                await self._runner.setup()
                site = web.TCPSite(self._runner, "127.0.0.1", 0)
                await site.start()
            return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1", queue

    async def close(self, key: str) -> None:
        """Refuses further requests with a key. The last key ends the server."""
        async with self._changing:
            self._sessions.pop(key, None)
            if not self._sessions and self._runner is not None:
                runner, self._runner = self._runner, None
                await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        from aiohttp import web

        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "ray_rl"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        session = self._sessions.get(key)
        if session is None:
            return web.json_response(_refusal("the key belongs to no running episode"), status=401)
        try:
            body = await request.json()
            messages, tools = conversation_of(body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return web.json_response(_refusal(f"{type(error).__name__}: {error}"), status=400)
        asked = Asked(messages, tools, asyncio.get_running_loop().create_future())
        session.put_nowait(asked)
        try:
            reply = await asked.answer
        except asyncio.CancelledError:
            if asked.answer.cancelled():
                return web.json_response(_refusal("the episode is over"), status=410)
            raise
        if body.get("stream"):
            return await _streamed(request, reply)
        return web.json_response(_completion(reply))


def conversation_of(body: Json) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
    """Returns the messages and the tools of a request.

    Raises:
        ValueError: the request asks for what an episode cannot give.
    """
    if body.get("n", 1) not in (None, 1):
        raise ValueError(f"n={body['n']}: an episode has one continuation; ask for n=1")
    if not body.get("messages"):
        raise ValueError("messages is empty; give the conversation")
    messages = tuple(Message(each["role"], _text_of(each.get("content"))) for each in body["messages"])
    return messages, tuple(body.get("tools") or ())


def _text_of(content: Any) -> str:
    """Returns the text of a message, whose content may be a list of parts.

    Raises:
        ValueError: it has another part than text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    other = next((part["type"] for part in content if part["type"] != "text"), None)
    if other is not None:
        raise ValueError(f"content has a part of type {other}; the policy reads text alone")
    return "".join(part["text"] for part in content)


def _message(reply: Reply) -> Json:
    calls = [call for call in reply.tool_calls if call.error is None]
    if not calls:
        return {"role": "assistant", "content": reply.text}
    return {
        "role": "assistant",
        "content": reply.text,
        "tool_calls": [
            {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for index, call in enumerate(calls)
        ],
    }


def _completion(reply: Reply) -> Json:
    message = _message(reply)
    reason = "tool_calls" if "tool_calls" in message else "length" if reply.finish_reason == "length" else "stop"
    return {
        "id": "chatcmpl-ray_rl",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


async def _streamed(request: web.Request, reply: Reply) -> web.StreamResponse:
    """Sends an answer as server-sent events: the whole message in one, then its end."""
    from aiohttp import web

    whole = _completion(reply)
    (choice,) = whole["choices"]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    for delta, reason in ((choice["message"], None), ({}, choice["finish_reason"])):
        part = {**whole, "object": "chat.completion.chunk"}
        part["choices"] = [{"index": 0, "delta": delta, "finish_reason": reason}]
        await response.write(f"data: {json.dumps(part)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


def _refusal(text: str) -> Json:
    return {"error": {"message": text, "type": "invalid_request_error", "param": None, "code": None}}


def roles_of(messages: Sequence[Message]) -> str:
    """Returns the roles of messages, for errors."""
    return ", ".join(message.role for message in messages) or "none"
