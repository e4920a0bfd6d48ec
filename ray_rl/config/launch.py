"""The `launch` section: how a run reaches a cluster. `ray-rl render` and `ray-rl submit` read it; training does not."""

from typing import Literal

from pydantic import Field

from ray_rl.config.base import Config


class RayJobLaunch(Config):
    """A job of an existing Ray cluster, as `ray job submit` makes it."""

    address: str | None = None
    """URL of the cluster's dashboard: http://host:8265. None reads RAY_API_SERVER_ADDRESS or RAY_ADDRESS."""
    token_path: str | None = None
    """File with the cluster's token, mode 600. None reads RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH; without these, no
    token is sent."""


class SlurmLaunch(Config):
    """An sbatch script that starts Ray on its nodes, trains, and stops Ray."""

    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    container: Literal["none", "pyxis"] = "none"
    """pyxis: every step runs in a container of `launch.image`, made by pyxis and enroot."""
    cpu_nodes: int = Field(0, ge=0)
    """Number of additional nodes without GPUs; they become the first group of a heterogeneous job. Ray's head, the
    driver and the reward functions then run on the first of them, and take no cores from trainers and engines. More
    than one helps only if your rewards or environments start Ray tasks. With `cluster.accelerator=cpu`, Ray also places
    roles there."""
    cpu_partition: str | None = None
    """Partition of the nodes without GPUs. None uses `launch.queue`."""
    warn_s: int = Field(300, ge=10)
    """How long before the time limit Slurm sends USR1: the run then saves, and the job is queued again. Must be longer
    than `run.grace_s`."""
    ready_timeout_s: int = Field(600, ge=10)
    """Limit for all Ray nodes to join."""
    port: int = Field(6379, ge=1024, le=19991)
    """Port of Ray's head. Ray also uses the next eight ports, and 20000 to 21999 for workers; all of them are below the
    ephemeral range. Jobs that share a node need different ports."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines that prepare the environment of every step: "module load cuda", "source .venv/bin/activate". If
    empty, the project's own .venv is used, or in a container the environment of the image."""
    options: list[str] = Field(default_factory=list)
    """Further options of sbatch, as written after #SBATCH: "--exclusive", "--constraint=h100"."""


class KubeRayLaunch(Config):
    """A RayJob (ray.io/v1) for KubeRay 1.7."""

    namespace: str = "default"
    """Namespace of the RayJob."""
    service_account: str | None = None
    """Account of the head's pod, where the driver runs. It needs the right to patch this RayJob; otherwise KubeRay
    retries a run that ended with exit code 2. None creates an account that has only this right."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes with GPUs: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}."""
    head_cpus: int = Field(4, ge=1)
    """CPUs of the head's pod, which runs Ray's services and the driver, but no role."""
    head_memory_gib: int = Field(32, ge=2)
    """Memory of the head's pod. Its /dev/shm has `shared_memory_gib`, but at most half of this memory."""
    claim: str = "ray-rl-runs"
    """PersistentVolumeClaim (ReadWriteMany) for run folders; mounted at `runs_path`."""
    runs_path: str = "/runs"
    """Where the claim is mounted in the pods; `run.dir` must be in it."""
    scheduler: Literal["none", "kueue", "volcano"] = "none"
    """The scheduler that admits all pods of the job together; `launch.queue` names its queue."""
    environment_from: str | None = None
    """Secret whose keys become environment variables of every pod: HF_TOKEN, WANDB_API_KEY."""
    shared_memory_gib: int = Field(16, ge=1)
    """Size of /dev/shm, which is part of the pod's memory."""
    ready_timeout_s: int = Field(3600, ge=10)
    """Limit for the job to start (preRunningDeadlineSeconds); after it, the job fails."""
    rdma_resource: str | None = None
    """Resource of a network device plugin, for example rdma/rdma_shared_device_a; every pod with GPUs requests one."""


class LaunchConfig(Config):
    """Settings for all launchers. The numbers of nodes and GPUs come from the `cluster` section."""

    image: str | None = None
    """Image of the containers, best by digest."""
    mounts: list[str] = Field(default_factory=list)
    """Folders to mount into containers under Slurm: "/lustre/me:/lustre/me"."""
    workdir: str | None = None
    """The project's folder on the nodes; relative paths of the configuration start there. None uses the current folder,
    or /workspace in a container. A Ray job always runs in its copy of the current folder."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the driver and of all workers: NCCL_SOCKET_IFNAME, NCCL_IB_HCA. Do not put secrets
    here."""
    queue: str | None = None
    """Slurm's partition, or the queue of Kueue or Volcano."""
    time_limit: str = Field("24:00:00", pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-5][0-9]:[0-5][0-9]$")
    """Time limit of one attempt: [days-]hours:minutes:seconds. A Ray job has no limit."""
    retries: int = Field(3, ge=0)
    """Number of retries; each continues from the newest checkpoint. Exit code 2 is never retried. An attempt that saved
    and ended with 75 is always restarted, if the scheduler can do it, and is not counted."""
    cpus_per_node: int | None = Field(None, ge=1)
    """CPUs of a node that are requested from the scheduler and given to Ray. None: all that a node has."""
    memory_gib_per_node: int | None = Field(None, ge=1)
    """Memory of a node that is requested from the scheduler. None uses the scheduler's default; KubeRay has none."""
    preflight: bool = False
    """Check all nodes and the links between them before training (`ray-rl doctor --cluster`); a failure ends the
    attempt."""
    ray_job: RayJobLaunch = RayJobLaunch()
    slurm: SlurmLaunch = SlurmLaunch()
    kuberay: KubeRayLaunch = KubeRayLaunch()

    @property
    def time_limit_s(self) -> int:
        """The time limit in seconds."""
        days, _, clock = self.time_limit.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
