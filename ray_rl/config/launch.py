"""How a run gets onto a cluster. `ray-rl render` and `ray-rl submit` read it; training does not."""

from typing import Literal

from pydantic import Field

from ray_rl.config.base import Config


class RayJobLaunch(Config):
    """`ray job submit` to a Ray cluster that is there."""

    address: str | None = None
    """Of the cluster's dashboard, http://host:8265. None: RAY_API_SERVER_ADDRESS, or RAY_ADDRESS."""
    token_path: str | None = None
    """File with the token of the cluster, mode 600. None: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or it has none."""


class SlurmLaunch(Config):
    """An sbatch script that starts Ray on its nodes and ends it."""

    account: str | None = None
    qos: str | None = None
    container: Literal["none", "pyxis"] = "none"
    """pyxis: every step runs in `launch.image`, by pyxis and enroot."""
    cpu_nodes: int = Field(0, ge=0)
    """Nodes without GPUs, as a group of their own in a heterogeneous job. Ray's head and the driver move to the first
    of them, and with the driver the reward functions, which run beside it: they then take no cores from trainers and
    engines. More than one only helps rewards or environments of yours that start Ray tasks; with
    `cluster.accelerator=cpu` Ray places roles there, too."""
    cpu_partition: str | None = None
    """Of that group. None: `launch.queue`."""
    warn_s: int = Field(300, ge=10)
    """USR1 comes so long before the time limit: the run saves, and the job is queued again. More than `run.grace_s`."""
    ready_timeout_s: int = Field(600, ge=10)
    """Limit for all Ray nodes to be alive."""
    port: int = Field(6379, ge=1024, le=19991)
    """Of Ray's head. The ports above it (to `port` + 8) and workers' 20000-21999 are used too, all below the ephemeral
    range. Two jobs that share a node need ports apart."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell for the environment of all steps: "module load cuda", "source .venv/bin/activate". None: the
    project's own .venv; in images, nothing."""
    options: list[str] = Field(default_factory=list)
    """Further sbatch options, as written behind #SBATCH: "--exclusive", "--constraint=h100"."""


class KubeRayLaunch(Config):
    """A RayJob (ray.io/v1) for KubeRay 1.7."""

    namespace: str = "default"
    service_account: str | None = None
    """Of the head, where the driver runs; it needs the right to patch this RayJob, else exit code 2 is tried again.
    None: one is made with the job, with that right and no other."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes for GPUs: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}."""
    head_cpus: int = Field(4, ge=1)
    """Of the head, which runs Ray's services and the driver, and no role."""
    head_memory_gib: int = Field(32, ge=2)
    """Of the head. Its /dev/shm is that of the other pods, but at most half of this."""
    claim: str = "ray-rl-runs"
    """PersistentVolumeClaim, ReadWriteMany, for run folders; mounted at `runs_path`."""
    runs_path: str = "/runs"
    scheduler: Literal["none", "kueue", "volcano"] = "none"
    """Who admits the whole gang; `launch.queue` is its queue."""
    environment_from: str | None = None
    """Secret whose keys become environment variables of every pod: HF_TOKEN, WANDB_API_KEY."""
    shared_memory_gib: int = Field(16, ge=1)
    """Size of /dev/shm, which is memory of the pod."""
    ready_timeout_s: int = Field(3600, ge=10)
    """The job fails when it does not run by then (preRunningDeadlineSeconds)."""
    rdma_resource: str | None = None
    """Of a network device plugin, for example rdma/rdma_shared_device_a; asked for on every GPU pod."""


class LaunchConfig(Config):
    """One description for every way onto a cluster. Nodes and GPUs are those of `cluster`."""

    image: str | None = None
    """Of containers, best by digest."""
    mounts: list[str] = Field(default_factory=list)
    """Of containers under Slurm: "/lustre/me:/lustre/me"."""
    workdir: str | None = None
    """The project on the cluster's nodes, where the configuration's paths start. None: the current folder; in images,
    /workspace. A Ray job always runs in its copy of the current folder."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the driver and of all workers: NCCL_SOCKET_IFNAME, NCCL_IB_HCA. Secrets do not belong here."""
    queue: str | None = None
    """Slurm's partition, Kueue's or Volcano's queue."""
    time_limit: str = Field("24:00:00", pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-5][0-9]:[0-5][0-9]$")
    """[days-]hours:minutes:seconds of one attempt. A Ray job has no limit."""
    retries: int = Field(3, ge=0)
    """Attempts after the first, each going on from the newest checkpoint. Exit code 2 is never tried again; an attempt
    that saved and ended with 75 always is, where the scheduler can do it, and does not count."""
    cpus_per_node: int | None = Field(None, ge=1)
    """That Ray is told of, and that are asked of the scheduler. None: all that a node has."""
    memory_gib_per_node: int | None = Field(None, ge=1)
    """Asked of the scheduler. None: left to it; KubeRay needs it."""
    preflight: bool = False
    """Look at all nodes and the links between them (`ray-rl doctor --cluster`) before training; a failure ends the
    attempt."""
    ray_job: RayJobLaunch = RayJobLaunch()
    slurm: SlurmLaunch = SlurmLaunch()
    kuberay: KubeRayLaunch = KubeRayLaunch()

    @property
    def time_limit_s(self) -> int:
        """Seconds of `time_limit`."""
        days, _, clock = self.time_limit.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
