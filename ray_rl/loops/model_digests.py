"""Checks that a resumed run loads the same models as before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray_rl.catalog.weight_files import COVERED, weights_digest
from ray_rl.config import RunConfig
from ray_rl.config.roles import ACTOR, CRITIC, REFERENCE, REWARD, keeps_start
from ray_rl.errors import DataError

Models = Mapping[str, Sequence[Sequence[str | None]]]
"""The folder and digest of each model, by role: `models` in `run.json` of a checkpoint."""

KEYS = {ACTOR: "model.path", CRITIC: "critic.path", REFERENCE: "reference.path", REWARD: "rewards"}
"""Roles that load models, with their key in the configuration. Engines load the policy, and receive its weights."""
FROZEN = {
    REFERENCE: "the penalty would be the distance from another model than before",
    REWARD: "the rewards would be those of another model than before",
}
"""Roles whose weights are in no checkpoint, with the consequence of another model."""


def digests_of(folders: Mapping[str, Sequence[str]]) -> Models:
    """Returns digests of the models of each role; None for weights that this machine does not have.

    Args:
        folders: the folders or hub names of the models of each role.

    Raises:
        DataError: a file cannot be read.
    """
    known: dict[str, str | None] = {}
    for folder in {folder for role in KEYS for folder in folders.get(role, ())}:
        known[folder] = digest_of(folder)
    return {role: [[folder, known[folder]] for folder in folders[role]] for role in KEYS if folders.get(role)}


def require_same_models(config: RunConfig, before: Models, now: Models, *, note: Callable[[str], None]) -> None:
    """Compares the models of a checkpoint with those that would be loaded.

    A model under another path is a change of the configuration, which is not checked here. The weights of the policy
    and the critic are in the checkpoint: their change is only noted, unless layers are frozen or have adapters.

    Args:
        config: the configuration with which the run continues.
        before: the models of the checkpoint; empty in one of an older version.
        now: the models as they are.
        note: called with a text for each change without a consequence.

    Raises:
        DataError: a model has changed whose weights are in no checkpoint.
    """
    frozen = dict(FROZEN)
    if config.model.adapter is not None:
        frozen |= dict.fromkeys((ACTOR, CRITIC), "the checkpoint has only the adapters, which belong to those weights")
    elif config.train.frozen_layers:
        frozen[ACTOR] = f"train.frozen_layers={config.train.frozen_layers}: these layers would change"
    for role, models in now.items():
        had = {entry[0]: entry[1] for entry in before.get(role, ())}
        for index, (folder, digest) in enumerate(models):
            old = had.get(folder)
            if old is None or digest is None or old == digest:
                continue
            is_adapter = index > 0 and role in (ACTOR, CRITIC)
            key = "model.adapter.path" if is_adapter else KEYS[role]
            changed = f"{key}={folder}: its weights have changed since the checkpoint ({old} then, {digest} now)"
            reason = frozen.get(role)
            if is_adapter:
                reason = "the reference has those adapters" if role == ACTOR and keeps_start(config) else None
            if reason is None:
                note(f"{changed}; the run continues with those of the checkpoint")
                continue
            raise DataError(
                f"{changed}, and {reason}; put back the weights that the run started with, or start a new run "
                f"(run.name). Compared are {COVERED}"
            )


def digest_of(path: str) -> str | None:
    """Returns the digest of a folder, or of a model in the cache of the hub; None if its weights are not here."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        snapshot = _snapshot(path)
        if snapshot is None:
            return None
        folder = snapshot
    try:
        return weights_digest(folder)
    except OSError as error:
        raise DataError(f"{path}: its weights cannot be read ({error}); make them readable") from error


def _snapshot(name: str) -> Path | None:
    """Returns the folder of a model in the cache of the hub; None if it is not there as a whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors"], local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
