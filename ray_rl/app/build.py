"""Puts the parts of a run together that trains on rollouts of the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.app.environments import episodes_of, start_environments
from ray_rl.app.records import open_run
from ray_rl.app.sources import folders_of, what_is_loaded
from ray_rl.app.unchanged import require_same_weights
from ray_rl.checkpoint.store import Checkpoint
from ray_rl.config import RunConfig
from ray_rl.config.gpus import scores_as_finished
from ray_rl.config.roles import ACTOR, CRITIC, REFERENCE
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.ends import Ends, without_end
from ray_rl.data.opening import open_rows
from ray_rl.data.row_checks import CheckedRows
from ray_rl.data.source import PromptSource, build_source, row_order
from ray_rl.imports import quick_imports
from ray_rl.loops.checkpoints import Checkpoints
from ray_rl.loops.credit import Crediting
from ray_rl.loops.exporting import Export
from ray_rl.loops.guard import Guard
from ray_rl.loops.model_digests import Models, digests_of
from ray_rl.loops.online import train
from ray_rl.loops.recovery import train_on
from ray_rl.loops.resuming import newest_checkpoint, store_of
from ray_rl.loops.roles import Critic, Roles, Saved
from ray_rl.loops.scoring import AsFinished, AtOnce, Score, Scores
from ray_rl.loops.session import OnlineSession
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.newest_checkpoint import write_newest
from ray_rl.metrics.run import Run
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.metrics.sinks import RolloutRecords
from ray_rl.models.packaged import resolve_model
from ray_rl.rewards.combine import Rewards, build_rewards
from ray_rl.rollout.collected import Collected
from ray_rl.rollout.collector import Collector
from ray_rl.rollout.episodes import Episodes
from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.request import Sampling
from ray_rl.rollout.schedule import Schedule, ScheduleSettings
from ray_rl.types import RolloutGroup
from ray_rl.weight_sync.audit import CANARY, AuditedWeights, AuditSettings, Scorer

if TYPE_CHECKING:
    from ray_rl.cluster.start import Workers


@dataclass(frozen=True, slots=True)
class OnlineTraining:
    """A run that trains on rollouts of the policy."""

    config: RunConfig
    """The configuration, resolved."""
    checked: CheckedRows | None
    """The rows of `data:`, some of them already checked. None opens them without checks."""

    def require_same(self, since: Checkpoint, note: Callable[[str], None]) -> None:
        """Checks that the rows and the models are those of a checkpoint.

        Raises:
            ConfigError: the rows have changed.
            DataError: a model has changed whose weights are in no checkpoint.
        """
        data, seed = self.config.data, self.config.run.seed
        rows = open_rows(data, seed=seed) if self.checked is None else self.checked.rows
        row_order(rows, data, seed=seed).compare(Collected.read(since.folder).source["source"])
        require_same_weights(since, self.config, note)

    def open_run(self, folder: RunFolder, console: RunConsole, *, step: int, version: int) -> Run:
        """Returns the counters, clock and records of the run."""
        return open_run(self.config, folder, console, step=step, version=version)

    async def train(self, folder: RunFolder, run: Run, since: Checkpoint | None, stop: Stop) -> None:
        """Starts all workers, and trains from a checkpoint or from the start to the end."""
        config = self.config
        async with AsyncExitStack() as stack:
            with run.phase("start"):
                run.note(what_is_loaded(config, "the prompts"))
                model = resolve_model(config.model.path)
                folders = folders_of(config, model)
                models = digests_of(folders)
                tokenizer = ChatTokenizer.of_policy(config.model, config.data, model)
                ends = tokenizer.ends_of(config.rollout, config.data)
                endless = without_end(ends, model=config.model.path, max_tokens=config.rollout.max_tokens)
                if endless is not None:
                    run.note(endless)
                source = _source(config, run, model, tokenizer, self.checked, stack)
                run.note("importing Ray")
                # Ray reads its environment when it is imported: not before run_training has prepared it.
                with quick_imports():
                    from ray_rl.app.workers import reward_models_over, start_workers, verifiers_elsewhere

                workers = await start_workers(config, run, folders, stop=stop, stack=stack, logs=folder.logs)
                judges, save = reward_models_over(workers, config), partial(_save_unscored, run)
                others = verifiers_elsewhere(folder.logs)
                environments = await start_environments(config, run, model, stack=stack, logs=folder.logs)
                parts = build_rewards(config.rewards, models=judges, elsewhere=others, save=save)
                rewards = stack.enter_context(closing(parts))
            beginning, sampling = source.state(), sampling_of(config, ends)
            canary = tokenizer.encode(CANARY, chat=False)[: config.data.max_prompt_tokens]

            def session(since: Checkpoint | None) -> OnlineSession:
                source.restore(beginning)
                episodes = partial(episodes_of, config, environments, sampling=sampling, tell=run.tell)
                roles = _roles(config, workers, source, rewards, episodes, sampling=sampling, canary=canary)
                return build_session(config, folder, run, roles, stop=stop, since=since, models=models)

            await train_on(
                run,
                train,
                session,
                since=since,
                restart=workers.restart,
                newest=partial(newest_checkpoint, config, folder, run.tell),
                max_restarts=config.cluster.max_restarts,
            )
            run.note("ending the workers")


def _save_unscored(run: Run, groups: Sequence[RolloutGroup]) -> Path:
    """Writes samples that could not be scored and returns their file."""
    return run.records.add_failed(run.step + 1, RolloutRecords(groups))


def sampling_of(config: RunConfig, ends: Ends) -> Sampling:
    """Returns how completions are drawn, with the seed of the run."""
    rollout = config.rollout
    return Sampling(
        max_tokens=rollout.max_tokens,
        seed=config.run.seed,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        stop=ends.texts,
        stop_token_ids=ends.token_ids,
    )


def build_collector(
    config: RunConfig,
    source: PromptSource,
    pool: EnginePool,
    episodes: Episodes,
    rewards: Rewards,
    *,
    scores: Mapping[str, Scores] | None = None,
) -> Collector:
    """Builds the rollout stage, at its start; `scores` learn of each group that counts for a batch."""
    dynamic = config.online.dynamic_sampling
    settings = ScheduleSettings(
        prompts_per_step=config.online.prompts_per_step,
        max_staleness=config.rollout.max_staleness,
        max_running=config.rollout.max_running,
        order=config.rollout.order,
        max_draws=None if dynamic is None else dynamic.max_draws,
        in_waves=config.run.deterministic,
    )
    size = config.online.group_size

    def finished(group: RolloutGroup) -> None:
        for each in (scores or {}).values():
            each.begin(group)

    return Collector(source, pool, episodes, rewards, Schedule(settings), group_size=size, finished=finished)


def _roles(
    config: RunConfig,
    workers: Workers,
    source: PromptSource,
    rewards: Rewards,
    episodes: Callable[..., Episodes],
    *,
    sampling: Sampling,
    canary: tuple[int, ...],
) -> Roles:
    pool = EnginePool(workers.engines, timeout_s=config.rollout.timeout_s, router=workers.router)
    audit = AuditSettings(
        every=config.weight_sync.audit_every,
        is_synchronous=config.rollout.max_staleness == 0,
        is_float32=config.model.dtype == "float32",
        rows=config.train.workers,
    )
    weights = AuditedWeights(
        audit,
        workers.weights,
        actor=workers.actor,
        phases=workers.turns,
        engines=workers.weights.living,
        prompt=canary,
        sampling=sampling,
    )
    from ray_rl.app.workers import critic_over, reference_over, roles_over

    critic = critic_over(workers)
    scores = build_scores(config, workers.actor, critic, reference_over(workers, config))
    rollouts = build_collector(config, source, pool, episodes(pool=pool), rewards, scores=scores)
    return roles_over(workers, rollouts=rollouts, weights=weights, critic=critic, scores=scores)


def build_scores(
    config: RunConfig, actor: Scorer, critic: Critic | None, reference: Scorer | None
) -> dict[str, Scores]:
    """Builds the scores that a batch gets before it is trained on, by the field of the batch that they fill."""

    def scores(role: str, score: Score) -> Scores:
        if scores_as_finished(config, role):
            return AsFinished(score, is_frozen=role == REFERENCE)
        return AtOnce(score)

    found: dict[str, Scores] = {}
    if config.online.needs_old_logprobs:
        found["old_logprobs_RT"] = scores(ACTOR, actor.logprobs)
    if reference is not None:
        found["reference_logprobs_RT"] = scores(REFERENCE, reference.logprobs)
    if critic is not None:
        found["old_values_RT"] = scores(CRITIC, critic.values)
    return found


def build_session(
    config: RunConfig,
    folder: RunFolder,
    run: Run,
    roles: Roles,
    *,
    stop: Stop,
    since: Checkpoint | None,
    models: Models,
) -> OnlineSession:
    """Builds the session of the driver over started roles, from a checkpoint or, if `since` is None, from the start."""
    credit = Crediting(config.online, roles.actor.credit, max_tokens=config.most_tokens)
    guard = Guard(config.train, run)
    parts: dict[str, Saved] = {ACTOR: roles.actor}
    if roles.critic is not None:
        parts[CRITIC] = roles.critic
    return OnlineSession(
        config=config,
        run=run,
        roles=roles,
        credit=credit,
        guard=guard,
        checkpoints=Checkpoints(
            parts,
            [credit, guard, roles.rollouts],
            settings=config.checkpoint,
            store=store_of(config, folder),
            since=since,
            models=models,
            completed=partial(write_newest, folder.newest_checkpoint_json),
        ),
        stop=stop,
        final=Export(roles.actor, folder.export) if config.checkpoint.export else None,
    )


def _source(
    config: RunConfig,
    run: Run,
    model: str,
    tokenizer: ChatTokenizer,
    checked: CheckedRows | None,
    stack: AsyncExitStack,
) -> PromptSource:
    """Builds the source of prompts, which checks the rows that are not checked yet in the background."""
    seed = config.run.seed
    if checked is None:
        return build_source(config.data, seed=seed, tokenizer=tokenizer, note=run.note)
    ahead = checked.ahead(lambda: ChatTokenizer.of_policy(config.model, config.data, model))
    if ahead is not None:
        stack.callback(ahead.close)
    return build_source(config.data, seed=seed, tokenizer=tokenizer, rows=checked.rows, ahead=ahead, note=run.note)
