"""The `cluster` section."""

from typing import Literal

from pydantic import Field

from ray_rl.config.base import Config
from ray_rl.config.roles import Sharing


class ClusterConfig(Config):
    """The Ray cluster and the hardware that a run uses."""

    address: str | None = None
    """None starts a local cluster; "auto" or host:port joins an existing one."""
    accelerator: Literal["cpu", "gpu"] = "gpu"
    """cpu: DeepSpeed and weight transport use gloo, and vLLM its CPU build. Everything else is the same."""
    nodes: int = Field(1, ge=1)
    """Number of nodes."""
    gpus_per_node: int = Field(8, ge=1)
    """Number of GPUs of each node."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that Ray reserves for each worker. A local CPU cluster declares as many CPUs as its workers need."""
    threads: int | None = Field(None, ge=1)
    """Threads of each worker on CPU. None divides the cores by the number of workers that compute concurrently."""
    colocate: list[list[Sharing]] = Field(default_factory=list)
    """Groups of roles that share GPUs: worker i of each role runs on GPU i of the group. With `rollout` in the group of
    the actor, engines sleep while models are trained, and the other roles leave the GPUs while engines sample; engine j
    takes the next `rollout.tensor_parallel` GPUs."""
    start_timeout_s: float = Field(300.0, gt=0)
    """Limit for placement, and for workers to start."""
    max_restarts: int = Field(3, ge=0)
    """Restarts of each engine, of the reference, of the reward models, and of actor and critic together. An engine that
    fails more often is not used again. The run ends when no engine remains, or when another role fails more often."""
    heartbeat_s: float = Field(5.0, gt=0)
    """Interval between two checks that the workers of actor, critic, reference and reward models are alive."""
    heartbeat_timeout_s: float = Field(120.0, gt=0)
    """A worker that does not answer for this long is killed, and its role is restarted. Workers answer while they
    compute or wait for each other, so that a step may take longer. Engines have `rollout.heartbeat_timeout_s`."""
