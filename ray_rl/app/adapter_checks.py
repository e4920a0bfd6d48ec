"""Checks the folder of adapters that a run continues against the run's model, before Ray starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ray_rl.app.sources import cached_model
from ray_rl.config import RunConfig
from ray_rl.config.adapter_folder import read_adapter_folder
from ray_rl.errors import DataError
from ray_rl.loops.model_digests import digest_of

KEY = "model.adapter.path"


def check_continued(config: RunConfig, progress: Callable[[str], None]) -> None:
    """Checks that the adapters were made for `model.path`, where that can be known, and have its names and shapes.

    Raises:
        DataError: they do not fit.
    """
    adapter = config.model.adapter
    if adapter is None or adapter.path is None:
        return
    folder, model = adapter.path, str(cached_model(config.model.path))
    _require_base(folder, config.model.path, model)
    if not (Path(model) / "config.json").is_file():
        return
    from ray_rl.models.continued import require_fit, shapes_of
    from ray_rl.models.loading import checkpoint_skeleton

    skeleton = checkpoint_skeleton(model, trust_remote_code=config.model.trust_remote_code)
    require_fit(folder, shapes_of(skeleton.base_model, adapter))


def _require_base(folder: str, path: str, model: str) -> None:
    """Refuses adapters of another model: by the digests of weights, or by the names if neither weights are here."""
    found = read_adapter_folder(folder)
    base = None if found.base is None else str(cached_model(found.base))
    of_base = found.base_digest or (None if base is None else digest_of(base))
    now = digest_of(model)
    if now is not None and of_base is not None:
        if now != of_base:
            raise DataError(
                f"{KEY}={folder}: its adapters belong to {found.base} ({of_base}), and the weights of "
                f"model.path={path} are others ({now}); set model.path to the model that they were trained with"
            )
    elif base is not None and base != model and not Path(base).is_dir() and not Path(model).is_dir():
        raise DataError(
            f"{KEY}={folder}: its adapters belong to {found.base}, and model.path={path} is another model; set "
            f"model.path={found.base}"
        )
