"""Checks a manifest for everything that KubeRay's controller refuses and no schema covers; one message per violation.

Source: KubeRay 1.7, ray-operator/controllers/ray/utils/validation.go, with the default feature gates. The messages are
ours. Types and known fields, which are in the schema of the CRD, are checked by `kinds.py`. No configuration of a run
can break these rules, but a change of the renderer or of the overlays in deploy/kuberay can.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import yaml

Manifest = Mapping[str, Any]
Rule = Callable[[Manifest], Iterator[str]]

MAX_CLUSTER_NAME = 53
"""Longest name of a cluster, so that the names of its services fit into the 63 characters of a DNS label."""
MAX_JOB_NAME = MAX_CLUSTER_NAME - 6
"""Longest name of a job: its cluster's name is 6 characters longer."""
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
MAX_LABEL = 63
TOKEN_SINCE = (2, 52)
"""First version of Ray with tokens."""
KUBERNETES_TOKEN_SINCE = (2, 55)
"""First version of Ray that accepts tokens of Kubernetes."""
OLD_FAULT_TOLERANCE = "ray.io/ft-enabled"
OLD_STORAGE_NAMESPACE = "ray.io/external-storage-namespace"
AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"
RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
NEEDS_GATE = {"networkPolicy", "tlsOptions", "historyServerOptions"}
"""Fields of a cluster that have no effect unless the operator has a feature gate that is off by default."""
MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
MAX_KUEUE_GROUPS = 17
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"


def problems_of(manifest: Manifest) -> list[str]:
    """Returns messages; none if the controller accepts the manifest, or for kinds other than RayJob and RayCluster."""
    name = f"{manifest.get('kind')} {_at(manifest, 'metadata').get('name')}"
    return [f"{name}: {problem}" for rule in _rules(manifest) for problem in rule(manifest)]


def _rules(manifest: Manifest) -> tuple[Rule, ...]:
    if not str(manifest.get("apiVersion")).startswith("ray.io/"):
        return ()
    match manifest.get("kind"):
        case "RayJob":
            return (*JOB_RULES, *CLUSTER_RULES)
        case "RayCluster":
            return (cluster_name, *CLUSTER_RULES)
        case _:
            return ()


def _at(value: Manifest, *keys: str) -> Any:
    """Returns the value below the keys; {} if there is none."""
    for key in keys:
        value = value.get(key) or {}
    return value


def _cluster(manifest: Manifest) -> Manifest:
    """Returns the specification of the cluster in a RayCluster or a RayJob."""
    below = _at(manifest, "spec", "rayClusterSpec") if manifest.get("kind") == "RayJob" else _at(manifest, "spec")
    return below if isinstance(below, Mapping) else {}


def _groups(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yields the name and specification of the head and of every group of workers."""
    cluster = _cluster(manifest)
    if cluster:
        yield "head", _at(cluster, "headGroupSpec")
        yield from ((f"group {group.get('groupName')}", group) for group in cluster.get("workerGroupSpecs") or [])


def _pod(group: Manifest) -> Manifest:
    found: Manifest = _at(group, "template", "spec")
    return found


def _head_environment(manifest: Manifest) -> dict[str, Any]:
    containers = _pod(_at(_cluster(manifest), "headGroupSpec")).get("containers") or [{}]
    return {entry["name"]: entry.get("value") for entry in containers[0].get("env") or []}


def _name(name: str, limit: int) -> Iterator[str]:
    if len(name) > limit:
        yield f"metadata.name={name}: {len(name)} characters, at most {limit}"
    if not DNS_1035.fullmatch(name):
        yield f"metadata.name={name}: must be lower case letters, digits and '-', first a letter, last no '-'"


def job_name(job: Manifest) -> Iterator[str]:
    """Checks that the name is a DNS label, with room for suffixes."""
    yield from _name(str(_at(job, "metadata").get("name", "")), MAX_JOB_NAME)


def cluster_name(cluster: Manifest) -> Iterator[str]:
    """Checks that the name is a DNS label, with room for suffixes."""
    yield from _name(str(_at(cluster, "metadata").get("name", "")), MAX_CLUSTER_NAME)


def job_shutdown(job: Manifest) -> Iterator[str]:
    """Checks fields that need `shutdownAfterJobFinishes`."""
    spec = _at(job, "spec")
    ttl, queue = spec.get("ttlSecondsAfterFinished") or 0, _at(job, "metadata", "labels").get(KUEUE_QUEUE)
    if ttl < 0:
        yield f"spec.ttlSecondsAfterFinished={ttl}: must be 0 or more"
    if spec.get("shutdownAfterJobFinishes"):
        return
    if spec.get("suspend"):
        yield "spec.suspend=true: needs spec.shutdownAfterJobFinishes=true"
    if ttl > 0:
        yield f"spec.ttlSecondsAfterFinished={ttl}: needs spec.shutdownAfterJobFinishes=true"
    if queue:
        yield f"label {KUEUE_QUEUE}={queue}: Kueue needs spec.shutdownAfterJobFinishes=true"


def job_deletion(job: Manifest) -> Iterator[str]:
    """Checks that there is one way of cleaning up, with rules that can take effect."""
    spec = _at(job, "spec")
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    rules, old = strategy.get("deletionRules") or [], {"onSuccess", "onFailure"} & strategy.keys()
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "spec.deletionStrategy.deletionRules: exclude spec.shutdownAfterJobFinishes=true"
    if rules and old:
        yield f"spec.deletionStrategy: deletionRules exclude {', '.join(sorted(old))}"
    if not rules and len(old) < 2:
        yield "spec.deletionStrategy: needs deletionRules, or both onSuccess and onFailure"
    seconds: dict[tuple[str, str], int] = {}
    for index, rule in enumerate(rules):
        yield from _deletion_rule(job, index, rule, seconds)
    for state in {state for state, _ in seconds}:
        times = [(policy, seconds[state, policy]) for policy in DELETION_ORDER if (state, policy) in seconds]
        for (first, early), (second, late) in pairwise(times):
            if late < early:
                yield f"spec.deletionStrategy: for {state}, {second} after {late} s is before {first} after {early} s"


def _deletion_rule(job: Manifest, index: int, rule: Manifest, seconds: dict[tuple[str, str], int]) -> Iterator[str]:
    """Checks one rule and adds its time."""
    where, policy, condition = (
        f"spec.deletionStrategy.deletionRules.{index}",
        str(rule.get("policy")),
        _at(rule, "condition"),
    )
    ttl = condition.get("ttlSeconds") or 0
    state = str(condition.get("jobStatus") or condition.get("jobDeploymentStatus"))
    if ttl < 0:
        yield f"{where}.condition.ttlSeconds={ttl}: must be 0 or more"
    if len({"jobStatus", "jobDeploymentStatus"} & condition.keys()) != 1:
        yield f"{where}.condition: needs one of jobStatus and jobDeploymentStatus"
    if _at(job, "spec", "clusterSelector") and policy in ("DeleteCluster", "DeleteWorkers"):
        yield f"{where}.policy={policy}: the cluster of a clusterSelector is not the job's to delete"
    if _cluster(job).get("enableInTreeAutoscaling") and policy == "DeleteWorkers":
        yield f"{where}.policy=DeleteWorkers: not with spec.rayClusterSpec.enableInTreeAutoscaling"
    if (state, policy) in seconds:
        yield f"{where}: {policy} for {state} is there twice"
    seconds[state, policy] = ttl


def job_cluster(job: Manifest) -> Iterator[str]:
    """Checks that the job makes a cluster or selects an existing one."""
    spec = _at(job, "spec")
    selector = spec.get("clusterSelector") or {}
    if bool(selector) == bool(spec.get("rayClusterSpec")):
        yield "spec: needs one of rayClusterSpec and clusterSelector"
    if not selector:
        return
    if not selector.get("ray.io/cluster"):
        yield "spec.clusterSelector: needs ray.io/cluster, the name of a RayCluster"
    for key, value in (("submissionMode", "SidecarMode"), ("suspend", True)):
        if spec.get(key) == value:
            yield f"spec.{key}={value}: not with clusterSelector"
    if spec.get("backoffLimit"):
        yield f"spec.backoffLimit={spec['backoffLimit']}: a retry makes a new cluster, which clusterSelector excludes"


def job_limits(job: Manifest) -> Iterator[str]:
    """Checks the limits of the controller."""
    spec = _at(job, "spec")
    retries = spec.get("backoffLimit") or 0
    if retries < 0:
        yield f"spec.backoffLimit={retries}: must be 0 or more"
    if retries > 0 and spec.get("submissionMode") == "InteractiveMode":
        yield f"spec.backoffLimit={retries}: not with submissionMode=InteractiveMode"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key) is not None and spec[key] <= 0:
            yield f"spec.{key}={spec[key]}: must be more than 0"


def job_submitter(job: Manifest) -> Iterator[str]:
    """Checks that a submitter inside the head is not configured and runs once."""
    spec = _at(job, "spec")
    if spec.get("submissionMode") != "SidecarMode":
        return
    for key in ("submitterPodTemplate", "submitterConfig"):
        if key in spec:
            yield f"spec.{key}: not with submissionMode=SidecarMode"
    policy = _pod(_at(_cluster(job), "headGroupSpec")).get("restartPolicy", "Never")
    if policy != "Never":
        yield f"restartPolicy={policy} of the head: must be Never with submissionMode=SidecarMode"


def job_runtime_env(job: Manifest) -> Iterator[str]:
    """Checks that the runtime environment is a mapping in YAML."""
    text = _at(job, "spec").get("runtimeEnvYAML")
    if text is None:
        return
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield f"spec.runtimeEnvYAML: is not YAML: {error}"
        return
    if not isinstance(parsed, Mapping):
        yield f"spec.runtimeEnvYAML={text!r}: must be a mapping"


def job_kueue(job: Manifest) -> Iterator[str]:
    """Checks that Kueue can admit the job as a whole."""
    groups = len(_cluster(job).get("workerGroupSpecs") or [])
    if KUEUE_QUEUE not in _at(job, "metadata", "labels"):
        return
    if groups > MAX_KUEUE_GROUPS:
        yield f"{groups} groups of workers: Kueue takes at most {MAX_KUEUE_GROUPS}"
    if _at(job, "spec", "clusterSelector"):
        yield "spec.clusterSelector: Kueue admits jobs that bring their cluster"


def groups_have_containers(manifest: Manifest) -> Iterator[str]:
    """Checks that each pod has a container, the first of which is Ray's."""
    for name, group in _groups(manifest):
        if not _pod(group).get("containers"):
            yield f"{name}: needs at least one container"


def groups_name_resources_once(manifest: Manifest) -> Iterator[str]:
    """Checks that the resources of a node are given to Ray in one place."""
    for name, group in _groups(manifest):
        both = [key for key in RESOURCE_PARAMS if _at(group, "rayStartParams").get(key)]
        if both and group.get("resources"):
            yield f"{name}: rayStartParams {', '.join(both)} exclude resources; use one of them"


def groups_have_labels(manifest: Manifest) -> Iterator[str]:
    """Checks that labels are in their own field and valid in Kubernetes."""
    for name, group in _groups(manifest):
        if "labels" in _at(group, "rayStartParams"):
            yield f"{name}: rayStartParams.labels is not allowed; use the group's labels"
        for key, value in _at(group, "labels").items():
            prefix, _, last = key.rpartition("/")
            if not last or len(last) > MAX_LABEL or not LABEL_VALUE.fullmatch(last) or len(prefix) > 253:
                yield f"{name}: label {key!r} is not a name that Kubernetes takes"
            if len(value) > MAX_LABEL or not LABEL_VALUE.fullmatch(value):
                yield f"{name}: label {key}={value!r} is not a value that Kubernetes takes"


def groups_have_a_size(manifest: Manifest) -> Iterator[str]:
    """Checks that minReplicas <= replicas <= maxReplicas."""
    scales = bool(_cluster(manifest).get("enableInTreeAutoscaling"))
    for name, group in list(_groups(manifest))[1:]:
        least, most, asked = group.get("minReplicas"), group.get("maxReplicas"), group.get("replicas")
        if least is None or most is None:
            yield f"{name}: needs both minReplicas and maxReplicas"
            continue
        if not 0 <= least <= most:
            yield f"{name}: minReplicas={least} and maxReplicas={most}; 0 <= minReplicas <= maxReplicas"
        elif asked is not None and not least <= asked <= most:
            yield f"{name}: replicas={asked} is not between minReplicas={least} and maxReplicas={most}"
        if group.get("suspend") and scales:
            yield f"{name}: suspend=true: not with enableInTreeAutoscaling"


def groups_have_names(manifest: Manifest) -> Iterator[str]:
    """Checks names of groups, which become labels and parts of the names of pods."""
    seen: set[str] = set()
    for group in _cluster(manifest).get("workerGroupSpecs") or []:
        name = str(group.get("groupName"))
        if name in seen:
            yield f"group {name}: is there twice"
        if not DNS_1035.fullmatch(name):
            yield f"group {name}: must be lower case letters, digits and '-', first a letter, last no '-'"
        seen.add(name)


def cluster_autoscaler(manifest: Manifest) -> Iterator[str]:
    """Checks that the autoscaler is chosen in one place; its second version replaces pods itself."""
    cluster, environment = _cluster(manifest), _head_environment(manifest)
    version = _at(cluster, "autoscalerOptions").get("version")
    if not cluster.get("enableInTreeAutoscaling"):
        if environment.get(AUTOSCALER_V2) in ("1", "true"):
            yield f"{AUTOSCALER_V2}={environment[AUTOSCALER_V2]}: needs enableInTreeAutoscaling=true"
        return
    if version is not None and AUTOSCALER_V2 in environment:
        yield f"{AUTOSCALER_V2}: excludes autoscalerOptions.version; use the latter"
    if version == "v2" or environment.get(AUTOSCALER_V2) in ("1", "true"):
        for name, group in _groups(manifest):
            policy = _pod(group).get("restartPolicy", "Never")
            if policy != "Never":
                yield f"{name}: restartPolicy={policy} must be Never with the autoscaler v2"


def cluster_token(manifest: Manifest) -> Iterator[str]:
    """Checks that the version of Ray supports tokens."""
    cluster = _cluster(manifest)
    options, version = _at(cluster, "authOptions"), str(cluster.get("rayVersion") or "")
    kubernetes = bool(options.get("enableK8sTokenAuth"))
    if kubernetes and options.get("mode") != "token":
        yield "authOptions.enableK8sTokenAuth=true: needs authOptions.mode=token"
    elif kubernetes and manifest.get("kind") == "RayJob":
        yield "authOptions.enableK8sTokenAuth=true: not for a RayJob"
    if options.get("mode") != "token":
        return
    found = re.match(r"v?(\d+)\.(\d+)(\.\d+)?", version)
    since = KUBERNETES_TOKEN_SINCE if kubernetes else TOKEN_SINCE
    if found is None:
        yield f"rayVersion={version}: authOptions.mode=token needs a version, {'.'.join(map(str, since))} or newer"
    elif (int(found[1]), int(found[2])) < since:
        yield f"rayVersion={version}: authOptions.mode=token needs {'.'.join(map(str, since))} or newer"


def cluster_fault_tolerance(manifest: Manifest) -> Iterator[str]:
    """Checks that the state of the head is stored in one way."""
    cluster, environment = _cluster(manifest), _head_environment(manifest)
    if not cluster:
        return
    annotations = _at(manifest, "metadata", "annotations")
    options, params = cluster.get("gcsFaultToleranceOptions"), _at(cluster, "headGroupSpec", "rayStartParams")
    if params.get("redis-username") or "REDIS_USERNAME" in environment:
        yield "REDIS_USERNAME: belongs into gcsFaultToleranceOptions.redisUsername"
    if options is None:
        if "RAY_REDIS_ADDRESS" in environment and annotations.get(OLD_FAULT_TOLERANCE) != "true":
            yield "RAY_REDIS_ADDRESS: belongs into gcsFaultToleranceOptions.redisAddress"
        return
    for annotation in (OLD_FAULT_TOLERANCE, OLD_STORAGE_NAMESPACE):
        if annotations.get(annotation):
            yield f"annotation {annotation}: not with gcsFaultToleranceOptions"
    if params.get("redis-password"):
        yield "rayStartParams.redis-password: belongs into gcsFaultToleranceOptions.redisPassword"
    for variable in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS"):
        if variable in environment:
            yield f"{variable}: not with gcsFaultToleranceOptions, which sets it"
    redis = sorted(key for key in options if key.startswith("redis"))
    if options.get("backend", "redis") == "rocksdb":
        yield from (f"gcsFaultToleranceOptions.{key}: not with backend=rocksdb" for key in redis)
    else:
        if "redisAddress" not in options:
            yield "gcsFaultToleranceOptions: backend=redis needs redisAddress"
        if "storage" in options:
            yield "gcsFaultToleranceOptions.storage: only with backend=rocksdb"


def cluster_manager(manifest: Manifest) -> Iterator[str]:
    """Checks the name of the manager that reconciles the object."""
    for where, spec in (("spec", _at(manifest, "spec")), ("spec.rayClusterSpec", _cluster(manifest))):
        if spec.get("managedBy") not in (None, *MANAGERS):
            yield f"{where}.managedBy={spec['managedBy']}: must be one of {', '.join(MANAGERS)}"


def cluster_gates(manifest: Manifest) -> Iterator[str]:
    """Checks for fields that are silently ignored."""
    for key in sorted(NEEDS_GATE & _cluster(manifest).keys()):
        yield f"{key}: does nothing unless the operator has a feature gate that is off by default"


JOB_RULES: tuple[Rule, ...] = (
    job_name,
    job_shutdown,
    job_deletion,
    job_cluster,
    job_limits,
    job_submitter,
    job_runtime_env,
    job_kueue,
)
CLUSTER_RULES: tuple[Rule, ...] = (
    groups_have_containers,
    groups_name_resources_once,
    groups_have_labels,
    groups_have_a_size,
    groups_have_names,
    cluster_autoscaler,
    cluster_token,
    cluster_fault_tolerance,
    cluster_manager,
    cluster_gates,
)
