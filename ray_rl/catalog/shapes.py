"""Shapes of decoder models. The exact number of parameters follows from a shape, without loading the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A Llama-like decoder: RMS norms, rotary embeddings, grouped-query attention, a gated MLP."""

    hidden: int
    """D."""
    layers: int
    """L."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head: int
    """Size of a head."""
    intermediate: int
    """I, the width of the MLP."""
    vocabulary: int
    """V, rows of the embedding."""
    context_tokens: int
    """Longest sequence."""
    tied: bool
    """Whether the head and the embedding are one matrix."""
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias, as in Qwen2."""
    output_bias: bool = False
    """Whether the attention's output has a bias, as in Llama with attention_bias."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether queries and keys have RMS norms, as in Qwen3."""

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head

    @property
    def kv(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head

    @property
    def embedding_parameters(self) -> int:
        """V D for the embedding, and V D more if the head is a separate matrix."""
        return self.vocabulary * self.hidden

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the matrices of a layer, by the names of transformers."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.kv),
            "v_proj": (self.hidden, self.kv),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_parameters(self) -> int:
        """2 D q + 2 D kv of the attention, 3 D I of the MLP, 2 D of the norms, and the biases."""
        matrices = sum(inputs * outputs for inputs, outputs in self.linears.values())
        biases = (self.query + 2 * self.kv) * self.qkv_bias + self.hidden * self.output_bias
        biases += (2 * self.intermediate + self.hidden) * self.mlp_bias
        norms = 2 * self.hidden + 2 * self.head * self.qk_norm
        return matrices + norms + biases

    @property
    def backbone_parameters(self) -> int:
        """Parameters of the model without its head: V D + L layers + D of the last norm."""
        return self.embedding_parameters + self.layers * self.layer_parameters + self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the language model; a tied head counts once."""
        return self.backbone_parameters + (0 if self.tied else self.embedding_parameters)

    @property
    def scorer_parameters(self) -> int:
        """Parameters of a value or reward model: the backbone and a head with one output and no bias."""
        return self.backbone_parameters + self.hidden

    @property
    def largest_module(self) -> int:
        """Parameters of the largest single module: the embedding or one matrix of the MLP."""
        return max(self.embedding_parameters, self.hidden * self.intermediate)

    def tensor_parallel_sizes(self) -> list[int]:
        """Returns the numbers of GPUs that can share the heads: divisors of the number of query heads.

        Each also divides the number of key heads or is a multiple of it.
        """
        return [
            n
            for n in range(1, self.heads + 1)
            if self.heads % n == 0 and (self.kv_heads % n == 0 or n % self.kv_heads == 0)
        ]


def read_settings(path: str) -> dict[str, Any] | None:
    """Returns the config.json of a model folder; None if this machine has no such file."""
    try:
        settings = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


CHAT = "ray_rl_chat"
"""Key of config.json that an exported classifier has, with the value false, if it was trained with data.chat=false."""


def reads_chat(settings: Mapping[str, Any]) -> bool:
    """Returns whether the model of a config.json reads conversations through its chat template, and not plain text."""
    return settings.get(CHAT) is not False


FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of the models whose layers `ModelShape` describes."""


def shape_from_settings(settings: dict[str, Any]) -> ModelShape | None:
    """Returns the shape that a config.json describes; None if its family is unknown or a number is missing."""
    family = settings.get("model_type")
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    if family not in FAMILIES or not all(isinstance(settings.get(key), int) for key in needed):
        return None
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    is_qwen2, is_qwen3 = family == "qwen2", family == "qwen3"
    # Where config.json is silent: what transformers 5.19 takes for the family.
    bias = bool(settings.get("attention_bias", False)) and family in ("llama", "qwen3")
    return ModelShape(
        hidden=hidden,
        layers=settings["num_hidden_layers"],
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        head=settings.get("head_dim") or (128 if is_qwen3 else hidden // heads),
        intermediate=settings["intermediate_size"],
        vocabulary=settings["vocab_size"],
        context_tokens=settings.get("max_position_embeddings", 32768),
        tied=bool(settings.get("tie_word_embeddings", False)),
        qkv_bias=is_qwen2 or bias,
        output_bias=bias,
        mlp_bias=bool(settings.get("mlp_bias", False)) and family == "llama",
        qk_norm=is_qwen3,
    )
