"""The section `algorithm` for tests that are about something else."""

from typing import Any


def algorithm(**settings: Any) -> dict[str, Any]:
    """Settings over GRPO with a mean over tokens and no reference; those of another `kind` stay as they are."""
    if "kind" in settings:
        return settings
    return {"kind": "grpo", "reduction": "token_mean", "kl": {"coefficient": 0.0}} | settings
