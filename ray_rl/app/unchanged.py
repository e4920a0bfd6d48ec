"""Checks that a run continues with the weights that it was trained with."""

from __future__ import annotations

from collections.abc import Callable

from ray_rl.app.sources import folders_of
from ray_rl.checkpoint.store import Checkpoint
from ray_rl.config import RunConfig
from ray_rl.loops.checkpoints import read_progress
from ray_rl.loops.model_digests import digests_of, require_same_models
from ray_rl.models.packaged import resolve_model


def require_same_weights(since: Checkpoint, config: RunConfig, note: Callable[[str], None]) -> None:
    """Compares the models of a checkpoint with those that a run would load; see `require_same_models`.

    Raises:
        DataError: a model has changed whose weights are in no checkpoint.
    """
    now = digests_of(folders_of(config, resolve_model(config.model.path)))
    require_same_models(config, read_progress(since).models, now, note=note)
