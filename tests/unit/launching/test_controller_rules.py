import copy
import re

import pytest
import yaml

from ray_rl.launching.kuberay.manifest import render
from tests.unit.launching.controller_rules import CLUSTER_RULES, JOB_RULES, cluster_name, problems_of
from tests.unit.launching.jobs import documents, job
from tests.unit.launching.kinds import CRDS, NO_CRDS, crd

GOOD = documents(render(job()))["RayJob"]
CLUSTER = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "dev"}}
SPEC = "spec"
OF_CLUSTER = "spec.rayClusterSpec"
HEAD = f"{OF_CLUSTER}.headGroupSpec"
GROUP = f"{OF_CLUSTER}.workerGroupSpecs.0"
DELETION = "spec.deletionStrategy"
FAULTS = f"{OF_CLUSTER}.gcsFaultToleranceOptions"
QUEUE = {"kueue.x-k8s.io/queue-name": "rl"}


def changed(changes):
    """The good RayJob with values set, or with None removed, at dotted paths."""
    manifest = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *above, last = path.split(".")
        node = manifest
        for key in above:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return manifest


def rule(policy, ttl=None, **condition):
    if ttl is not None:
        condition["ttlSeconds"] = ttl
    return {"policy": policy, "condition": condition or {"jobStatus": "FAILED"}}


def deletion(*rules, **others):
    return {f"{SPEC}.shutdownAfterJobFinishes": False, DELETION: {"deletionRules": list(rules)}, **others}


def variable(name, value="1"):
    return {f"{HEAD}.template.spec.containers.0.env": [{"name": name, "value": value}]}


ON_A_CLUSTER = {OF_CLUSTER: None, f"{SPEC}.clusterSelector": {"ray.io/cluster": "dev"}}
ALONE = {**ON_A_CLUSTER, f"{SPEC}.submissionMode": "HTTPMode", f"{SPEC}.backoffLimit": 0}

OFFENCES = {
    "metadata.name=.*48 characters, at most 47": {"metadata.name": "a" * 48},
    "metadata.name=7b: must be": {"metadata.name": "7b"},
    "metadata.name=a.b: must be": {"metadata.name": "a.b"},
    "suspend=true: needs": {f"{SPEC}.suspend": True, f"{SPEC}.shutdownAfterJobFinishes": False},
    "ttlSecondsAfterFinished=9: needs": {
        f"{SPEC}.ttlSecondsAfterFinished": 9,
        f"{SPEC}.shutdownAfterJobFinishes": False,
    },
    "ttlSecondsAfterFinished=-1": {f"{SPEC}.ttlSecondsAfterFinished": -1},
    "Kueue needs": {"metadata.labels": QUEUE, f"{SPEC}.shutdownAfterJobFinishes": False},
    "deletionRules: exclude": deletion(rule("DeleteCluster")) | {f"{SPEC}.shutdownAfterJobFinishes": True},
    "deletionRules exclude onFailure": deletion()
    | {DELETION: {"deletionRules": [rule("DeleteSelf")], "onFailure": {"policy": "DeleteNone"}}},
    "needs deletionRules, or both": deletion(),
    "ttlSeconds=-5": deletion(rule("DeleteSelf", -5, jobStatus="FAILED")),
    "there twice": deletion(rule("DeleteSelf"), rule("DeleteSelf")),
    "DeleteCluster after 5 s is before DeleteWorkers after 9 s": deletion(
        rule("DeleteWorkers", 9, jobStatus="FAILED"), rule("DeleteCluster", 5, jobStatus="FAILED")
    ),
    "needs one of jobStatus and": deletion(rule("DeleteSelf", jobStatus="FAILED", jobDeploymentStatus="Failed")),
    "is not the job's to delete": deletion(rule("DeleteWorkers"), **ALONE),
    "DeleteWorkers: not with .*Autoscaling": deletion(
        rule("DeleteWorkers"), **{f"{OF_CLUSTER}.enableInTreeAutoscaling": True}
    ),
    "needs one of rayClusterSpec and": {OF_CLUSTER: None},
    "needs ray.io/cluster": {**ALONE, f"{SPEC}.clusterSelector": {"name": "dev"}},
    "SidecarMode: not with clusterSelector": {**ALONE, f"{SPEC}.submissionMode": "SidecarMode"},
    "suspend=True: not with clusterSelector": {**ALONE, f"{SPEC}.suspend": True},
    "backoffLimit=3: a retry makes": {**ALONE, f"{SPEC}.backoffLimit": 3},
    "backoffLimit=-1": {f"{SPEC}.backoffLimit": -1},
    "not with submissionMode=InteractiveMode": {f"{SPEC}.submissionMode": "InteractiveMode"},
    "activeDeadlineSeconds=0": {f"{SPEC}.activeDeadlineSeconds": 0},
    "preRunningDeadlineSeconds=0": {f"{SPEC}.preRunningDeadlineSeconds": 0},
    "submitterPodTemplate: not with": {f"{SPEC}.submitterPodTemplate": {"spec": {}}},
    "submitterConfig: not with": {f"{SPEC}.submitterConfig": {"backoffLimit": 1}},
    "restartPolicy=Always of the head": {f"{HEAD}.template.spec.restartPolicy": "Always"},
    "is not YAML": {f"{SPEC}.runtimeEnvYAML": "a: ["},
    "must be a mapping": {f"{SPEC}.runtimeEnvYAML": "pip"},
    "Kueue takes at most 17": {
        "metadata.labels": QUEUE,
        f"{OF_CLUSTER}.workerGroupSpecs": [
            GOOD["spec"]["rayClusterSpec"]["workerGroupSpecs"][0] | {"groupName": f"g{i}"} for i in range(18)
        ],
    },
    "Kueue admits jobs that bring": {**ALONE, "metadata.labels": QUEUE},
    "head: needs at least one container": {f"{HEAD}.template.spec.containers": []},
    "group gpu: rayStartParams num-cpus, num-gpus exclude": {f"{GROUP}.resources": {"CPU": "1"}},
    "rayStartParams.labels is not allowed": {f"{GROUP}.rayStartParams.labels": "a=b"},
    "label '-a' is not a name": {f"{GROUP}.labels": {"-a": "b"}},
    "label a='b c' is not a value": {f"{GROUP}.labels": {"a": "b c"}},
    "needs both minReplicas": {f"{GROUP}.minReplicas": None},
    "minReplicas=3 and maxReplicas=2": {f"{GROUP}.minReplicas": 3},
    "replicas=9 is not between": {f"{GROUP}.replicas": 9},
    "suspend=true: not with enable": {f"{GROUP}.suspend": True, f"{OF_CLUSTER}.enableInTreeAutoscaling": True},
    "group G: must be": {f"{GROUP}.groupName": "G"},
    "group gpu: is there twice": {
        f"{OF_CLUSTER}.workerGroupSpecs": GOOD["spec"]["rayClusterSpec"]["workerGroupSpecs"] * 2
    },
    "needs enableInTreeAutoscaling": variable("RAY_enable_autoscaler_v2"),
    "excludes autoscalerOptions.version": variable("RAY_enable_autoscaler_v2")
    | {f"{OF_CLUSTER}.enableInTreeAutoscaling": True, f"{OF_CLUSTER}.autoscalerOptions": {"version": "v1"}},
    "group gpu: restartPolicy=Always must be Never": {
        f"{OF_CLUSTER}.enableInTreeAutoscaling": True,
        f"{OF_CLUSTER}.autoscalerOptions": {"version": "v2"},
        f"{GROUP}.template.spec.restartPolicy": "Always",
    },
    "rayVersion=: authOptions.mode=token needs a version": {f"{OF_CLUSTER}.rayVersion": None},
    "rayVersion=2.51.0: .* 2.52 or newer": {f"{OF_CLUSTER}.rayVersion": "2.51.0"},
    "enableK8sTokenAuth=true: not for a RayJob": {f"{OF_CLUSTER}.authOptions.enableK8sTokenAuth": True},
    "enableK8sTokenAuth=true: needs authOptions.mode": {
        f"{OF_CLUSTER}.authOptions": {"mode": "disabled", "enableK8sTokenAuth": True}
    },
    "belongs into gcsFaultToleranceOptions.redisUsername": variable("REDIS_USERNAME"),
    "belongs into gcsFaultToleranceOptions.redisAddress": variable("RAY_REDIS_ADDRESS"),
    "annotation ray.io/ft-enabled": {
        "metadata.annotations": {"ray.io/ft-enabled": "true"},
        FAULTS: {"redisAddress": "redis:6379"},
    },
    "annotation ray.io/external-storage": {
        "metadata.annotations": {"ray.io/external-storage-namespace": "a"},
        FAULTS: {"redisAddress": "redis:6379"},
    },
    "rayStartParams.redis-password": {
        f"{HEAD}.rayStartParams.redis-password": "a",
        FAULTS: {"redisAddress": "redis:6379"},
    },
    "REDIS_PASSWORD: not with": variable("REDIS_PASSWORD") | {FAULTS: {"redisAddress": "redis:6379"}},
    "RAY_REDIS_ADDRESS: not with": variable("RAY_REDIS_ADDRESS") | {FAULTS: {"redisAddress": "redis:6379"}},
    "redisAddress: not with backend=rocksdb": {FAULTS: {"backend": "rocksdb", "redisAddress": "redis:6379"}},
    "backend=redis needs redisAddress": {FAULTS: {"backend": "redis"}},
    "storage: only with backend=rocksdb": {FAULTS: {"redisAddress": "redis:6379", "storage": {}}},
    "managedBy=me": {f"{SPEC}.managedBy": "me"},
    "networkPolicy: does nothing": {f"{OF_CLUSTER}.networkPolicy": {"mode": "DenyAll"}},
    "tlsOptions: does nothing": {f"{OF_CLUSTER}.tlsOptions": {"enabled": True}},
}
"""A message, and changes of the good RayJob that bring it about and no other."""


@pytest.mark.parametrize(("message", "changes"), OFFENCES.items(), ids=OFFENCES)
def test_an_offender_is_found_and_nothing_else(message, changes):
    (problem,) = problems_of(changed(changes))
    assert re.search(message, problem), problem
    assert problem.startswith("RayJob ")


INNOCENTS = {
    "retries": {f"{SPEC}.backoffLimit": 9},
    "a name of 47 characters": {"metadata.name": "a" * 47},
    "Kueue": {"metadata.labels": QUEUE, f"{SPEC}.suspend": True},
    "rules": deletion(
        rule("DeleteWorkers", 600, jobStatus="FAILED"),
        rule("DeleteCluster", 86400, jobStatus="FAILED"),
        rule("DeleteCluster", 0, jobStatus="SUCCEEDED"),
    ),
    "a cluster that is there": ALONE,
    "resources of a group": {f"{GROUP}.rayStartParams": {}, f"{GROUP}.resources": {"CPU": "1"}},
    "labels of a group": {f"{GROUP}.labels": {"ray-rl/role": "gpu"}},
    "an autoscaler": {
        f"{OF_CLUSTER}.enableInTreeAutoscaling": True,
        f"{OF_CLUSTER}.autoscalerOptions": {"version": "v2"},
        f"{GROUP}.minReplicas": 0,
    },
    "Redis": {FAULTS: {"redisAddress": "redis:6379", "redisPassword": {"value": "a"}}},
    "rocksdb": {FAULTS: {"backend": "rocksdb", "storage": {"size": "1Gi"}}},
    "no token": {f"{OF_CLUSTER}.authOptions": None, f"{OF_CLUSTER}.rayVersion": "2.9.0"},
    "a runtime environment": {f"{SPEC}.runtimeEnvYAML": "env_vars: {A: b}"},
}


@pytest.mark.parametrize("changes", INNOCENTS.values(), ids=INNOCENTS)
def test_the_innocent_pass(changes):
    assert problems_of(changed(changes)) == []


def test_every_rule_has_an_offender():
    found = {
        rule for rule in (*JOB_RULES, *CLUSTER_RULES) for changes in OFFENCES.values() if [*rule(changed(changes))]
    }
    assert found == {*JOB_RULES, *CLUSTER_RULES}


def test_a_cluster_of_its_own_has_the_rules_of_clusters():
    cluster = CLUSTER | {"spec": GOOD["spec"]["rayClusterSpec"]}
    assert problems_of(cluster) == []
    assert problems_of(cluster | {"metadata": {"name": "a" * 53}}) == []
    assert len(list(cluster_name(cluster | {"metadata": {"name": "a" * 54}}))) == 1
    old = cluster | {"spec": cluster["spec"] | {"rayVersion": "2.9.0"}}
    assert problems_of(old) == ["RayCluster dev: rayVersion=2.9.0: authOptions.mode=token needs 2.52 or newer"]


def test_other_kinds_are_none_of_kuberays():
    assert problems_of({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "A_"}}) == []


@pytest.mark.skipif(NO_CRDS is not None, reason=str(NO_CRDS))
def test_the_sample_of_a_whole_job_passes():
    sample = yaml.safe_load((CRDS / "rayjob-sample.yaml").read_text())
    assert problems_of(sample) == []


def expressions(schema):
    if isinstance(schema, list):
        return set().union(*map(expressions, schema))
    if not isinstance(schema, dict):
        return set()
    own = {validation["rule"] for validation in schema.get("x-kubernetes-validations", [])}
    return own.union(*map(expressions, schema.values()))


@pytest.mark.skipif(NO_CRDS is not None, reason=str(NO_CRDS))
def test_the_expressions_in_the_schemas_are_those_that_our_rules_stand_for():
    assert expressions(crd("RayJob")["properties"]["spec"]) | expressions(crd("RayCluster")["properties"]["spec"]) == {
        "self == oldSelf",
        "self in ['ray.io/kuberay-operator', 'kueue.x-k8s.io/multikueue']",
        "!(has(self.jobStatus) && has(self.jobDeploymentStatus))",
        "has(self.jobStatus) || has(self.jobDeploymentStatus)",
        "!((has(self.onSuccess) || has(self.onFailure)) && has(self.deletionRules))",
        "((has(self.onSuccess) && has(self.onFailure)) || has(self.deletionRules))",
    }
