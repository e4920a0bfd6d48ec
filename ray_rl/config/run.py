"""`RunConfig`: everything about one run."""

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
"""On CPU a tenth of the [T, V] log-softmax at T = 4096. On GPU the gradient of the head's weights is read and written
for every chunk: on an H100, by its peaks and not measured, that takes longer than the product of 256 rows."""


class RunSection(Config):
    """Name, place and length of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the run below `dir`: letters, digits, dots, hyphens and underscores.

    A run folder is never overwritten."""
    dir: str = "runs"
    group_readable: bool = False
    """Let the owner's group read the run folder (mode 750) and what is in it. Else it is its owner's alone (700). Files
    of checkpoints and of the export follow the umask."""
    steps: int = Field(ge=1)
    """Batches of rollouts to train on."""
    seed: int = Field(0, ge=0)
    heartbeat_s: float = Field(30.0, gt=0)
    """While something is waited for, say so this often."""
    samples: int = Field(3, ge=0)
    """Completions shown at the end and every `show_every` steps."""
    show_every: int = Field(10, ge=1)
    deterministic: bool = False
    """Two runs of one seed on one kind of CPU are equal bit for bit: in rewards, losses and weights. Float32,
    synchronous, on CPU."""
    grace_s: float = Field(120.0, gt=0)
    """Between SIGTERM, SIGUSR1 or Ctrl-C and the end of the process: time to finish the step and save."""


class ModelConfig(Config):
    """The policy at the start."""

    path: str
    """A folder, a hub name, or a packaged model (`smollm2-135m-instruct`)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the forward pass and of the engines. Master weights and optimizer state are float32 either way. auto: bfloat16
    on GPU and on CPUs with bfloat16 instructions, else float32; the run folder's config.yaml says which."""
    trust_remote_code: bool = False
    chat_template: str | None = None
    """In place of the tokenizer's own: Jinja text, a file of it, or the name of one of the model's templates. The
    exported model carries it. None: the model's own; of several, the one called `default`."""


class CheckpointConfig(Config):
    """What is left on disk."""

    every_steps: int | None = Field(10, ge=1)
    """Save all that the run needs to go on, this often and after the last step. None: only when told to stop."""
    keep_last: int = Field(2, ge=1)
    """Of the newest checkpoints; older ones are deleted once a newer one is on disk."""
    keep_every: int | None = Field(None, ge=1)
    """Checkpoints of steps that are multiples of this are never deleted."""
    timeout_s: float = Field(1800.0, gt=0)
    """Limit for a checkpoint to be written or read."""
    export: bool = True
    """Write the final policy to `export/` in Hugging Face format."""


class RunConfig(Config):
    """One run, whole. Cross-field rules live in `ray_rl.config.rules.check`."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    rewards: list[RewardConfig] = Field(default_factory=list)
    """What judges completions, functions and models; at least one."""
    algorithm: AlgorithmConfig
    """What is optimised: `kind` names the algorithm and brings its defaults, for example {kind: grpo}."""
    rollout: RolloutConfig = RolloutConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    train: TrainConfig = TrainConfig()
    critic: CriticConfig | None = None
    """The value model of `algorithm.kind: ppo`, which has a default one if none is given."""
    reference: ReferenceConfig | None = ReferenceConfig()
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
        """`train.logit_chunk_tokens`, or what None stands for."""
        return self.train.logit_chunk_tokens or LOGIT_CHUNK_TOKENS[self.cluster.accelerator]

    @property
    def reward_models(self) -> ModelReward | None:
        """The entry of `rewards` with kind model, of which there is at most one; None without."""
        return next((part for part in self.rewards if isinstance(part, ModelReward)), None)

    @property
    def reward_models_key(self) -> str:
        """The dotted key of that entry."""
        index = next(i for i, part in enumerate(self.rewards) if isinstance(part, ModelReward))
        return f"rewards.{index}"
