"""`RunConfig`: everything about one run."""

from typing import Literal

from pydantic import Field

from ray_rl.config.algorithm import Algorithm
from ray_rl.config.base import Config
from ray_rl.config.cluster import ClusterConfig
from ray_rl.config.data import DataConfig
from ray_rl.config.rewards import RewardConfig
from ray_rl.config.rollout import RolloutConfig, WeightSyncConfig
from ray_rl.config.train import CriticConfig, ReferenceConfig, RewardModelConfig, TrainConfig


class RunSection(Config):
    """Name, place and length of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder of the run below `dir`. A run folder is never overwritten."""
    dir: str = "runs"
    steps: int = Field(ge=1)
    """Batches of rollouts to train on."""
    seed: int = Field(0, ge=0)
    heartbeat_s: float = Field(30.0, gt=0)
    """While something is waited for, say so this often."""
    samples: int = Field(3, ge=0)
    """Completions shown at the end and every `show_every` steps."""
    show_every: int = Field(10, ge=1)


class ModelConfig(Config):
    """The policy at the start."""

    path: str
    """A folder, a hub name, or a packaged model (`smollm2-135m-instruct`)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the forward pass and of the engines. Master weights and optimizer state are float32 either way. auto: bfloat16
    on GPU and on CPUs with bfloat16 instructions, else float32; the run folder's config.yaml says which."""
    trust_remote_code: bool = False


class CheckpointConfig(Config):
    """What is left on disk."""

    export: bool = True
    """Write the final policy to `export/` in Hugging Face format."""


class RunConfig(Config):
    """One run, whole. Cross-field rules live in `ray_rl.config.rules`."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    rewards: list[RewardConfig] = Field(default_factory=list)
    """Functions that judge completions; at least one, or a `reward` model."""
    algorithm: Algorithm = Algorithm()
    rollout: RolloutConfig = RolloutConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    train: TrainConfig = TrainConfig()
    critic: CriticConfig | None = None
    reference: ReferenceConfig | None = ReferenceConfig()
    reward: RewardModelConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
