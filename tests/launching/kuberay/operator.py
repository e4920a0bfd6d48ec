"""A stand-in for KubeRay's operator: takes a RayJob and does with it what the controller of 1.7 does.

Source: KubeRay 1.7, ray-operator/controllers/ray: rayjob_controller.go, common/pod.go and common/job.go. Pods are
namespaces of this machine (`tests.launching.kuberay.pods`). What is taken from the manifest: rayStartParams,
environment, mounts, grace, preStop, accounts, entrypoint and retries. What is left out: images, limits of memory and
CPU, deadlines.
"""

import json
import secrets
import shlex
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.kubelet import expanded, variables
from tests.launching.kuberay.api_server import ApiServer
from tests.launching.kuberay.pods import GATEWAY, Pod

RECONCILE_S = 0.5
READY_S = 90.0
SUBMITTER = "ray-job-submitter"
ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"
TERMINAL = {"SUCCEEDED", "FAILED", "STOPPED"}


class Operator:
    """Reconciles one RayJob in a thread of its own."""

    def __init__(self, server: ApiServer, name: str, *, claim: Path, place: Path) -> None:
        """Nothing is started yet.

        Args:
            server: that has the RayJob and what belongs to it.
            name: of the RayJob.
            claim: the folder behind its PersistentVolumeClaim.
            place: for logs and session folders; a short path, as sockets are below it.
        """
        self.server, self.name, self._claim, self._place = server, name, claim, place
        self.status: dict = {"jobDeploymentStatus": "", "failed": 0, "succeeded": 0}
        self.history: list[str] = []
        self.pods: list[Pod] = []
        self.clusters = 0
        self._token, self._started_s = "", time.monotonic()
        self._numbers = iter(range(11, 250))
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self.error: BaseException | None = None

    @property
    def spec(self) -> dict:
        """As it is now: users and drivers patch it."""
        return self.server.objects["RayJob", self.name]["spec"]

    @property
    def head(self) -> Pod:
        return self.pods[0]

    def patch(self, **changes: object) -> None:
        """As a user, by kubectl."""
        with self.server.lock:
            self.spec.update(changes)

    def __enter__(self) -> "Operator":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        for pod in self.pods:
            pod.destroy()
        self._thread.join(timeout=60)
        for pod in self.pods:
            pod.destroy()

    def wait_for(self, condition: Callable[[], bool], what: str, *, limit_s: float) -> None:
        """Returns when the condition holds.

        Raises:
            AssertionError: too late, or the operator itself failed; with the last lines of the containers.
        """
        give_up_s = time.monotonic() + limit_s
        while not condition():
            assert self.error is None, f"the operator failed: {self.error!r}\n{self.tails()}"
            assert time.monotonic() < give_up_s, f"{what}: not in time; {self.history}, {self.status}\n{self.tails()}"
            time.sleep(0.1)

    def reach(self, state: str, *, limit_s: float) -> None:
        """Waits until the deployment is in a state."""
        self.wait_for(lambda: self.status["jobDeploymentStatus"] == state, state, limit_s=limit_s)

    def tails(self) -> str:
        files = sorted(self._place.glob("*.log"))
        return "\n".join(f"--- {file.name}\n" + "\n".join(file.read_text().splitlines()[-25:]) for file in files)

    def _loop(self) -> None:
        try:
            while not self._is_over.wait(RECONCILE_S):
                before = self.status["jobDeploymentStatus"]
                self._reconcile()
                after = self.status["jobDeploymentStatus"]
                if after != before:
                    self.history.append(after)
                    print(f"{time.monotonic() - self._started_s:.1f} s: {after or 'New'}")
        except BaseException as error:
            if not self._is_over.is_set():
                self.error = error

    def _reconcile(self) -> None:
        match self.status["jobDeploymentStatus"]:
            case "":
                self.clusters += 1
                job_id = f"{self.name}-{secrets.token_hex(3)}"
                self.status |= {"jobStatus": "", "jobId": job_id, "jobDeploymentStatus": "Initializing"}
                self.status["startTime"] = time.monotonic()
            case "Initializing" | "Running" if self.spec.get("suspend"):
                self.status["jobDeploymentStatus"] = "Suspending"
            case "Initializing":
                self._create_cluster()
                self.status["jobDeploymentStatus"] = "Running"
            case "Running":
                self._follow()
            case "Suspending" | "Retrying" as state:
                self._delete_cluster()
                self.status["jobStatus"] = ""
                self.status["jobDeploymentStatus"] = "Suspended" if state == "Suspending" else ""
            case "Suspended" if not self.spec.get("suspend"):
                self.status["jobDeploymentStatus"] = ""
            case "Complete" | "Failed" if self.pods and self.spec["shutdownAfterJobFinishes"]:
                self._delete_cluster()
        self._count_failures()

    def _follow(self) -> None:
        """Takes over what the Jobs API says."""
        info = self._job_info()
        if info is None:
            return
        self.status |= {"jobStatus": info["status"], "message": info.get("message")}
        if info["status"] in TERMINAL:
            self.status["jobDeploymentStatus"] = "Failed" if info["status"] == "FAILED" else "Complete"
            self.status["exitCode"] = info.get("driver_exit_code")

    def _count_failures(self) -> None:
        """Retries, by what `backoffLimit` is at this moment."""
        if self.status["jobDeploymentStatus"] != "Failed" or self.history[-1:] == ["Failed"]:
            return
        self.status["failed"] += 1
        if self.status["failed"] < self.spec.get("backoffLimit", 0) + 1:
            self.status["jobDeploymentStatus"] = "Retrying"

    def _job_info(self) -> dict | None:
        request = urllib.request.Request(
            f"http://{self.head.address}:8265/api/jobs/{self.status['jobId']}",
            headers={"Authorization": f"Bearer {self._token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read())
        except (OSError, urllib.error.URLError):
            return None

    def _create_cluster(self) -> None:
        """All pods, then the submitter beside the head."""
        cluster = self.spec["rayClusterSpec"]
        assert cluster["authOptions"] == {"mode": "token"}
        self._token = secrets.token_hex(32)
        prefix, service = f"rlk{self.clusters}", f"{self.name}-head-svc.default.svc.cluster.local"
        groups = [("head", cluster["headGroupSpec"])]
        for group in cluster["workerGroupSpecs"]:
            groups += [(f"{group['groupName']}{index}", group) for index in range(group["replicas"])]
        hosts: dict[str, str] = {}
        for short, group in groups:
            pod = Pod(
                f"{prefix}-{short}", next(self._numbers), group["template"], self._volumes(), self._place,
                {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token, "FQ_RAY_IP": service}, hosts,
            )  # fmt: skip
            self.pods.append(pod)
            pod.connect()
            hosts |= {service: self.head.address}
            self._start_ray(pod, group, is_head=short == "head", service=service)
            if short == "head":
                self._await_port(pod, 6379)
                self._submit(pod)

    def _volumes(self) -> dict[str, Path]:
        """Folders by the names of volumes; a ConfigMap becomes files."""
        folder = self._place / "config"
        folder.mkdir(exist_ok=True)
        for key, text in self.server.objects["ConfigMap", self.name]["data"].items():
            (folder / key).write_text(text)
        return {"runs": self._claim, "config": folder}

    def _start_ray(self, pod: Pod, group: dict, *, is_head: bool, service: str) -> None:
        container = pod.spec["containers"][0]
        parameters = {"dashboard-agent-listen-port": "52365", "metrics-export-port": "8080", **group["rayStartParams"]}
        if not is_head:
            parameters["address"] = f"{service}:6379"
        words = " ".join(f"--{key}={value}" for key, value in sorted(parameters.items()))
        command = f"ulimit -n 65536; ray start {'--head ' if is_head else ''}{words} --block"
        environment = variables(container)
        environment["RAY_ADDRESS"] = "127.0.0.1:6379" if is_head else f"{service}:6379"
        mounts = list(container["volumeMounts"])
        if pod.spec["automountServiceAccountToken"]:
            account = pod.spec["serviceAccountName"]
            pod.volumes["account"] = self.server.credentials(account, "default")
            mounts.append({"name": "account", "mountPath": ACCOUNT})
            environment |= {"KUBERNETES_SERVICE_HOST": GATEWAY, "KUBERNETES_SERVICE_PORT": str(self.server.port)}
        pod.start(container["name"], command, mounts=mounts, environment=environment, workdir=container["workingDir"])

    def _submit(self, head: Pod) -> None:
        """The sidecar: the head's image, no volume, no variable of the user, and the entrypoint in a line of bash."""
        address = "http://127.0.0.1:8265"
        health = f'import urllib.request; urllib.request.urlopen("{address}/api/gcs_healthz", timeout=5)'
        entrypoint = expanded(self.spec["entrypoint"], {})
        line = (
            f"until python -c {shlex.quote(health)} >/dev/null 2>&1 ; do sleep 1 ; done ; "
            f"ray job submit --address {address} --submission-id {self.status['jobId']} -- {entrypoint} ;"
        )
        head.start(SUBMITTER, line, mounts=[], environment={"PYTHONUNBUFFERED": "1"}, workdir="/")

    def _await_port(self, pod: Pod, port: int) -> None:
        give_up_s = time.monotonic() + READY_S
        while True:
            try:
                socket.create_connection((pod.address, port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < give_up_s, f"{pod.name} does not listen on {port}"
                time.sleep(0.2)

    def _delete_cluster(self) -> None:
        """All pods at the same time."""
        threads = [threading.Thread(target=pod.delete) for pod in self.pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        self.pods = []
