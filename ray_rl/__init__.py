"""Post-training of large language models with reinforcement learning on Ray, DeepSpeed and vLLM.

`from ray_rl import load_config, plan, train` is the public interface; `ray_rl.api` describes it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_rl.api import Planned, RunConfig, Trained, load_config, plan, train

__version__ = "0.2.0"
__all__ = ["Planned", "RunConfig", "Trained", "__version__", "load_config", "plan", "train"]


def __getattr__(name: str) -> object:
    # When first used: every worker process imports this package, and needs none of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("ray_rl.api"), name)
