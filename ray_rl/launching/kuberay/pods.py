"""The pods of a RayJob: a head without GPUs that runs the driver, and one pod per node for the roles."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Any

from ray_rl.launching.job import Job
from ray_rl.launching.kuberay.retries import RAY_JOB

Manifest = dict[str, Any]

WORKDIR = "/workspace"
"""The working folder of our images."""
USER = 10001
"""The user of our images, for whom the claim must be writable."""
CONFIG_VOLUME = "config"
CONFIG_KEY = "run.yaml"
"""Key of the ConfigMap; a file name may not be a valid key."""
GPU = "nvidia.com/gpu"
TEARDOWN_S = 30
"""Time for Ray to end after the driver has ended."""
OF_EVERY_POD = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
"""Disables Ray's wait of 30 s at SIGTERM, which is for services: our driver and the head have ended by then."""


def workdir(job: Job) -> str:
    """Returns the folder where containers start and to which paths of the configuration are relative."""
    return job.launch.workdir or WORKDIR


def unexpanded(text: str) -> str:
    """Escapes a text for a variable, a command or an argument, where the kubelet expands it.

    It replaces `$(NAME)` by a variable of the container and `$$` by `$`; any other `$` is kept.
    """
    return text.replace("$", "$$") if "$(" in text or "$$" in text else text


def head_shared_memory_gib(job: Job) -> int:
    """Returns the size of the head's /dev/shm."""
    kuberay = job.launch.kuberay
    return min(kuberay.shared_memory_gib, kuberay.head_memory_gib // 2)


def head_template(job: Job, *, name: str) -> Manifest:
    """Returns the head's pod.

    Args:
        job: the job to run.
        name: the name of the RayJob and its ConfigMap.
    """
    launch = job.launch
    kuberay = launch.kuberay
    environment = job.environment | OF_EVERY_POD | {RAY_JOB: name}
    container = _container(job, "ray-head", environment=environment, drain="driver")
    container["ports"] = [
        {"containerPort": 6379, "name": "gcs-server"},
        {"containerPort": 8265, "name": "dashboard"},
        {"containerPort": 10001, "name": "client"},
        {"containerPort": 8080, "name": "metrics"},
    ]
    container["resources"] = _resources(cpu=str(kuberay.head_cpus), memory=f"{kuberay.head_memory_gib}Gi")
    file = str(PurePosixPath(workdir(job), job.config_path))
    container["volumeMounts"].append(
        {"name": CONFIG_VOLUME, "mountPath": file, "subPath": CONFIG_KEY, "readOnly": True}
    )
    spec = _spec(job, container, head_shared_memory_gib(job))
    # The controller's submitter requires this: a head that restarts by itself would run the job twice.
    spec["restartPolicy"] = "Never"
    spec["serviceAccountName"] = kuberay.service_account or name
    spec["automountServiceAccountToken"] = True
    spec["volumes"].append({"name": CONFIG_VOLUME, "configMap": {"name": name}})
    return {"metadata": _metadata(), "spec": spec}


def worker_template(job: Job) -> Manifest:
    """Returns the pod of one node."""
    launch = job.launch
    kuberay = launch.kuberay
    container = _container(job, "ray-worker", environment=job.environment | OF_EVERY_POD, drain="worker")
    amounts = {"cpu": str(launch.cpus_per_node), "memory": f"{launch.memory_gib_per_node}Gi"}
    if job.gpus_per_node:
        amounts[GPU] = str(job.gpus_per_node)
    if job.gpus_per_node and kuberay.rdma_resource is not None:
        amounts[kuberay.rdma_resource] = "1"
        # Memory that a network card reads and writes must be locked.
        container["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
    container["resources"] = _resources(**amounts)
    spec = _spec(job, container, kuberay.shared_memory_gib)
    spec["automountServiceAccountToken"] = False
    if kuberay.node_selector:
        spec["nodeSelector"] = dict(kuberay.node_selector)
    if job.gpus_per_node:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": _metadata(), "spec": spec}


def _metadata() -> Manifest:
    return {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}}


def _resources(**amounts: str) -> Manifest:
    """Returns requests that equal limits, so that a pod never exceeds its requests and is not evicted for that."""
    return {"requests": amounts, "limits": dict(amounts)}


def _container(job: Job, name: str, *, environment: dict[str, str], drain: str) -> Manifest:
    kuberay = job.launch.kuberay
    secret = [{"secretRef": {"name": kuberay.environment_from}}] if kuberay.environment_from else []
    return {
        "name": name,
        "image": job.launch.image,
        "workingDir": workdir(job),
        "env": [{"name": key, "value": unexpanded(value)} for key, value in sorted(environment.items())],
        **({"envFrom": secret} if secret else {}),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "runs", "mountPath": kuberay.runs_path},
        ],
        # Before Kubernetes ends Ray, the driver saves, and the workers stay until it has.
        "lifecycle": {
            "preStop": {
                "exec": {
                    "command": [
                        "python",
                        "-m",
                        "ray_rl.launching.kuberay.drain",
                        drain,
                        str(math.ceil(job.config.run.grace_s)),
                    ]
                }
            }
        },
    }


def _spec(job: Job, container: Manifest, shared_memory_gib: int) -> Manifest:
    kuberay = job.launch.kuberay
    return {
        "terminationGracePeriodSeconds": math.ceil(job.config.run.grace_s) + TEARDOWN_S,
        "securityContext": {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"},
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_memory_gib}Gi"}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": kuberay.claim}},
        ],
    }
