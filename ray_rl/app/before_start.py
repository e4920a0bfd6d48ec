"""The list of all checks of a run before Ray starts; `train`, `resume` and `validate` run it.

A check raises a `UserError` (exit code 2) and writes nothing. To add one, write a function and add it to `CHECKS`,
before slower ones, and to `QUICK_CHECKS` if it needs no torch and no network. Runs that learn from examples have lists
of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.app.sources import cached_model
from ray_rl.errors import UserError
from ray_rl.program import program

if TYPE_CHECKING:
    from ray_rl.config.run import RunConfig
    from ray_rl.data.examples.load import Examples
    from ray_rl.data.row_checks import CheckedRows
    from ray_rl.loops.resuming import Resume

Note = Callable[[str], None]
Check = Callable[["RunConfig", Note], "CheckedRows | Examples | None"]
"""Raises a UserError if the run cannot start, and returns the data of the run if it has read it. Its second argument
is called with the progress of a long check."""

NEEDED = ("torch", "transformers", "ray", "deepspeed")
"""Modules that a run imports and the base install lacks. Rollouts need vllm, too."""

READS = {"parquet": "pyarrow", "csv": "pyarrow", "hub": "datasets", "reasoning_gym": "reasoning_gym"}
"""Module that reads each kind of data; the other kinds need none."""


def check_before_start(
    config: RunConfig,
    *,
    resume: Resume | None,
    visible_gpus: int | None = None,
    is_full: bool = True,
    stand_ins: Collection[str] = (),
    taken: Note | None = None,
    note: Note = lambda text: None,
    progress: Note = lambda text: None,
) -> CheckedRows | Examples | None:
    """Runs every check that needs no Ray.

    Args:
        config: the configuration to check.
        resume: None requires a run folder that does not exist yet; other values accept an existing one.
        visible_gpus: GPUs of the machine that will run it; None counts those of this machine.
        is_full: False runs the quick checks.
        stand_ins: models in `rewards` that stand for reward models which do not exist yet.
        taken: called with the remark that the run folder exists already; None refuses it.
        note: called with the run and what comes next, and with each remark on a setting.
        progress: called with the progress of a long check.

    Returns:
        The rows of the run, and which of them were checked; or its examples.

    Raises:
        UserError: the first check that fails.
    """
    from ray_rl.cluster.environment import quiet_libraries
    from ray_rl.config.rules.adapter import learning_rate_advice
    from ray_rl.config.rules.check import check, check_run_folder_is_free

    check(config, visible_gpus=visible_gpus, stand_ins=stand_ins)
    if not continues(config, resume):
        check_run_folder_is_free(config, taken=taken)
    checked = None
    # The checks import libraries that read these variables at import.
    quiet_libraries(on_cpu=config.cluster.accelerator == "cpu")
    note(_first_line(config, continued=continues(config, resume)))
    for text in learning_rate_advice(config):
        note(text)
    full, quick = (OFFLINE_CHECKS, OFFLINE_QUICK_CHECKS) if config.is_offline else (CHECKS, QUICK_CHECKS)
    for one in full if is_full else quick:
        checked = one(config, progress) or checked
    return checked


def _first_line(config: RunConfig, *, continued: bool) -> str:
    from ray_rl.config.gpus import needed_gpus

    gpus = needed_gpus(config)
    where = "CPU" if config.cluster.accelerator == "cpu" else f"{gpus} GPU{'s' if gpus > 1 else ''}"
    return (
        f"{config.run.name}: {'continuing' if continued else 'training'} {config.model.path} on {where}, "
        f"{config.run.length}; checking data and models, then starting Ray"
    )


def continues(config: RunConfig, resume: Resume | None) -> bool:
    """Returns whether there is a run folder that may be continued."""
    return resume is not None and (Path(config.run.dir).expanduser() / config.run.name).is_dir()


def check_installed(*, with_engines: bool = True) -> None:
    """Checks that the packages of a run are installed, without importing them; vllm if the run has engines.

    Raises:
        UserError: a package is missing.
    """
    needed = (*NEEDED, "vllm") if with_engines else NEEDED
    missing = [module for module in needed if find_spec(module) is None]
    if missing:
        raise UserError(
            f"training needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            f"pip install -r docker/requirements-cpu.txt (or -gpu.txt), then see `{program()} doctor`"
        )


def check_quantisation(config: RunConfig) -> None:
    """Checks that the package of 4-bit weights is installed, if the run has such weights.

    Raises:
        UserError: it is missing.
    """
    adapter = config.model.adapter
    if adapter is not None and adapter.quantise is not None and find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.adapter.quantise={adapter.quantise} needs bitsandbytes, which is not installed; "
            "pip install 'ray-rl[qlora]'"
        )


def unreadable_data(config: RunConfig) -> str | None:
    """Returns the package that reads this kind of data if it is not installed: a base install can check the rest."""
    from ray_rl.config.data import Mixture

    data = config.data
    sources = data.sources if isinstance(data, Mixture) else (data,)
    modules = (READS.get(source.kind) for source in sources)
    return next((module for module in modules if module is not None and find_spec(module) is None), None)


def _check_functions(config: RunConfig, progress: Note) -> None:
    from ray_rl.preflight.functions import check_functions

    check_functions(config.online)


def _check_rows(config: RunConfig, progress: Note) -> CheckedRows | None:
    from ray_rl.app.data_checks import check_data
    from ray_rl.rewards.functions.golds import golds_checked

    if unreadable_data(config) is not None:
        return None
    with golds_checked(config.rewards) as row_checks:
        return check_data(config, row_checks=row_checks, with_tokenizer=False)


def _check_data(config: RunConfig, progress: Note) -> CheckedRows | None:
    from ray_rl.app.data_checks import check_data
    from ray_rl.rewards.functions.golds import golds_checked

    with golds_checked(config.rewards) as row_checks:
        return check_data(config, model_folder=cached_model(config.model.path), row_checks=row_checks, say=progress)


def _check_example_rows(config: RunConfig, progress: Note) -> None:
    from ray_rl.app.data_checks import check_example_rows

    if unreadable_data(config) is None:
        check_example_rows(config, say=progress)


def _check_examples(config: RunConfig, progress: Note) -> Examples | None:
    """Loads the examples, unless the model is a packaged one that is not converted yet: then the run loads them."""
    from ray_rl.app.examples import load, resolved_steps

    folder = cached_model(config.model.path)
    if isinstance(folder, Path) and not any(folder.glob("tokenizer*")):
        return None
    examples = load(config, folder=folder, say=progress)
    resolved_steps(config, len(examples.train))
    return examples


def _check_models(config: RunConfig, progress: Note) -> None:
    """Loads configurations and tokenizers like the workers, and compares checkpoints with their models.

    Packaged models need no check. Weights that must be downloaded from the hub are checked by the workers.
    """
    from ray_rl.catalog.models import PACKAGED_MODELS
    from ray_rl.config.roles import models_of

    loaded = [(key, path) for key, path in models_of(config) if path not in PACKAGED_MODELS]
    if not loaded:
        return
    from ray_rl.models.loading import check_checkpoint, load_model_config, require_rows, resolved_packing
    from ray_rl.models.value import check_value_checkpoint

    trusts = config.model.trust_remote_code
    largest: tuple[str, int] | None = None
    for key, path in loaded:
        folder = str(cached_model(path))
        model_config = load_model_config(folder, trust_remote_code=trusts, key=key)
        if key == "model.path":
            resolved_packing(config.train, model_config, accelerator=config.cluster.accelerator)
        is_judge = key.startswith("rewards.")
        if key == "model.path" or is_judge:  # the other models read the policy's tokens
            largest = _largest_token(folder, trusts, key=key)
        if largest is not None:
            require_rows(largest, model_config, folder=path, key=key)
        if not Path(folder).is_dir():
            continue
        if key == "critic.path":
            check_value_checkpoint(folder, trust_remote_code=trusts)
        elif not is_judge:
            check_checkpoint(folder, trust_remote_code=trusts, key=key)


def _check_continued(config: RunConfig, progress: Note) -> None:
    from ray_rl.app.adapter_checks import check_continued

    check_continued(config, progress)


def _check_export(config: RunConfig, progress: Note) -> None:
    """Writes an export without its weights into a temporary folder, so that it does not fail after the last step.

    Packaged models need no check.
    """
    from ray_rl.catalog.models import PACKAGED_MODELS

    if not config.checkpoint.export or config.model.path in PACKAGED_MODELS:
        return
    from ray_rl.checkpoint.hugging_face import check_export

    check_export(str(cached_model(config.model.path)))


def _largest_token(folder: str, trusts: bool, *, key: str) -> tuple[str, int]:
    """Returns the token of a model's tokenizer with the largest id, and the id."""
    from ray_rl.data.tokenizer import load_tokenizer

    return load_tokenizer(folder, trust_remote_code=trusts, key=key).largest


CHECKS: tuple[Check, ...] = (
    lambda config, progress: check_installed(),
    lambda config, progress: check_quantisation(config),
    _check_functions,
    _check_data,
    _check_models,
    _check_continued,
    _check_export,
)
"""The checks of `train`, in this order: the cheapest first."""
QUICK_CHECKS: tuple[Check, ...] = (_check_functions, _check_rows)
"""The default checks of `validate`, which need no torch, no transformers and no network."""
OFFLINE_CHECKS: tuple[Check, ...] = (
    lambda config, progress: check_installed(with_engines=False),
    lambda config, progress: check_quantisation(config),
    _check_models,
    _check_continued,
    _check_examples,
    _check_export,
)
"""The checks of `train` for a run that learns from examples."""
OFFLINE_QUICK_CHECKS: tuple[Check, ...] = (_check_example_rows,)
"""The default checks of `validate` for such a run."""
