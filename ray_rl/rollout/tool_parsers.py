"""vLLM's parsers of tool calls, by name, for the forms that `ray_rl.environments.tools.calls` does not read itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray_rl.environments.tools.calls import CallParser, Parsed, malformed, without_thoughts
from ray_rl.environments.tools.strict_json import BadJson, read_value
from ray_rl.environments.users_code import Caught
from ray_rl.errors import ConfigError
from ray_rl.types import ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENER = re.compile(
    r"<[^<>\s]{0,40}(?:tool|function|invoke)[^<>\s]{0,40}>|<\|python_tag\|>|\[TOOL_CALLS\]|functools\[", re.IGNORECASE
)
"""How calls begin in the forms that vLLM reads: a tag whose name says tool or function, or one of three others. A text
with it in which the parser finds no call has a malformed one."""
_LOGGERS = ("vllm.tool_parsers", "vllm.parser")


class VllmParsers:
    """The parsers of the installed vLLM; see `OtherParsers`. Importing them takes 15 seconds, at the first use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Makes the parsers for the tokenizer of a model; vLLM is not imported yet."""
        self._tokenizer = tokenizer

    @property
    def names(self) -> Sequence[str]:
        """Names of the parsers."""
        from vllm.tool_parsers import ToolParserManager

        return ToolParserManager.list_registered()

    def parser(self, name: str, schemas: Sequence[Mapping[str, Any]]) -> CallParser:
        """Returns a parser, which logs nothing: errors in the text of the policy become malformed calls.

        Raises:
            ConfigError: the parser does not work with the tokenizer, or reads no text.
        """
        for logger in _LOGGERS:  # which would write a traceback for every malformed call
            logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
        found = _VllmParser(name, self._tokenizer, schemas)
        with Caught() as caught:
            found.extracted("")
        if caught.error is not None:
            raise ConfigError(
                f"environment.parser={name}: vLLM's parser does not work with this model: "
                f"{type(caught.error).__name__}: {caught.error}; choose the parser of the model's family"
            ) from caught.error
        return found


class _VllmParser:
    """One of vLLM's parsers; see `CallParser`."""

    def __init__(self, name: str, tokenizer: Any, schemas: Sequence[Mapping[str, Any]]) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
        from vllm.tool_parsers import ToolParserManager

        self._class = ToolParserManager.get_tool_parser(name)
        self._tokenizer = tokenizer
        self._tools: list[Any] = [ChatCompletionToolsParam.model_validate(schema) for schema in schemas]
        self._request = ChatCompletionRequest(
            model="policy",
            messages=[{"role": "user", "content": ""}],
            tools=self._tools or None,
            tool_choice="auto" if self._tools else None,
        )

    def __call__(self, text: str) -> Parsed:
        """Reads the calls of one completion; see `CallParser`."""
        said = without_thoughts(text)
        thoughts = text[: len(text) - len(said)]
        with Caught() as caught:
            content, found = self.extracted(said)
        if caught.error is None and found:
            return Parsed(thoughts + content, tuple(_call(name, arguments) for name, arguments in found))
        if OPENER.search(said) is None:
            return Parsed(text)
        return Parsed(text, (malformed("not well formed: no call can be read in it; write it as you were shown"),))

    def extracted(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """Returns the text without calls, and name and arguments, as JSON, of each call. May raise anything."""
        # A parser keeps the state of a completion, so each gets its own.
        result = self._class(self._tokenizer, self._tools).extract_tool_calls(text, self._request)
        calls = [(call.function.name, call.function.arguments) for call in result.tool_calls]
        return result.content or "", calls if result.tools_called else []


def _call(name: str, arguments: str) -> ToolCall:
    try:
        value, _ = read_value(arguments or "{}", 0)
    except BadJson as error:
        return malformed(f"not well formed: its arguments are not valid JSON: {error}", name)
    if not isinstance(value, dict):
        return malformed("not well formed: its arguments must be an object, like {...}", name)
    return ToolCall(name, value)
