"""Real kubectl against a server that keeps what it is given."""

import time

import pytest

from ray_rl.errors import ClusterError, UserError
from ray_rl.launching.kuberay.commands import logs, status, stop, submit
from ray_rl.launching.kuberay.manifest import render
from tests.launching.scripts.kubernetes_api import KubernetesApi
from tests.unit.launching.jobs import job
from tests.unit.launching.kinds import without_kubectl

pytestmark = pytest.mark.skipif(without_kubectl() is not None, reason=str(without_kubectl()))
RAY_JOB = "/apis/ray.io/v1/namespaces/default/rayjobs/math"
QUEUE = {"queue": "rl", "kuberay": {"scheduler": "kueue"}}


@pytest.fixture
def api(tmp_path, monkeypatch):
    api = KubernetesApi()
    monkeypatch.setenv("HOME", str(tmp_path))  # kubectl keeps what it discovers
    with api.serving(tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield api


def submitted(**launch):
    run = job(**launch)
    return submit(run, render(run))


def test_all_documents_arrive_and_belong_to_the_job(api):
    assert submitted() == "math"
    kinds = sorted(item["kind"] for item in api.objects.values())
    assert kinds == ["ConfigMap", "RayJob", "Role", "RoleBinding", "ServiceAccount"]
    for kind in ("ConfigMap", "Role", "RoleBinding", "ServiceAccount"):
        (owner,) = api.of_kind(kind)["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "math", "uid": "uid-of-math"}
    assert "ownerReferences" not in api.of_kind("RayJob")["metadata"]


def test_a_job_that_is_there_is_not_touched(api):
    submitted()
    with pytest.raises(UserError, match="kubectl -n default delete rayjob math"):
        submitted(retries=9)
    assert api.objects[RAY_JOB]["spec"]["backoffLimit"] == 3


def test_without_the_right_to_make_roles_the_remedy_is_named(api):
    api.forbidden.add("roles")
    with pytest.raises(UserError, match=r"forbidden(.|\n)*set launch.kuberay.service_account"):
        submitted()


def test_the_status_says_state_reason_attempts_and_the_last_words(api):
    submitted()
    assert status("math", namespace="default") == "math: waiting for the operator; 0 attempts failed, 3 retries"
    api.objects[RAY_JOB]["status"] = {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "FAILED",
        "reason": "AppFailed",
        "failed": 2,
        "rayClusterName": "math-abcde",
        "message": "\n".join(f"line {i}" for i in range(30)),
    }
    lines = status("math", namespace="default").splitlines()
    assert lines[0] == "math: Failed, FAILED, AppFailed; 2 attempts failed, 3 retries"
    assert lines[1] == "  cluster math-abcde"
    assert lines[-1] == "  line 29"
    assert len(lines) == 12


def test_the_log_is_that_of_the_submitter_of_the_present_attempt(api):
    submitted()
    with pytest.raises(UserError, match="no head pod now"):
        list(logs("math", follow=False, namespace="default"))
    api.objects[RAY_JOB]["status"] = {"rayClusterName": "math-abcde"}
    labels = {"ray.io/cluster": "math-abcde", "ray.io/node-type": "head"}
    pod = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "head", "namespace": "default", "labels": labels}}
    pod["spec"] = {"containers": [{"name": "ray-head"}, {"name": "ray-job-submitter"}]}
    api.objects["/api/v1/namespaces/default/pods/head"] = pod
    api.logs["head"] = "step 1\nstep 2\n"
    assert list(logs("math", follow=False, namespace="default")) == ["step 1", "step 2"]
    assert list(logs("math", follow=True, namespace="default")) == ["step 1", "step 2"]


def test_stopping_suspends_and_says_how_to_go_on(api):
    submitted()
    message = stop("math", namespace="default")
    assert api.objects[RAY_JOB]["spec"]["suspend"] is True
    assert "within 121 s" in message
    resume = 'kubectl -n default patch rayjobs.ray.io math --type=merge -p \'{"spec": {"suspend": false}}\''
    assert resume in message
    assert f"suspended; to continue: {resume}" in status("math", namespace="default")


def test_under_kueue_its_workload_is_stopped_since_kueue_would_resume_the_job(api):
    submitted(**QUEUE)
    with pytest.raises(UserError, match="no Workload of Kueue yet"):
        stop("math", namespace="default")
    at = "/apis/kueue.x-k8s.io/v1beta2/namespaces/default/workloads/rayjob-math"
    metadata = {"name": "rayjob-math", "namespace": "default", "labels": {"kueue.x-k8s.io/job-uid": "uid-of-math"}}
    api.objects[at] = {"kind": "Workload", "apiVersion": "kueue.x-k8s.io/v1beta2", "metadata": metadata, "spec": {}}
    assert '{"spec": {"active": true}}' in stop("math", namespace="default")
    assert api.objects[at]["spec"] == {"active": False}
    assert "suspend" not in api.objects[RAY_JOB]["spec"]


@pytest.mark.parametrize("state", ["Complete", "Failed"])
def test_what_has_ended_cannot_be_stopped(api, state):
    submitted()
    api.objects[RAY_JOB]["status"] = {"jobDeploymentStatus": state}
    with pytest.raises(UserError, match=f"has ended already: {state}"):
        stop("math", namespace="default")


@pytest.mark.parametrize(
    "ask",
    [
        lambda: status("absent", namespace="default"),
        lambda: stop("absent", namespace="default"),
        lambda: list(logs("absent", follow=False, namespace="default")),
    ],
)
def test_a_job_that_is_not_there_is_named(api, ask):
    with pytest.raises(UserError, match="there is no RayJob absent in namespace default"):
        ask()


def test_without_a_cluster_it_is_the_clusters_fault(tmp_path, monkeypatch):
    with KubernetesApi().serving(tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.setenv("HOME", str(tmp_path))
    started_s = time.monotonic()
    with pytest.raises(ClusterError, match="refused"):
        status("math", namespace="default")
    assert time.monotonic() - started_s < 60


def test_without_kubectl_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="kubectl is not on the PATH"):
        status("math", namespace="default")
