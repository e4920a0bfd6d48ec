"""Renders a run as a RayJob for KubeRay 1.7: the manifest, and the objects that it needs."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import PurePosixPath
from typing import Any

import yaml

from ray_rl.config.loading.explain import as_one_message
from ray_rl.config.loading.load import dump_config
from ray_rl.config.loading.redact import hidden_keys, without_secrets
from ray_rl.errors import ConfigError
from ray_rl.launching.job import Job
from ray_rl.launching.kuberay.pods import (
    CONFIG_KEY,
    Manifest,
    head_shared_memory_gib,
    head_template,
    unexpanded,
    workdir,
    worker_template,
)
from ray_rl.sizes import GIB

API_VERSION = "ray.io/v1"
RAY_VERSION = "2.60.0"
"""Ray's version in the image; the controller derives Ray's features from it."""
RUN_LABEL = "ray-rl/run"
"""Label of every object that belongs to a run."""
MAX_JOB_NAME = 47
"""Longest name of a RayJob: its cluster's name is 6 characters longer, and names of services have at most 63."""
OF_KUBERAY = {
    "RAY_ADDRESS": "KubeRay sets it in every pod",
    "RAY_AUTH_MODE": "KubeRay sets it in every pod",
    "RAY_REDIS_ADDRESS": "KubeRay refuses it, because the cluster of a run stores its state in no Redis",
    "RAY_enable_autoscaler_v2": "KubeRay refuses it, because the cluster of a run has a fixed size",
    "REDIS_USERNAME": "KubeRay refuses it, because the cluster of a run stores its state in no Redis",
}
"""Variables that belong to the controller, with the reason; RAY_AUTH_TOKEN is refused as a secret."""
QUEUE_LABELS = {"kueue": "kueue.x-k8s.io/queue-name", "volcano": "volcano.sh/queue-name"}


def render(job: Job) -> str:
    """Returns the YAML documents of a run, for `kubectl apply -f -`; the RayJob is the last.

    Before it comes a ConfigMap with the complete configuration in one file. Unless `launch.kuberay.service_account`
    names an account, there is also one for the driver, which may only patch this RayJob: exit code 2 sets its
    `backoffLimit` to 0 (see `ray_rl.launching.kuberay.retries`).

    Raises:
        ConfigError: a value that Kubernetes needs is missing, or a value with which the controller refuses the RayJob.
    """
    problems = [*_missing(job), *_unfit(job)]
    if problems:
        raise ConfigError(as_one_message(problems))
    return _HEADER.format(name=job.name) + yaml.dump_all(manifests(job), Dumper=_Dumper, sort_keys=False, width=120)


def manifests(job: Job) -> list[Manifest]:
    """Returns the documents of `render`, unchecked."""
    account = [] if job.launch.kuberay.service_account else _account(job)
    return [_config_map(job), *account, _ray_job(job)]


def resource_name(run_name: str) -> str:
    """Returns a name for the Kubernetes objects of a run: the run's name if KubeRay allows it, else one made from it.

    KubeRay allows lower case letters, digits and "-", with a letter first, and at most MAX_JOB_NAME characters. For
    other names, letters become lower case, other characters become "-", and a hash of the name is added, so that
    two runs never have the same name.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", run_name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"run-{plain}".strip("-")
    if plain == run_name and len(plain) <= MAX_JOB_NAME:
        return plain
    ending = "-" + hashlib.sha256(run_name.encode()).hexdigest()[:6]
    return plain[: MAX_JOB_NAME - len(ending)].rstrip("-") + ending


def submitted_line(line: str) -> str:
    """Returns `spec.entrypoint` for a shell line.

    KubeRay's submitter appends the entrypoint to `ray job submit ... --` in a line for bash, and Ray quotes the words
    and passes them to the shell of the driver. A single command is not changed by that. Of two commands joined by `&&`
    the second would run inside the submitter, so they are passed as one word.
    """
    words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
    is_one_command = not any(set(word) <= set("();<>|&") for word in words)
    return line if is_one_command else shlex.join(["sh", "-c", line])


def _missing(job: Job) -> list[str]:
    """Returns messages about missing values that have no default and that Kubernetes needs."""
    launch, found = job.launch, []
    if launch.image is None:
        found.append("launch.image=null: pods are made from an image; set launch.image, best by digest")
    if launch.cpus_per_node is None:
        found.append("launch.cpus_per_node=null: a pod must request CPUs; set launch.cpus_per_node")
    if launch.memory_gib_per_node is None:
        found.append("launch.memory_gib_per_node=null: a pod must request memory; set launch.memory_gib_per_node")
    if launch.kuberay.scheduler != "none" and launch.queue is None:
        found.append(
            f"launch.queue=null: launch.kuberay.scheduler={launch.kuberay.scheduler} admits jobs by queue; "
            "set launch.queue"
        )
    return found


def _unfit(job: Job) -> list[str]:
    """Returns messages about values with which the job cannot work."""
    launch, kuberay, found = job.launch, job.launch.kuberay, []
    folder, claim = PurePosixPath(job.config.run.dir), PurePosixPath(kuberay.runs_path)
    if not claim.is_absolute() or claim == PurePosixPath("/"):
        found.append(f"launch.kuberay.runs_path={claim}: must be an absolute path, for example /runs")
    elif not folder.is_relative_to(claim) or ".." in folder.parts:
        found.append(
            f"run.dir={folder}: is not on a persistent volume, so that a retry would find no checkpoint; set "
            f"run.dir={claim}, where the claim {kuberay.claim} is mounted"
        )
    if not PurePosixPath(workdir(job)).is_absolute():
        found.append(
            f"launch.workdir={launch.workdir}: is a folder of the image; set an absolute path, or leave it out"
        )
    if launch.memory_gib_per_node is not None and kuberay.shared_memory_gib >= launch.memory_gib_per_node:
        found.append(
            f"launch.kuberay.shared_memory_gib={kuberay.shared_memory_gib}: is part of launch.memory_gib_per_node="
            f"{launch.memory_gib_per_node} and leaves no other memory; set it lower"
        )
    found += [
        f"launch.environment.{key}={launch.environment[key]}: {reason}; leave it out"
        for key, reason in OF_KUBERAY.items()
        if key in launch.environment
    ]
    if launch.time_limit_s == 0:
        found.append(f"launch.time_limit={launch.time_limit}: KubeRay needs a limit above 0; set a longer one")
    if launch.cpus_per_node is not None and (cpus := _cpus_of_fullest_node(job)) > launch.cpus_per_node:
        found.append(
            f"launch.cpus_per_node={launch.cpus_per_node}: the roles reserve {cpus:g} CPUs of a node; set it to "
            f"{cpus:g} or more, or cluster.cpus_per_worker lower"
        )
    found += [
        f"{key}: is a secret, and a ConfigMap is not secret; put it into the Secret of "
        "launch.kuberay.environment_from and read it from the environment"
        for key in hidden_keys(without_secrets(job.config.model_dump()))
    ]
    return found


def _cpus_of_fullest_node(job: Job) -> float:
    taken: dict[int, float] = {}
    for group in job.plan.groups:
        for place in group.places:
            taken[place.node] = taken.get(place.node, 0.0) + group.cpus
    return max(taken.values(), default=0.0) if job.gpus_per_node else job.plan.cpus / job.nodes


def _metadata(job: Job, **labels: str) -> Manifest:
    name = resource_name(job.name)
    return {
        "name": name,
        "namespace": job.launch.kuberay.namespace,
        "labels": {RUN_LABEL: name, **labels},
        "annotations": {"ray-rl/run-name": job.name},
    }


def _config_map(job: Job) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job),
        "data": {CONFIG_KEY: dump_config(job.config)},
    }


def _account(job: Job) -> list[Manifest]:
    """Returns an account for the driver, with its only right."""
    name = resource_name(job.name)
    rule = {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "resourceNames": [name], "verbs": ["patch"]}
    rbac = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": _metadata(job),
            "automountServiceAccountToken": False,
        },
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": _metadata(job), "rules": [rule]},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": _metadata(job),
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": job.launch.kuberay.namespace}],
        },
    ]


def _ray_job(job: Job) -> Manifest:
    launch, kuberay = job.launch, job.launch.kuberay
    label = QUEUE_LABELS.get(kuberay.scheduler)
    return {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": _metadata(job, **({label: launch.queue} if label and launch.queue else {})),
        "spec": {
            "entrypoint": unexpanded(submitted_line(job.shell_line)),  # an argument of the submitter
            # The submitter is a container of the head, so it needs no other pod and no network to reach Ray. Without
            # entrypointNumCpus, the driver stays on the head.
            "submissionMode": "SidecarMode",
            "shutdownAfterJobFinishes": True,
            "backoffLimit": launch.retries,
            "preRunningDeadlineSeconds": kuberay.ready_timeout_s,
            "activeDeadlineSeconds": launch.time_limit_s,
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION,
                "authOptions": {"mode": "token"},
                "headGroupSpec": _head(job),
                "workerGroupSpecs": [_workers(job)],
            },
        },
    }


def _head(job: Job) -> Manifest:
    return {
        "rayStartParams": {
            "dashboard-host": "0.0.0.0",
            "num-cpus": "0",
            "num-gpus": "0",
            "object-store-memory": _object_store(head_shared_memory_gib(job)),
        },
        "template": head_template(job, name=resource_name(job.name)),
    }


def _workers(job: Job) -> Manifest:
    return {
        "groupName": "gpu" if job.gpus_per_node else "cpu",
        "replicas": job.nodes,
        "minReplicas": job.nodes,
        "maxReplicas": job.nodes,
        "rayStartParams": {
            "num-cpus": str(job.launch.cpus_per_node),
            "num-gpus": str(job.gpus_per_node),
            "object-store-memory": _object_store(job.launch.kuberay.shared_memory_gib),
        },
        "template": worker_template(job),
    }


def _object_store(shared_memory_gib: int) -> str:
    """Returns the bytes of Ray's object store: half of /dev/shm; NCCL and the transfer of weights need the rest."""
    return str(shared_memory_gib * GIB // 2)


class _Dumper(yaml.SafeDumper):
    """Writes YAML with multi-line texts as blocks, and without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True, so that equal parts are written out each time."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)

_HEADER = """\
# Run {name}: written by `ray-rl render kuberay`, for `kubectl apply -f`.
"""
