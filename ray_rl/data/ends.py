"""What ends a completion."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ray_rl.data.tokenizer import ModelTokenizer
from ray_rl.errors import DataError


@dataclass(frozen=True, slots=True)
class Ends:
    """The tokens and texts that end a completion."""

    token_ids: tuple[int, ...]
    """The completion ends with the first of these tokens, which it includes."""
    texts: tuple[str, ...]
    """The completion ends when the first of these texts is complete."""


def eos_token_ids(tokenizer: ModelTokenizer) -> tuple[int, ...]:
    """Returns the tokens that end a text, as in transformers: from generation_config.json, or else config.json."""
    of_tokenizer = tokenizer.id_of("eos_token")
    token_ids = [] if of_tokenizer is None else [of_tokenizer]
    for name in ("generation_config.json", "config.json"):
        file = tokenizer.folder / name
        if not file.is_file():
            continue
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            # In a vision model, the text model has separate settings.
            declared = settings.get("eos_token_id", settings.get("text_config", {}).get("eos_token_id"))
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: is not a JSON object ({error}); restore the file") from error
        listed = declared if isinstance(declared, list) else [] if declared is None else [declared]
        if not all(isinstance(token, int) for token in listed):
            raise DataError(f"{file}: eos_token_id={declared!r} is not a token id; write a number or a list of numbers")
        token_ids += listed
        break
    return tuple(dict.fromkeys(token_ids))


def without_end(ends: Ends, *, model: str, max_tokens: int) -> str | None:
    """Returns a warning if only the token limit ends the completions of a run.

    Args:
        ends: the ends of a completion.
        model: `model.path`.
        max_tokens: `rollout.max_tokens`.
    """
    if ends.token_ids or ends.texts:
        return None
    return (
        f"warning: nothing ends a completion of {model}: neither its tokenizer nor generation_config.json nor the "
        f"chat template; each runs to rollout.max_tokens={max_tokens}; set rollout.stop_token_ids or rollout.stop"
    )
