import asyncio
import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_rl.app.build import build_scores, build_session
from ray_rl.app.records import open_run
from ray_rl.checkpoint.store import Checkpoint, CheckpointStore
from ray_rl.config import RunConfig
from ray_rl.loops.checkpoints import read_progress
from ray_rl.loops.online import train
from ray_rl.loops.roles import Roles
from ray_rl.loops.session import OnlineSession
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.metric import Last
from ray_rl.metrics.rollout_metrics import rollout_metrics
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.rollout.collected import Collected
from ray_rl.training.crediting import credited
from ray_rl.types import Message, Prompt, RolloutGroup
from tests.algorithm import algorithm as algorithm_section
from tests.make import completion, group, rollout
from tests.run_folders import new_run_folder, reopened
from tests.unit.loops.offline import offline_loop as offline_loop

QUESTION = "What is 1+2?"
PROMPTS = 2
REWARDS = (1.0, 0.0)
"""Of the two completions of every prompt: advantages 1 and -1."""


MODELS = {"actor": [["tiny", "blake2b-sampled:1"]]}


@pytest.fixture(autouse=True)
def without_its_grace() -> Iterator[None]:
    """Cancels the timers that a signal starts: they would end the process of the tests a minute later."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if isinstance(thread, threading.Timer):
            thread.cancel()


class Script:
    """Fakes of all roles that write down what they are asked, and fail where they are told to."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.batches: list[Any] = []
        self.critic_batches: list[Any] = []
        self.conversations: Any = None
        self.finish_reason = "stop"
        self.engine_logprobs: dict[int, float] = {}
        """What the engine says of the tokens of a step, where it is not -0.5."""
        self.rewards: dict[int, tuple[float | None, float | None]] = {}
        """Of a step's completions, where they are not REWARDS."""
        self.answers: dict[str, float] = {}
        """What a model says of every token, where it is not its constant."""
        self.take_metrics: list[Any] = [Last("data/epoch", 0)]
        self.update_metrics: dict[int, list[Any]] = {}
        """Beside the norm of the gradient, by update."""
        self.errors: dict[str, Exception] = {}
        """By call, for example "update 2"."""
        self.meanwhile: dict[str, Callable[[], Any]] = {}
        """By call, what happens while it is under way."""
        self.hangs_in_step: int | None = None
        self.shares_gpus = False
        self.questions = 0
        """How often it is asked in vain whether a checkpoint is written."""
        self.versions_sampled: list[int] = []
        self._served = -1
        self._updates = 0

    def enter(self, call: str) -> None:
        self.journal.append(call)
        if call in self.meanwhile:
            self.meanwhile[call]()
        if call in self.errors:
            raise self.errors[call]

    def running(self) -> Any:
        return contextlib.nullcontext()

    async def take(self, *, step: int, progress: Callable[[str], None]) -> tuple[list[Any], list[Any]]:
        self.enter(f"take for step {step}")
        if step == self.hangs_in_step:
            await asyncio.sleep(3600)
        self.versions_sampled.append(self._served)
        logprob, rewards = self.engine_logprobs.get(step, -0.5), self.rewards.get(step, REWARDS)
        groups = [_group(index, self._served, self.finish_reason, logprob, rewards) for index in range(PROMPTS)]
        return groups, [*rollout_metrics(groups, version=step), *self.take_metrics]

    async def update(self, batch: Any) -> list[Any]:
        self._updates += 1
        self.enter(f"update {self._updates}")
        self.batches.append(batch)
        return [Last("policy/grad_norm", 0.5), *self.update_metrics.get(self._updates, [])]

    async def export(self, folder: Path, *, step: int) -> None:
        self.enter(f"export step {step} to {folder.name}")

    def position(self) -> Collected:
        return Collected({"position": self._updates}, PROMPTS, PROMPTS, (), (), (), 0)

    def resume(self, folder: Path) -> None:
        self.enter(f"restore position {Collected.read(folder).source['position']}")

    async def publish(self, version: int) -> list[Any]:
        self.enter(f"publish {version}")
        self._served = version
        return [Last("sync/gb_per_s", 1.0)]


class ScriptedPhases:
    """Writes down changes of the phase if the script says that GPUs are shared."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def train(self) -> None:
        if self._script.shares_gpus:
            self._script.enter("train")

    async def sample(self) -> None:
        if self._script.shares_gpus:
            self._script.enter("sample")


class Model:
    """A model that is saved and loaded: into one file, after as many questions as the script says."""

    def __init__(self, script: Script, role: str) -> None:
        self._script, self._role = script, role
        self._unanswered = 0

    async def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(self._role)
        self._unanswered = self._script.questions
        self._script.enter(f"save {self._role}")

    async def is_saved(self) -> bool:
        self._unanswered -= 1
        if self._unanswered < 0:
            self._script.enter(f"{self._role} is saved")
        return self._unanswered < 0

    async def load(self, folder: Path) -> None:
        self._script.enter(f"load {(folder / 'weights').read_text()}")


class Scorer:
    """The actor's or the reference's log-probabilities: one constant."""

    def __init__(self, script: Script, role: str, value: float) -> None:
        self._script, self._role, self._value = script, role, value
        self._named = "trainer" if role == "actor" else role

    async def logprobs(self, batch: Any) -> Any:
        self._script.enter(f"{self._role} log-probabilities")
        await asyncio.sleep(0)
        value = self._script.answers.get(f"the {self._named}'s log-probability", self._value)
        return np.where(batch.loss_mask_RT, np.float32(value), np.float32(0))


class Actor(Scorer, Model):
    def __init__(self, script: Script) -> None:
        Scorer.__init__(self, script, "actor", -1.0)
        Model.__init__(self, script, "actor")
        self.update = script.update
        self.export = script.export

    async def credit(self, *batch: Any, **settings: Any) -> Any:
        return credited(self, *batch, **settings)


class Critic(Model):
    """Values of one constant."""

    def __init__(self, script: Script) -> None:
        super().__init__(script, "critic")

    async def values(self, batch: Any) -> Any:
        self._script.enter("values")
        await asyncio.sleep(0)
        value = self._script.answers.get("the critic's value", 0.25)
        return np.where(batch.loss_mask_RT, np.float32(value), np.float32(0))

    async def update(self, batch: Any) -> list[Any]:
        self._script.enter("critic update")
        self._script.critic_batches.append(batch)
        return [Last("critic/grad_norm", 0.25)]


def _group(index: int, version: int, finish_reason: Any, logprob: float, rewards: Any) -> RolloutGroup:
    rollouts = []
    for sample, reward in enumerate(rewards):
        tokens = [10 * index + sample] * (2 + sample)
        sampled = completion(tokens, str(index), finish_reason=finish_reason, versions=version, logprobs=logprob)
        rollouts.append(rollout(sampled, reward=reward, parts={"number": reward}))
    prompt = Prompt(f"addition/{index}", (1, 2), QUESTION, {"answer": "3"}, (Message("user", QUESTION),))
    return group(*rollouts, prompt=prompt)


class Loop:
    """The driver over a script."""

    def __init__(self, config: RunConfig, *, reference: bool) -> None:
        self.script = Script()
        self.config = config
        self.store = CheckpointStore(RunFolder.of(config.run).checkpoints, keep_last=2, keep_every=None)
        self.since = self.store.latest(print)
        self.console = io.StringIO()
        if self.since is None:
            self.folder = new_run_folder(config)
            self.run = open_run(config, self.folder, RunConsole(self.console))
        else:
            done = read_progress(self.since)
            self.folder = reopened(config, step=done.step)
            self.run = open_run(config, self.folder, RunConsole(self.console), step=done.step, version=done.version)
        self.stop = Stop(grace_s=600)
        self._reference = Scorer(self.script, "reference", -2.0) if reference else None

    def said(self) -> str:
        """What the console shows, on one line."""
        return " ".join(self.console.getvalue().split())

    def session(self, since: Checkpoint | None) -> OnlineSession:
        actor, critic = Actor(self.script), Critic(self.script) if self.config.critic else None
        roles = Roles(
            rollouts=self.script,
            actor=actor,
            weights=self.script,
            phases=ScriptedPhases(self.script),
            critic=critic,
            scores=build_scores(self.config, actor, critic, self._reference),
        )
        return build_session(self.config, self.folder, self.run, roles, stop=self.stop, since=since, models=MODELS)

    async def train(self) -> None:
        await train(self.session(self.since))


@pytest.fixture(autouse=True)
def no_last_timer() -> Iterator[None]:
    """A signal starts a timer that ends the process when the grace is over: not this one."""
    yield
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Callable[..., Loop]]:
    loops = []

    def make(
        *,
        steps: int = 2,
        name: str = "test",
        reference: bool = False,
        export: bool = True,
        critic: object = None,
        every_steps: int | None = None,
        timeout_s: float = 60.0,
        max_restarts: int = 3,
        train: object = None,
        **algorithm: object,
    ) -> Loop:
        config = RunConfig.model_validate(
            {
                "run": {"name": name, "dir": str(tmp_path), "steps": steps},
                "model": {"path": "tiny"},
                "data": {"kind": "addition"},
                "rewards": [{"kind": "number"}],
                "algorithm": algorithm_section(**{"prompts_per_step": PROMPTS, "group_size": 2, **algorithm}),
                **({} if critic is None else {"critic": critic}),
                "cluster": {"max_restarts": max_restarts},
                "checkpoint": {"every_steps": every_steps, "timeout_s": timeout_s, "export": export},
                "train": train or {},
            }
        )
        loops.append(Loop(config, reference=reference))
        return loops[-1]

    yield make
    for each in loops:
        each.run.close()
