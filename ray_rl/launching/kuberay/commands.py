"""Submits a RayJob, shows its status and log, and stops it, with kubectl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import yaml

from ray_rl.errors import ClusterError, UserError
from ray_rl.launching.job import Job
from ray_rl.launching.kuberay.manifest import API_VERSION, QUEUE_LABELS, resource_name
from ray_rl.launching.kuberay.pods import Manifest

LIMIT_S = 60
"""Limit for one call of kubectl."""
SUBMITTER = "ray-job-submitter"
"""Container of the head's pod that submits the driver and prints its output."""
ENDED = ("Complete", "Failed")
"""Final deployment states of a RayJob."""
MESSAGE_LINES = 10


def submit(job: Job, text: str) -> str:
    """Creates the RayJob on the API server and returns its name.

    The RayJob becomes the owner of its other objects, so that deleting it deletes all of them.

    Args:
        job: the job.
        text: the result of `ray_rl.launching.kuberay.manifest.render` for this job.

    Raises:
        UserError: a RayJob with this name exists, or the API server refuses an object.
        ClusterError: no API server answers.
    """
    name, namespace = resource_name(job.name), job.launch.kuberay.namespace
    if _get(name, namespace, missing_ok=True):
        raise UserError(
            f"run.name={job.name}: there is a RayJob {name} in namespace {namespace}. To run it again from its newest "
            f"checkpoint delete it first: kubectl -n {namespace} delete rayjob {name}; for another run set run.name"
        )
    _kubectl("apply", "-f", "-", namespace=namespace, text=text)
    _own(_get(name, namespace), [document for document in yaml.safe_load_all(text) if document["kind"] != "RayJob"])
    return name


def status(name: str, *, namespace: str) -> str:
    """Returns state, reason and attempts of a RayJob, in a few lines.

    Raises:
        UserError: there is no RayJob with this name.
        ClusterError: no API server answers.
    """
    found = _get(name, namespace)
    state, spec = found.get("status", {}), found["spec"]
    words = [
        state.get("jobDeploymentStatus") or "waiting for the operator",
        state.get("jobStatus"),
        state.get("reason"),
    ]
    failed, retries = state.get("failed", 0), spec.get("backoffLimit", 0)
    lines = [f"{name}: {', '.join(word for word in words if word)}; {failed} attempts failed, {retries} retries"]
    if spec.get("suspend") and QUEUE_LABELS["kueue"] in found["metadata"].get("labels", {}):
        lines.append("  suspended: waiting for Kueue to admit it, or stopped")
    elif spec.get("suspend"):
        lines.append(f"  suspended; to continue: {_resume_command(found)}")
    if state.get("rayClusterName"):
        lines.append(f"  cluster {state['rayClusterName']}")
    lines += [f"  {line}" for line in str(state.get("message") or "").splitlines()[-MESSAGE_LINES:]]
    return "\n".join(lines)


def logs(name: str, *, follow: bool, namespace: str) -> Iterator[str]:
    """Yields the lines that the driver of the current attempt printed; with `follow`, until it ends.

    Raises:
        UserError: there is no such RayJob, or it has no pod now; logs of earlier attempts are in the run folder.
        ClusterError: no API server answers.
    """
    cluster = _get(name, namespace).get("status", {}).get("rayClusterName")
    selector = f"ray.io/cluster={cluster},ray.io/node-type=head"
    pods = _kubectl("get", "pods", "-l", selector, "-o", "name", namespace=namespace).split() if cluster else []
    if not pods:
        raise UserError(
            f"RayJob {name} has no head pod now (ray-rl status); logs of what ran are in logs/ of its run folder, on "
            "the claim"
        )
    words = ["logs", pods[0], "-c", SUBMITTER]
    if not follow:
        yield from _kubectl(*words, namespace=namespace).splitlines()
        return
    with subprocess.Popen(
        _words(*words, "--follow", namespace=namespace), stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        try:
            yield from (line.rstrip("\n") for line in process.stdout)
        finally:
            process.kill()


def stop(name: str, *, namespace: str) -> str:
    """Suspends a RayJob: its driver saves and all pods end. Returns a message with the command that continues it.

    Kueue owns `spec.suspend`; under Kueue its Workload is deactivated instead.

    Raises:
        UserError: there is no RayJob with this name, or it has ended.
        ClusterError: no API server answers.
    """
    found = _get(name, namespace)
    state = found.get("status", {}).get("jobDeploymentStatus")
    if state in ENDED:
        raise UserError(
            f"RayJob {name} has ended already: {state}; delete it: kubectl -n {namespace} delete rayjob {name}"
        )
    kind, target, change = _suspension(found)
    _kubectl("patch", kind, target, "--type=merge", "-p", json.dumps({"spec": change}), namespace=namespace)
    head = found["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return (
        f"{name} stops: the driver saves, within {head.get('terminationGracePeriodSeconds', 30)} s, and its pods end.\n"
        f"To continue: {_resume_command(found)}\nTo remove it: kubectl -n {namespace} delete rayjob {name}"
    )


def _suspension(found: Manifest) -> tuple[str, str, dict[str, bool]]:
    """Returns kind, name and change of the object to patch so that a RayJob stops."""
    metadata = found["metadata"]
    if QUEUE_LABELS["kueue"] not in metadata.get("labels", {}):
        return "rayjobs.ray.io", metadata["name"], {"suspend": True}
    selector = f"kueue.x-k8s.io/job-uid={metadata['uid']}"
    words = ("get", "workloads.kueue.x-k8s.io", "-l", selector, "-o", "jsonpath={.items[*].metadata.name}")
    workloads = _kubectl(*words, namespace=metadata["namespace"]).split()
    if not workloads:
        raise UserError(f"RayJob {metadata['name']} has no Workload of Kueue yet; try again in a moment, or delete it")
    return "workloads.kueue.x-k8s.io", workloads[0], {"active": False}


def _resume_command(found: Manifest) -> str:
    kind, target, change = _suspension(found)
    undone = json.dumps({"spec": {key: not value for key, value in change.items()}})
    return f"kubectl -n {found['metadata']['namespace']} patch {kind} {target} --type=merge -p '{undone}'"


def _own(job: Manifest, documents: list[Manifest]) -> None:
    """Makes the RayJob the owner of the objects that were applied with it."""
    metadata = job["metadata"]
    owner = {"apiVersion": API_VERSION, "kind": "RayJob", "name": metadata["name"], "uid": metadata["uid"]}
    change = json.dumps({"metadata": {"ownerReferences": [owner]}})
    for document in documents:
        target = f"{document['kind'].lower()}/{document['metadata']['name']}"
        _kubectl("patch", target, "--type=merge", "-p", change, namespace=metadata["namespace"])


def _get(name: str, namespace: str, *, missing_ok: bool = False) -> Manifest:
    """Returns the RayJob; {} if it does not exist and `missing_ok` is set."""
    text = _kubectl("get", "rayjobs.ray.io", name, "-o", "json", "--ignore-not-found", namespace=namespace)
    if text.strip():
        found: Manifest = json.loads(text)
        return found
    if missing_ok:
        return {}
    raise UserError(f"there is no RayJob {name} in namespace {namespace}; see kubectl -n {namespace} get rayjobs")


def _words(*words: str, namespace: str) -> list[str]:
    return ["kubectl", "--namespace", namespace, *words]


def _kubectl(*words: str, namespace: str, text: str | None = None) -> str:
    """Runs kubectl and returns its output.

    Raises:
        UserError: kubectl is not installed, or the API server refuses.
        ClusterError: the API server cannot be reached, or takes too long.
    """
    if shutil.which("kubectl") is None:
        raise UserError("kubectl is not on the PATH; install it, and point it at the cluster")
    command = _words(f"--request-timeout={LIMIT_S // 2}s", *words, namespace=namespace)
    try:
        done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"kubectl {words[0]} did not end within {LIMIT_S} s; look at kubectl cluster-info") from None
    if done.returncode == 0:
        return done.stdout
    message = f"kubectl {words[0]} in namespace {namespace}: {done.stderr.strip()}"
    if "(Forbidden)" in message:
        message += (
            "\nIf you may not create roles: ask for an account (deploy/kuberay/README.md), and set "
            "launch.kuberay.service_account"
        )
    if "Error from server" in message or "error:" in message or "is invalid" in message:
        raise UserError(message)
    raise ClusterError(message)
