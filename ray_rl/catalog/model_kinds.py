"""Tells from a config.json whether a model is a language model or scores texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["language model", "reward model", "process reward model"]

_ENDINGS: Mapping[str, Kind] = {
    "ForSequenceClassification": "reward model",
    "ForTokenClassification": "process reward model",
    "ForCausalLM": "language model",
    "LMHeadModel": "language model",
    "ForConditionalGeneration": "language model",
}
"""The kind of a model by the end of the name of its class in transformers."""


def architecture_of(settings: Mapping[str, Any]) -> str:
    """Returns the class that a config.json names; "" if it names none."""
    names = settings.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def kind_of(architecture: str) -> Kind | None:
    """Returns the kind of model of a class of transformers; None for classes of other kinds."""
    return next((kind for ending, kind in _ENDINGS.items() if architecture.endswith(ending)), None)
