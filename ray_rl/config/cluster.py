"""On what it runs."""

from typing import Literal

from pydantic import Field

from ray_rl.config.base import Config
from ray_rl.config.roles import Sharing


class ClusterConfig(Config):
    """The Ray cluster and the hardware that a run asks of it."""

    address: str | None = None
    """None starts a local cluster; "auto" or host:port joins one."""
    accelerator: Literal["cpu", "gpu"] = "gpu"
    """cpu: DeepSpeed and the weight transport over gloo, vLLM's CPU build. Nothing else differs."""
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(8, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that Ray reserves for a worker. A local CPU cluster declares as many as the workers need."""
    threads: int | None = Field(None, ge=1)
    """Threads of a worker on CPU. None: the cores / the workers that work at the same time."""
    colocate: list[list[Sharing]] = Field(default_factory=list)
    """Roles that share a GPU group: worker i of each on GPU i."""
    start_timeout_s: float = Field(300.0, gt=0)
    """Limit for placement, and for workers to start."""
    max_restarts: int = Field(3, ge=0)
    """Restarts of each engine, of the reference and of the reward models, and of the actor and critic together. After
    them an engine is left out, and the run ends when no engine is left or another role is lost."""
    heartbeat_s: float = Field(5.0, gt=0)
    """Workers of actor, critic, reference and reward models are asked this often whether they are alive."""
    heartbeat_timeout_s: float = Field(120.0, gt=0)
    """A worker that has not answered for this long hangs: it is ended and its role restarted. Workers answer while they
    compute or wait for each other, so a step may take longer. Engines have `rollout.heartbeat_timeout_s`."""
