"""`RunConfig`, the whole configuration of a run, and its smaller sections."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ray_rl.config.adapter import RATE_RATIO, Lora
from ray_rl.config.algorithm import Algorithm
from ray_rl.config.base import Config
from ray_rl.config.cluster import ClusterConfig
from ray_rl.config.continuing import with_adapters_of_folder
from ray_rl.config.data import DataConfig
from ray_rl.config.environment import EnvironmentConfig, EnvironmentPart, SingleTurn
from ray_rl.config.launch import LaunchConfig
from ray_rl.config.offline import OfflineAlgorithm, OfflineKinds, RewardModel
from ray_rl.config.online import OnlineKinds
from ray_rl.config.rewards import ModelReward, RewardConfig
from ray_rl.config.roles import CRITIC
from ray_rl.config.rollout import RolloutConfig, WeightSyncConfig
from ray_rl.config.train import CriticConfig, ReferenceConfig, TrainConfig

LOGIT_CHUNK_TOKENS = {"cpu": 256, "gpu": 1024}
"""On CPU, 256 rows make the log-softmax of [T, V] a tenth as large at T = 4096. On GPU, the gradient of the head's
weights is read and written for every chunk; computed from an H100's peak rates, that takes longer than the product of
256 rows."""

ONLINE_SECTIONS = {
    "rollout": "samples nothing",
    "rewards": "needs no scores",
    "weight_sync": "publishes no weights",
    "environment": "has no episodes",
    CRITIC: "has no critic",
}
"""Sections that mean nothing for algorithms that learn from examples, and why."""

AlgorithmConfig = Annotated[OnlineKinds | OfflineKinds, Field(discriminator="kind")]

OFFLINE: dict[str, type[OfflineAlgorithm]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(OfflineKinds)
}
"""The classes of algorithms that learn from examples, by kind."""


class RunSection(Config):
    """Name, folder and length of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder in `dir`: letters, digits, dots, hyphens and underscores.

    A run folder is never overwritten."""
    dir: str = "runs"
    """Folder that contains the folders of runs."""
    group_readable: bool = False
    """True lets the owner's group read the run folder and its files (mode 750). False restricts them to the owner
    (700). The files of checkpoints and of the export follow the umask."""
    steps: int | None = Field(None, ge=1)
    """Number of training steps; each trains on one batch of rollouts, or of examples. None: `epochs` is the length."""
    epochs: int | None = Field(None, ge=1)
    """Number of passes over the training data, for algorithms that learn from examples. Without `epochs` and `steps`,
    it is 1."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between two evaluations on the held-out examples (`data.held_out`), for algorithms that learn from
    examples. None: only after the last step."""
    patience: int | None = Field(None, ge=1)
    """End the run after this number of evaluations without a better value of `checkpoint.keep_best`. None: never."""
    seed: int = Field(0, ge=0)
    """Seed of the order of prompts or examples, of the sampling, and of the heads of new reward models."""
    heartbeat_s: float = Field(30.0, gt=0)
    """Interval between two messages while the run waits for something."""
    samples: int = Field(3, ge=0)
    """Number of completions that are printed every `show_every` steps and at the end."""
    show_every: int = Field(10, ge=1)
    """Steps between two prints of completions."""
    deterministic: bool = False
    """Make two runs with the same seed and kind of CPU equal bit for bit, in rewards, losses and weights. Needs CPU,
    float32 and synchronous rollouts."""
    grace_s: float = Field(120.0, gt=0)
    """How long the run may take to finish its step and save after SIGTERM, SIGUSR1 or Ctrl-C; then it is ended."""

    @property
    def length(self) -> str:
        """The length of the run in words: "10 steps", "1 epoch"."""
        count, noun = (self.epochs, "epoch") if self.steps is None else (self.steps, "step")
        return f"{count} {noun}{'' if count == 1 else 's'}"


class ModelConfig(Config):
    """The model that training starts from."""

    path: str
    """A folder, a name on the Hugging Face hub, or a packaged model (`smollm2-135m-instruct`)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the weights in forward passes and engines. Master weights and optimizer state are always float32. auto is
    bfloat16 on GPU and on CPUs with bfloat16 instructions, else float32; the run folder's config.yaml says which."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model, as in transformers."""
    chat_template: str | None = None
    """Chat template that replaces the tokenizer's: Jinja text, a file with it, or the name of one of the model's
    templates. The exported model has it too. None uses the model's own template; of several, the one named
    `default`."""
    adapter: Lora | None = None
    """Train adapters, {kind: lora}, and keep the model's own weights as they are; see docs/lora.md. The critic gets
    adapters of its own. The default learning rates are then ten times as high. None trains all weights."""


class CheckpointConfig(Config):
    """Checkpoints, and the export of the trained model."""

    every_steps: int | None = Field(10, ge=1)
    """Steps between two checkpoints, from which the run can be resumed; there is also one after the last step. None
    saves only when the run is told to stop."""
    keep_last: int = Field(2, ge=1)
    """Number of the newest checkpoints to keep. An older one is deleted after a newer one is complete."""
    keep_every: int | None = Field(None, ge=1)
    """Checkpoints of steps that are multiples of this number are never deleted."""
    timeout_s: float = Field(1800.0, gt=0)
    """Limit for writing or reading a checkpoint."""
    keep_best: str | None = None
    """Metric of the held-out examples, such as `eval/loss`: the checkpoint with its best value is never deleted, and
    the export has its model. Only for algorithms that learn from examples, with `run.evaluate_every`."""
    export: bool = True
    """Write the final policy to `export/` in Hugging Face format."""
    export_adapter: Literal["merged", "peft"] = "merged"
    """How a run with `model.adapter` is exported. merged: the whole model with the adapters added, which can be
    served, judge, and be the `model.path` of another run. peft: the adapters alone, as TRL writes; peft, transformers
    and vLLM load them with the model that they belong to, and as `model.path` another run continues them."""


def full_rate(kind: str) -> float:
    """Returns the default of `train.learning_rate` for an algorithm if all weights are trained."""
    return OFFLINE[kind].learning_rate if kind in OFFLINE else TrainConfig().learning_rate


def _has_adapter(model: Any) -> bool:
    if isinstance(model, ModelConfig):
        return model.adapter is not None
    return isinstance(model, Mapping) and model.get("adapter") is not None


def _with_rate(given: Mapping[str, Any], section: str, full: float, *, has_adapter: bool) -> Mapping[str, Any]:
    """Returns the values with a learning rate in a section that has none; `full` is that of full fine-tuning."""
    values = given.get(section, {})
    if not isinstance(values, Mapping) or "learning_rate" in values:
        return given
    return {**given, section: {**values, "learning_rate": round(full * RATE_RATIO, 12) if has_adapter else full}}


class RunConfig(Config):
    """The whole configuration of a run. The rules between its fields are in `ray_rl.config.rules.check`."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    rewards: list[RewardConfig] = Field(default_factory=list)
    """Functions and models that score completions; at least one if the algorithm learns from rollouts, unless an
    environment gives rewards."""
    environment: EnvironmentConfig = SingleTurn()
    """The environment that answers the policy between its turns; see docs/environments.md. By default, each prompt is
    answered once."""
    algorithm: AlgorithmConfig
    """The algorithm: `kind` names it and sets its defaults, for example {kind: grpo}."""
    rollout: RolloutConfig = RolloutConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    train: TrainConfig = TrainConfig()
    critic: CriticConfig | None = None
    """The value model of `algorithm.kind: ppo`, which gets a default one if this section is missing."""
    reference: ReferenceConfig | None = ReferenceConfig()
    """The frozen model from which a KL penalty, or a loss of preferences, measures the distance of the policy."""
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="before")
    @classmethod
    def _add_defaults_of_kind(cls, given: Any) -> Any:
        """Adds what depends on `algorithm.kind`: PPO's critic, learning rates, and the length of offline algorithms.

        Before, the section `model` is completed from a folder of adapters (see `with_adapters_of_folder`).
        """
        if not isinstance(given, Mapping):
            return given
        if "model" in given:
            given = {**given, "model": with_adapters_of_folder(given["model"])}
        match given.get("algorithm"):
            case {"kind": kind} | Algorithm(kind=kind) | OfflineAlgorithm(kind=kind):
                pass
            case _:
                return given
        if not isinstance(kind, str):
            return given
        if kind == "ppo":
            given = {CRITIC: {}, **given}
        is_offline, run = kind in OFFLINE, given.get("run")
        if is_offline and isinstance(run, Mapping) and run.get("steps") is None and run.get("epochs") is None:
            given = {**given, "run": {**run, "epochs": 1}}
        has_adapter = _has_adapter(given.get("model"))
        if is_offline or has_adapter:
            given = _with_rate(given, "train", full_rate(kind), has_adapter=has_adapter)
        if has_adapter and CRITIC in given:
            given = _with_rate(given, CRITIC, CriticConfig().learning_rate, has_adapter=True)
        return given

    @model_serializer(mode="wrap")
    def _without_meaningless_sections(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out sections that an offline algorithm does not have, so that what is written can be loaded."""
        fields: dict[str, Any] = write(self)
        if not self.is_offline:
            return fields
        unread = {*ONLINE_SECTIONS, *([] if self.offline.needs_reference else ["reference"])}
        return {name: value for name, value in fields.items() if name not in unread}

    @property
    def is_offline(self) -> bool:
        """Whether the algorithm learns from given examples, and not from rollouts."""
        return isinstance(self.algorithm, OfflineAlgorithm)

    @property
    def online(self) -> Algorithm:
        """The settings of an algorithm that learns from rollouts."""
        assert isinstance(self.algorithm, Algorithm), f"algorithm.kind={self.algorithm.kind} has no rollouts"
        return self.algorithm

    @property
    def offline(self) -> OfflineKinds:
        """The settings of an algorithm that learns from examples."""
        assert isinstance(self.algorithm, OfflineAlgorithm), f"algorithm.kind={self.algorithm.kind} has rollouts"
        return self.algorithm

    @property
    def members(self) -> int:
        """Number of models that the run trains together: more than 1 for an ensemble of reward models."""
        return self.algorithm.members if isinstance(self.algorithm, RewardModel) else 1

    @property
    def steps(self) -> int:
        """`run.steps`, which is known once `run.epochs` has been resolved."""
        assert self.run.steps is not None, "run.epochs has not been resolved to steps"
        return self.run.steps

    @property
    def episodes(self) -> EnvironmentPart | None:
        """The environment of episodes with several turns; None if every prompt is answered once."""
        return self.environment if isinstance(self.environment, EnvironmentPart) else None

    @property
    def most_tokens(self) -> int:
        """The most tokens of a rollout after its prompt, those of an environment included."""
        return self.rollout.max_tokens if self.episodes is None else self.episodes.max_tokens

    @property
    def publishes_adapters(self) -> bool:
        """Whether engines get the adapters themselves (see `weight_sync.adapter`), and no merged weights."""
        chosen = self.weight_sync.adapter
        is_separate = self.cluster.accelerator == "gpu" if chosen == "auto" else chosen == "separate"
        return self.model.adapter is not None and is_separate

    @property
    def exports_adapters(self) -> bool:
        """Whether an export has the adapters alone."""
        return self.model.adapter is not None and self.checkpoint.export_adapter == "peft"

    @property
    def logit_chunk_tokens(self) -> int:
        """`train.logit_chunk_tokens`, with None resolved."""
        return self.train.logit_chunk_tokens or LOGIT_CHUNK_TOKENS[self.cluster.accelerator]

    @property
    def reward_models(self) -> ModelReward | None:
        """The entry of `rewards` with kind model; None if there is none. There is at most one."""
        return next((part for part in self.rewards if isinstance(part, ModelReward)), None)

    @property
    def reward_models_key(self) -> str:
        """The dotted key of the entry of `rewards` with kind model."""
        index = next(i for i, part in enumerate(self.rewards) if isinstance(part, ModelReward))
        return f"rewards.{index}"
