"""`RunConfig`, the whole configuration of a run, and its smaller sections."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ray_rl.config.base import Config
from ray_rl.config.cluster import ClusterConfig
from ray_rl.config.data import DataConfig
from ray_rl.config.launch import LaunchConfig
from ray_rl.config.online import AlgorithmConfig, PpoAlgorithm
from ray_rl.config.rewards import ModelReward, RewardConfig
from ray_rl.config.roles import CRITIC
from ray_rl.config.rollout import RolloutConfig, WeightSyncConfig
from ray_rl.config.train import CriticConfig, ReferenceConfig, TrainConfig

LOGIT_CHUNK_TOKENS = {"cpu": 256, "gpu": 1024}
"""On CPU, 256 rows make the log-softmax of [T, V] a tenth as large at T = 4096. On GPU, the gradient of the head's
weights is read and written for every chunk; computed from an H100's peak rates, that takes longer than the product of
256 rows."""


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
    steps: int = Field(ge=1)
    """Number of training steps; each trains on one batch of rollouts."""
    seed: int = Field(0, ge=0)
    """Seed of the order of prompts and of the sampling."""
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
    export: bool = True
    """Write the final policy to `export/` in Hugging Face format."""


class RunConfig(Config):
    """The whole configuration of a run. The rules between its fields are in `ray_rl.config.rules.check`."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    rewards: list[RewardConfig] = Field(default_factory=list)
    """Functions and models that score completions; at least one."""
    algorithm: AlgorithmConfig
    """The algorithm: `kind` names it and sets its defaults, for example {kind: grpo}."""
    rollout: RolloutConfig = RolloutConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    train: TrainConfig = TrainConfig()
    critic: CriticConfig | None = None
    """The value model of `algorithm.kind: ppo`, which gets a default one if this section is missing."""
    reference: ReferenceConfig | None = ReferenceConfig()
    """The frozen model from which a KL penalty measures the distance; loaded only if there is a penalty."""
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="before")
    @classmethod
    def _add_critic(cls, given: Any) -> Any:
        """Adds the default critic for `algorithm.kind: ppo`, which cannot train without one."""
        if not isinstance(given, dict) or given.get(CRITIC) is not None:
            return given
        match given.get("algorithm"):
            case PpoAlgorithm() | {"kind": "ppo"}:
                return {**given, CRITIC: {}}
            case _:
                return given

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
