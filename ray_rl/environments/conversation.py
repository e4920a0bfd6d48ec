"""The tokens of an episode's messages, by the chat template of the policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.suffix import TurnSuffix
from ray_rl.types import Message, Prompt, ToolCall

DESCRIPTION = """\
You may call functions. Their signatures:
<tools>
{schemas}
</tools>
To call one, answer with its name and arguments as JSON:
<tool_call>
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>"""
"""What the policy reads about tools, if its chat template does not write their schemas itself."""


@dataclass(frozen=True, slots=True)
class TemplateConversation:
    """Writes the tokens of messages; see `Conversation`."""

    tokenizer: ChatTokenizer
    suffix: TurnSuffix
    """That of the tokenizer."""

    def begin(self, prompt: Prompt, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Prompt:
        """Returns the prompt followed by messages, tokenised as a whole: nothing of it was sampled.

        A first message of the user continues that of the prompt, because many templates refuse two in a row.
        """
        if not messages and not tools:
            return prompt
        whole = joined(prompt.messages, messages)
        if tools and not self.tokenizer.reads_tools:
            whole, tools = with_described(whole, tools), ()
        return replace(prompt, token_ids=self.suffix.prompt(whole, tools=tools), messages=whole, text=whole[-1].content)

    def follow(self, messages: Sequence[Message], sampled: Sequence[int], calls: Sequence[ToolCall]) -> tuple[int, ...]:
        """Returns the tokens between a completion and the next one; see `TurnSuffix`."""
        return self.suffix.token_ids(messages, sampled=sampled, calls=calls)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text with its special tokens."""
        return self.tokenizer.model_tokenizer.decode(token_ids, skip_special_tokens=False)


def joined(prompt: Sequence[Message], messages: Sequence[Message]) -> tuple[Message, ...]:
    """Returns a prompt and the messages that follow it.

    An empty prompt is left out, and two messages of the user in a row become one.
    """
    if not messages:
        return tuple(prompt)
    if prompt and not prompt[-1].content:
        prompt = prompt[:-1]
    if not prompt or not prompt[-1].role == messages[0].role == "user":
        return (*prompt, *messages)
    return (*prompt[:-1], Message("user", f"{prompt[-1].content}\n\n{messages[0].content}"), *messages[1:])


def with_described(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Returns a conversation whose system message ends with the schemas of tools, in the form of Hermes models."""
    schemas = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in tools)
    text = DESCRIPTION.format(schemas=schemas)
    if messages and messages[0].role == "system":
        return (Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:])
    return (Message("system", text), *messages)
