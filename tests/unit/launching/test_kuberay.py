import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_rl.config.loading.load import load_config
from ray_rl.errors import ConfigError
from ray_rl.launching.kuberay.manifest import RAY_VERSION, render, resource_name, submitted_line
from ray_rl.launching.kuberay.pods import USER
from tests.unit.launching.controller_rules import DNS_1035, MAX_JOB_NAME, problems_of
from tests.unit.launching.jobs import documents, job, shipped
from tests.unit.launching.kinds import NO_CRDS, ROOT, schema_errors


def ray_job(*overrides, **launch):
    return documents(render(job(*overrides, **launch)))["RayJob"]


def pods(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]]


def variables(pod):
    return {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}


def refusal(*overrides, **launch):
    with pytest.raises(ConfigError) as caught:
        render(job(*overrides, **launch))
    return str(caught.value)


VARIANTS = {
    "plain": {},
    "kueue": {"queue": "rl", "kuberay": {"scheduler": "kueue"}},
    "volcano": {"queue": "rl", "kuberay": {"scheduler": "volcano"}},
    "rdma": {"kuberay": {"rdma_resource": "rdma/rdma_shared_device_a"}},
    "everything": {
        "preflight": True,
        "workdir": "/app",
        "environment": {"NCCL_DEBUG": "INFO"},
        "kuberay": {"environment_from": "secrets", "service_account": "mine", "node_selector": {"gpu": "h100"}},
    },
    "cpu": {"cluster": {"accelerator": "cpu", "nodes": 1}},
}


@pytest.mark.skipif(NO_CRDS is not None, reason=str(NO_CRDS))
@pytest.mark.parametrize("launch", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_fits_the_schema_and_the_rules_of_the_controller(launch):
    manifest = ray_job(**launch)
    assert schema_errors(manifest) == []
    assert problems_of(manifest) == []


@pytest.mark.skipif(NO_CRDS is not None, reason=str(NO_CRDS))
def test_a_field_that_is_not_there_is_noticed():
    manifest = ray_job()
    manifest["spec"]["shutdownAfterJobFinish"] = True
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"][0]["emptyDir"]["size"] = "1Gi"
    assert len(schema_errors(manifest)) == 2


class TestTheJob:
    def test_its_entrypoint_is_the_line_of_all_back_ends(self):
        run = job("run.steps=3")
        assert documents(render(run))["RayJob"]["spec"]["entrypoint"] == run.shell_line

    def test_time_retries_and_readiness_are_those_of_launch(self):
        spec = ray_job(retries=5, time_limit="1-02:00:00", kuberay={"ready_timeout_s": 77})["spec"]
        assert spec["backoffLimit"] == 5
        assert spec["activeDeadlineSeconds"] == 26 * 3600
        assert spec["preRunningDeadlineSeconds"] == 77
        assert spec["submissionMode"] == "SidecarMode"
        assert spec["shutdownAfterJobFinishes"] is True

    def test_the_driver_asks_for_nothing_so_that_it_stays_on_the_head(self):
        assert not [key for key in ray_job()["spec"] if key.startswith("entrypointNum")]

    @pytest.mark.parametrize(
        ("scheduler", "label"), [("kueue", "kueue.x-k8s.io/queue-name"), ("volcano", "volcano.sh/queue-name")]
    )
    def test_the_queue_is_a_label_of_who_admits(self, scheduler, label):
        assert ray_job(queue="rl", kuberay={"scheduler": scheduler})["metadata"]["labels"][label] == "rl"

    def test_ray_has_a_token(self):
        assert ray_job()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}

    def test_the_version_of_ray_is_the_locked_one(self):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert f"ray[default]=={RAY_VERSION}" in extras["run"]

    def test_equal_jobs_give_equal_texts(self):
        assert render(job()) == render(job())


class TestPods:
    def test_workers_are_nodes_with_the_gpus_of_the_plan(self):
        run = job()
        workers = documents(render(run))["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert [group["groupName"] for group in workers] == ["gpu"]
        assert (
            [workers[0][key] for key in ("replicas", "minReplicas", "maxReplicas")] == [run.plan.nodes] * 3 == [2] * 3
        )
        assert workers[0]["rayStartParams"]["num-gpus"] == str(run.plan.gpus_per_node) == "8"

    def test_requests_are_limits(self):
        manifest = ray_job()
        head, worker = (pod["containers"][0]["resources"] for pod in pods(manifest))
        assert worker["limits"] == {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}
        assert head["limits"] == {"cpu": "4", "memory": "32Gi"}
        assert head["requests"] == head["limits"]
        assert worker["requests"] == worker["limits"]

    def test_the_head_has_no_gpu_and_takes_no_work(self):
        head = ray_job()["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
        assert (head["num-gpus"], head["num-cpus"], head["dashboard-host"]) == ("0", "0", "0.0.0.0")

    def test_without_gpus_there_is_no_gpu_anywhere(self):
        assert "nvidia" not in render(job(cluster={"accelerator": "cpu", "nodes": 1}))

    def test_shared_memory_is_memory_of_the_size_asked_for(self):
        for pod, size in zip(pods(ray_job(kuberay={"shared_memory_gib": 64})), ("16Gi", "64Gi"), strict=True):
            assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}} in pod["volumes"]
            assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]

    def test_the_claim_is_mounted_in_every_pod(self):
        for pod in pods(ray_job(dir="/data/runs", kuberay={"claim": "team", "runs_path": "/data"})):
            assert {"name": "runs", "persistentVolumeClaim": {"claimName": "team"}} in pod["volumes"]
            assert {"name": "runs", "mountPath": "/data"} in pod["containers"][0]["volumeMounts"]

    def test_every_pod_has_the_environment_of_all_back_ends(self):
        run = job(environment={"NCCL_DEBUG": "INFO"})
        for pod in pods(documents(render(run))["RayJob"]):
            assert run.environment.items() <= variables(pod).items()

    def test_a_secret_is_referred_to_and_not_copied(self):
        for pod in pods(ray_job(kuberay={"environment_from": "team-secrets"})):
            assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "team-secrets"}}]

    def test_a_pod_ends_later_than_its_driver_may_take_to_save(self):
        for pod in pods(ray_job(grace_s=90.5)):
            assert pod["terminationGracePeriodSeconds"] > 91

    def test_before_a_pod_ends_the_driver_saves_and_workers_wait(self):
        hooks = [pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] for pod in pods(ray_job())]
        module = ["python", "-m", "ray_rl.launching.kuberay.drain"]
        assert hooks == [[*module, "driver", "91"], [*module, "worker", "91"]]

    def test_a_job_that_is_stopped_has_the_same_time_to_save(self):
        assert variables(pods(ray_job())[0])["RAY_JOB_STOP_WAIT_TIME_S"] == "106"

    def test_rdma_is_asked_for_with_the_right_to_pin_memory_on_gpu_pods_only(self):
        head, worker = pods(ray_job(kuberay={"rdma_resource": "rdma/ib"}))
        assert worker["containers"][0]["resources"]["limits"]["rdma/ib"] == "1"
        assert worker["containers"][0]["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
        assert "rdma/ib" not in str(head)

    def test_gpu_pods_go_where_gpus_are(self):
        head, worker = pods(ray_job(kuberay={"node_selector": {"nvidia.com/gpu.product": "H100"}}))
        assert worker["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
        assert worker["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert "nodeSelector" not in head

    def test_volumes_are_writable_for_the_user_of_our_images(self):
        for kind in ("cpu", "gpu"):
            assert f"USER {USER}\n" in (ROOT / "docker" / f"Dockerfile.{kind}").read_text()
        assert [pod["securityContext"]["fsGroup"] for pod in pods(ray_job())] == [USER, USER]


class TestTheConfiguration:
    def test_what_is_mounted_loads_to_the_configuration_of_the_run(self, tmp_path):
        run = job(path="configs/my run.yaml")
        found = documents(render(run))
        (key, text), *rest = found["ConfigMap"]["data"].items()
        assert rest == []
        (tmp_path / "run.yaml").write_text(text)
        assert load_config(tmp_path / "run.yaml") == run.config
        mount = next(m for m in pods(found["RayJob"])[0]["containers"][0]["volumeMounts"] if m["name"] == "config")
        assert (mount["mountPath"], mount["subPath"]) == ("/workspace/configs/my run.yaml", key)
        assert pods(found["RayJob"])[0]["containers"][0]["workingDir"] == "/workspace"

    def test_it_is_mounted_below_the_folder_that_launch_names(self):
        head = pods(ray_job(workdir="/app"))[0]["containers"][0]
        assert head["workingDir"] == "/app"
        assert head["volumeMounts"][-1]["mountPath"] == "/app/configs/run.yaml"


class TestTheAccount:
    def test_the_driver_may_patch_its_own_job_and_nothing_else(self):
        found = documents(render(job(name="math")))
        assert found["Role"]["rules"] == [
            {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "resourceNames": ["math"], "verbs": ["patch"]}
        ]
        assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
        assert found["RoleBinding"]["subjects"][0]["name"] == found["ServiceAccount"]["metadata"]["name"]

    def test_only_the_head_has_its_token(self):
        head, worker = pods(ray_job())
        assert (head["serviceAccountName"], head["automountServiceAccountToken"]) == ("math", True)
        assert ("serviceAccountName" in worker, worker["automountServiceAccountToken"]) == (False, False)

    def test_an_account_that_is_named_is_used_and_none_is_made(self):
        found = documents(render(job(kuberay={"service_account": "mine"})))
        assert set(found) == {"ConfigMap", "RayJob"}
        assert pods(found["RayJob"])[0]["serviceAccountName"] == "mine"


class TestRefusals:
    def test_what_kubernetes_needs_is_named_all_at_once(self):
        message = refusal(image=None, cpus_per_node=None, memory_gib_per_node=None)
        for key in ("launch.image", "launch.cpus_per_node", "launch.memory_gib_per_node"):
            assert f"{key}=null" in message

    @pytest.mark.parametrize("folder", ["runs", "/elsewhere", "/runs/../tmp", "/runsaway"])
    def test_a_run_folder_that_ends_with_its_pod_is_refused(self, folder):
        assert "set run.dir=/runs, where the claim ray-rl-runs is mounted" in refusal(dir=folder)

    def test_a_scheduler_needs_a_queue(self):
        assert "set launch.queue" in refusal(kuberay={"scheduler": "kueue"})

    def test_shared_memory_must_leave_memory(self):
        assert "launch.kuberay.shared_memory_gib=512" in refusal(kuberay={"shared_memory_gib": 512})

    def test_cpus_must_be_enough_for_the_roles(self):
        assert "the roles reserve 8 CPUs of a node; set it to 8 or more" in refusal(cpus_per_node=7)

    def test_a_secret_goes_into_no_config_map(self):
        message = refusal(environment={"WANDB_API_KEY": "s3cr3t-value"})
        assert "launch.environment.WANDB_API_KEY" in message
        assert "launch.kuberay.environment_from" in message
        assert "s3cr3t" not in message

    def test_what_kuberay_sets_is_left_to_it(self):
        assert "launch.environment.RAY_AUTH_MODE=disabled" in refusal(environment={"RAY_AUTH_MODE": "disabled"})

    @pytest.mark.parametrize("name", ["RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"])
    def test_a_variable_with_which_the_controller_refuses_the_job_is_refused_before(self, name):
        assert f"launch.environment.{name}=1: KubeRay refuses it" in refusal(environment={name: "1"})

    def test_a_time_limit_of_zero_is_refused(self):
        assert "launch.time_limit=00:00:00: KubeRay needs a limit above 0" in refusal(time_limit="00:00:00")


class TestNames:
    def test_a_name_that_is_legal_stays(self):
        assert resource_name("grpo-math-7b") == "grpo-math-7b"

    @pytest.mark.parametrize("name", ["GRPO", "a.b", "7b", "x" * 48, "a_", "a-", "--", "A" * 100])
    def test_another_gets_a_hash(self, name):
        assert re.search(r"-[0-9a-f]{6}$", resource_name(name))

    @settings(deadline=None)
    @given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True))
    def test_any_name_of_a_run_becomes_a_legal_one(self, name):
        assert DNS_1035.fullmatch(resource_name(name))
        assert len(resource_name(name)) <= MAX_JOB_NAME

    def test_two_runs_never_share_one(self):
        names = ["a.b", "a-b", "a_b", "A-b", "a--b", "x" * 60, "x" * 61]
        assert len({resource_name(name) for name in names}) == len(names)


def through_the_submitter(entrypoint):
    """What the driver's shell is given: bash splits the submitter's line, and Ray quotes the words (shlex.join)."""
    line = f"printf '%s\\0' {entrypoint} ;"
    done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, timeout=30, check=True)
    return shlex.join(done.stdout.split("\0")[:-1])


@pytest.mark.parametrize(
    "words",
    [
        ["run.steps=3"],
        ["data={kind: jsonl, path: a b.jsonl}"],
        ["a='b'", 'c="d  e"', "f=$HOME `g` \\h", "i=*;j|k>(l)&m"],
        ["line\nbreak"],
    ],
)
@pytest.mark.parametrize("join", [" && ", None])
def test_the_submitter_hands_the_driver_the_same_words(words, join):
    script = "import sys; print(sys.argv[1:])"
    command = shlex.join([sys.executable, "-S", "-c", script, *words])
    line = f"{command}{join}{command}" if join else command
    arrived = through_the_submitter(submitted_line(line))
    results = [
        subprocess.run(text, shell=True, capture_output=True, text=True, timeout=30).stdout for text in (line, arrived)
    ]
    assert results[0] == results[1] != ""


def test_of_two_commands_the_second_would_run_in_the_submitter():
    assert through_the_submitter("printf a") == "printf a"
    assert through_the_submitter(submitted_line("echo a && echo b")) == shlex.join(["sh", "-c", "echo a && echo b"])
    assert ray_job(preflight=True)["spec"]["entrypoint"] == shlex.join(["sh", "-c", job(preflight=True).shell_line])


def test_the_base_of_deploy_is_the_shipped_recipe_rendered():
    written = (ROOT / "deploy" / "kuberay" / "base" / "rayjob.yaml").read_text(encoding="utf-8")
    assert written == render(shipped(ROOT)), "render configs/grpo_math_qwen2.5-7b_16xh100_kuberay.yaml into it again"
