"""Puts the parts of a run together that learns from given examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from ray_rl.app.examples import load, resolved_steps
from ray_rl.app.records import open_offline_run
from ray_rl.app.sources import folders_of, what_is_loaded
from ray_rl.app.unchanged import require_same_weights
from ray_rl.batching.pack_examples import pack_examples
from ray_rl.checkpoint.store import Checkpoint
from ray_rl.config import RunConfig
from ray_rl.config.offline import Kto, RewardModel
from ray_rl.config.roles import ACTOR, REFERENCE, base_reference, keeps_start
from ray_rl.data.examples.load import Examples
from ray_rl.data.examples.order import ExampleOrder
from ray_rl.imports import quick_imports
from ray_rl.loops.calibration import Calibration
from ray_rl.loops.checkpoints import Checkpoints, read_progress
from ray_rl.loops.evaluation import Evaluation
from ray_rl.loops.examples import ExampleStream, saved_position
from ray_rl.loops.exporting import Export
from ray_rl.loops.guard import Guard
from ray_rl.loops.model_digests import Models, digests_of
from ray_rl.loops.offline import train
from ray_rl.loops.recovery import train_on
from ray_rl.loops.reference import Baseline, LiveReference, Pack, Reference, StoredReference, mismatched
from ray_rl.loops.resuming import newest_checkpoint, store_of
from ray_rl.loops.roles import Learner
from ray_rl.loops.session import OfflineSession
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.newest_checkpoint import write_newest
from ray_rl.metrics.run import Run
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.models.packaged import resolve_model
from ray_rl.types import Example
from ray_rl.weight_sync.audit import Scorer


@dataclass(frozen=True, slots=True)
class OfflineTraining:
    """A run that learns from given examples."""

    config: RunConfig
    """The configuration, resolved."""
    examples: Examples

    @classmethod
    def of(cls, config: RunConfig, examples: Examples | None, *, say: Callable[[str], None]) -> OfflineTraining:
        """Returns the training with `run.epochs` resolved. Loads the examples that are not given."""
        if examples is None:
            say(what_is_loaded(config, "the examples"))
            examples = load(config, folder=resolve_model(config.model.path), say=say)
        return cls(resolved_steps(config, len(examples.train)), examples)

    def require_same(self, since: Checkpoint, note: Callable[[str], None]) -> None:
        """Checks that the examples and the models are those of a checkpoint.

        Raises:
            ConfigError: the examples have changed.
            DataError: a model has changed whose weights are in no checkpoint.
        """
        self._order().compare(saved_position(since.folder))
        require_same_weights(since, self.config, note)

    def open_run(self, folder: RunFolder, console: RunConsole, *, step: int, version: int) -> Run:
        """Returns the counters, clock and records of the run."""
        return open_offline_run(self.config, folder, console, step=step, version=version)

    async def train(self, folder: RunFolder, run: Run, since: Checkpoint | None, stop: Stop) -> None:
        """Starts all workers, and trains from a checkpoint or from the start to the end."""
        config = self.config
        async with AsyncExitStack() as stack:
            with run.phase("start"):
                folders = folders_of(config, resolve_model(config.model.path))
                models = digests_of(folders)
                order = self._order()
                run.note("importing Ray")
                # Ray reads its environment when it is imported: not before run_training has prepared it.
                with quick_imports():
                    from ray_rl.app.workers import start_teams
                from ray_rl.cluster.roles import BaseReference, RayLearner, RayReference
                from ray_rl.cluster.teams import restarted

                teams = await start_teams(config, run, folders, stop=stop, stack=stack, logs=folder.logs)
            beginning, actor = order.state(), RayLearner(teams[ACTOR])
            live: Scorer | None = RayReference(teams[REFERENCE]) if REFERENCE in teams else None
            base = base_reference(config)
            start: Scorer = actor if base is None else BaseReference(actor)
            if base is not None and base.when == "during":
                live = start

            def session(since: Checkpoint | None) -> OfflineSession:
                order.restore(beginning)
                return build_offline_session(
                    config, folder, run, self.examples, order, actor, start, live, stop=stop, since=since, models=models
                )

            await train_on(
                run,
                train,
                session,
                since=since,
                restart=partial(restarted, teams.values()),
                newest=partial(newest_checkpoint, config, folder, run.tell),
                max_restarts=config.cluster.max_restarts,
            )
            run.note("ending the workers")

    def _order(self) -> ExampleOrder:
        return ExampleOrder(self.examples, shuffle=self.config.data.shuffle, seed=self.config.run.seed)


def build_offline_session(
    config: RunConfig,
    folder: RunFolder,
    run: Run,
    examples: Examples,
    order: ExampleOrder,
    actor: Learner,
    start: Scorer,
    live: Scorer | None,
    *,
    stop: Stop,
    since: Checkpoint | None,
    models: Models,
) -> OfflineSession:
    """Builds the session of the driver over started roles, from a checkpoint or, if `since` is None, from the start.

    `start` has the reference's weights as long as nothing is trained; `live` always, if there is one.
    """
    pack: Pack = partial(pack_examples, loss_at=config.offline.loss_at)
    guard, stream = Guard(config.train, run), ExampleStream(order, batch_size=config.offline.batch_size)
    partners, store = _partners(config, examples), store_of(config, folder)
    reference: Reference | None = None if live is None else LiveReference(live)
    if live is None and config.offline.needs_reference:
        known = [*examples.train, *examples.held_out]
        reference = _stored(config, folder, known, [*partners.values()], start, pack, models=models, since=since)
    evaluation = Evaluation(
        examples.held_out,
        batch_size=config.offline.batch_size,
        every=config.run.evaluate_every,
        best_by=config.checkpoint.keep_best,
        patience=config.run.patience,
        kept=store.steps,
    )
    baseline = None
    if reference is not None and partners:
        baseline = Baseline(partners, actor=actor, reference=reference, pack=pack)
    return OfflineSession(
        config=config,
        run=run,
        examples=stream,
        pack=pack,
        actor=actor,
        reference=reference,
        baseline=baseline,
        evaluation=evaluation,
        calibration=Calibration(actor) if isinstance(config.algorithm, RewardModel) else None,
        guard=guard,
        checkpoints=Checkpoints(
            {ACTOR: actor},
            [stream, guard, evaluation],
            settings=config.checkpoint,
            store=store,
            since=since,
            models=models,
            completed=partial(write_newest, folder.newest_checkpoint_json),
            best=lambda: evaluation.best_step,
        ),
        stop=stop,
        final=Export(actor, folder.export, lambda: evaluation.best_step) if config.checkpoint.export else None,
    )


def _partners(config: RunConfig, examples: Examples) -> dict[str, Example]:
    """Returns the mismatched examples of KTO's baseline, by id; none for other losses.

    Raises:
        DataError: all examples to train on have the same prompt.
    """
    if not isinstance(config.algorithm, Kto):
        return {}
    has_partners = len({each.prompt_ids for each in examples.held_out}) > 1
    return mismatched(examples.train) | (mismatched(examples.held_out) if has_partners else {})


def _stored(
    config: RunConfig,
    folder: RunFolder,
    examples: Sequence[Example],
    pairs: Sequence[Example],
    start: Scorer,
    pack: Pack,
    *,
    models: Models,
    since: Checkpoint | None,
) -> StoredReference:
    (source, digest), *adapters = models[ACTOR]
    depends_on = {"model": digest, "dtype": config.model.dtype}
    if adapters:  # those that the run continues, which are on or off in the reference
        depends_on["adapter"] = adapters[0][1] if keeps_start(config) else "off"
    before = {} if since is None else {old[0]: old[1] for old in read_progress(since).models.get(ACTOR, ())}
    return StoredReference(
        folder.reference_jsonl,
        [*examples, *pairs],
        scorer=start,
        pack=pack,
        batch_size=config.offline.batch_size,
        depends_on=depends_on,
        is_resumed=since is not None,
        model_before=None if digest is None else before.get(source),
        pairs=len(pairs),
    )
