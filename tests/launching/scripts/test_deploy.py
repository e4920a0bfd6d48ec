"""What `deploy/kuberay/` builds, as `kubectl kustomize` builds it."""

import subprocess

import pytest
import yaml

from tests.unit.launching.controller_rules import problems_of
from tests.unit.launching.kinds import NO_CRDS, ROOT, schema_errors, without_kubectl

KUBERAY = ROOT / "deploy" / "kuberay"
FOLDERS = sorted(file.parent for file in KUBERAY.rglob("kustomization.yaml"))
OVERLAYS = {"kueue", "volcano", "rdma", "gcs-ft-redis", "gcs-ft-rocksdb", "development"}
pytestmark = pytest.mark.skipif(without_kubectl() is not None, reason=str(without_kubectl()))


def built(folder):
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def overlay(name):
    return built(KUBERAY / "overlays" / name)


def test_every_overlay_is_there():
    assert {folder.name for folder in FOLDERS} == {"base", *OVERLAYS}


@pytest.mark.skipif(NO_CRDS is not None, reason=str(NO_CRDS))
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_built_fits_the_schemas_and_the_rules_of_the_controller(folder):
    documents = built(folder)
    ours = [document for document in documents if document["apiVersion"].startswith("ray.io/")]
    assert len(ours) == 1
    assert [schema_errors(document) for document in ours] == [[]]
    assert [problems_of(document) for document in documents] == [[]] * len(documents)


@pytest.mark.parametrize(
    ("name", "label"), [("kueue", "kueue.x-k8s.io/queue-name"), ("volcano", "volcano.sh/queue-name")]
)
def test_a_queue_is_added_to_the_job(name, label):
    (job,) = of_kind(overlay(name), "RayJob")
    assert job["metadata"]["labels"][label] == "rl-queue"
    assert "ray-rl/run" in job["metadata"]["labels"]


def test_rdma_is_asked_for_on_gpu_pods():
    (job,) = of_kind(overlay("rdma"), "RayJob")
    container = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["rdma/rdma_shared_device_a"] == "1"
        assert container["resources"][kind]["nvidia.com/gpu"] == "8"
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]


@pytest.mark.parametrize(("name", "backend"), [("gcs-ft-redis", "redis"), ("gcs-ft-rocksdb", "rocksdb")])
def test_fault_tolerance_is_added_to_the_cluster_for_development(name, backend):
    (cluster,) = of_kind(overlay(name), "RayCluster")
    assert cluster["spec"]["gcsFaultToleranceOptions"]["backend"] == backend


def test_the_cluster_for_development_comes_without_a_run():
    documents = overlay("development")
    assert sorted(document["kind"] for document in documents) == [
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "RayCluster",
    ]


def test_no_secret_is_written_down():
    for folder in FOLDERS:
        assert of_kind(built(folder), "Secret") == []


def test_many_pods_write_to_the_claim():
    (claim,) = of_kind(built(KUBERAY / "base"), "PersistentVolumeClaim")
    (job,) = of_kind(built(KUBERAY / "base"), "RayJob")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert f"claimName: {claim['metadata']['name']}" in yaml.safe_dump(job)


RAY = {"ray.io/cluster": "math-abcde", "ray.io/node-type": "head"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}


class TestThePolicy:
    """Who gets through to a pod of Ray, as the Kubernetes documentation defines a NetworkPolicy."""

    def is_let_in(self, port, *, namespace, labels=None, to=RAY):
        (policy,) = of_kind(built(KUBERAY / "base"), "NetworkPolicy")
        spec = policy["spec"]
        if not matches(spec["podSelector"], to):
            return True
        assert spec["policyTypes"] == ["Ingress"]
        here = policy["metadata"]["namespace"]
        for rule in spec["ingress"]:
            ports = [entry["port"] for entry in rule.get("ports", [])]
            if (not ports or port in ports) and any(
                self._is_from(peer, here, namespace, labels or {}) for peer in rule["from"]
            ):
                return True
        return False

    @staticmethod
    def _is_from(peer, here, namespace, labels):
        of_namespace = {"kubernetes.io/metadata.name": namespace}
        inside = matches(peer["namespaceSelector"], of_namespace) if "namespaceSelector" in peer else namespace == here
        return inside and matches(peer.get("podSelector", {}), labels)

    @pytest.mark.parametrize("port", [6379, 8265, 10001, 52365])
    def test_ports_that_run_code_are_closed_to_other_namespaces(self, port):
        assert not self.is_let_in(port, namespace="other")
        assert not self.is_let_in(port, namespace="other", labels=RAY)
        assert not self.is_let_in(port, namespace="other", labels=OPERATOR)
        assert not self.is_let_in(port, namespace="kuberay-operator")

    @pytest.mark.parametrize("port", [6379, 8265, 10001, 29500])
    def test_pods_of_the_namespace_reach_each_other(self, port):
        assert self.is_let_in(port, namespace="default", labels=RAY)

    def test_the_operator_reaches_the_dashboard_and_nothing_else(self):
        let_in = [
            port for port in (6379, 8265, 10001) if self.is_let_in(port, namespace="kuberay-operator", labels=OPERATOR)
        ]
        assert let_in == [8265]

    def test_metrics_are_open(self):
        assert self.is_let_in(8080, namespace="monitoring")

    def test_other_pods_are_left_alone(self):
        assert self.is_let_in(80, namespace="other", to={"app": "web"})


def matches(selector, labels):
    """A label selector; an empty one matches everything."""
    pairs = selector.get("matchLabels", {}).items() <= labels.items()
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "Exists"
        pairs = pairs and expression["key"] in labels
    return pairs
