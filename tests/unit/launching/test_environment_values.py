"""Whatever text a variable has, every launcher's processes get that very text: the renderings are executed."""

import json
import os
import re
import subprocess

import pytest

from ray_rl.config.rules.launch import check_launch
from ray_rl.errors import ConfigError
from ray_rl.launching import local
from ray_rl.launching.kuberay import manifest as kuberay
from ray_rl.launching.ray_job import entrypoint as ray_job
from ray_rl.launching.slurm import script as slurm
from tests.kubelet import expanded, variables
from tests.unit.launching.bash import called, options_of
from tests.unit.launching.jobs import documents
from tests.unit.launching.jobs import job as kubernetes_job

VALUES = {
    "reference": "$(HOME)/x $(PYTHONUNBUFFERED)",
    "escaped reference": "$$(HOME) $$ $$$(A)",
    "shell variable": "$HOME ${HOME} $",
    "command": "`id` $(id)",
    "percent": "100% %j %x %(asctime)s",
    "newline": "first\nsecond\n#SBATCH --nodes=9\n",
    "dos": "first\r\nsecond\ttab\x1b[0m",
    "quotes": "it's \"me\" \\'s \\n",
    "spaces": "  two  ",
    "not ascii": "Grüße, 世界 \U0001f600",
    "control and not ascii": "Grüße\n'世界'\\",
    "history": "!! !x #no ~ * ? [a] {b,c} ;&|<>()",
    "empty": "",
}
REPLACED_BY_RAY = {"shell variable"}
EXPORT = re.compile(r"^export [A-Za-z_]\w*=.*$", re.MULTILINE)


@pytest.fixture(params=VALUES.values(), ids=VALUES)
def value(request):
    return request.param


@pytest.fixture
def made(job, value):
    return job(f"launch.environment={json.dumps({'TEXT': value, 'WIDTH': 'x'}, ensure_ascii=False)}")


def test_a_local_script_exports_it(made, value, tmp_path):
    call = called("ray-rl", local.render(made), tmp_path, LC_ALL="C.UTF-8")
    assert call.environment["TEXT"] == value
    assert call.environment["WIDTH"] == "x"


def test_a_script_for_slurm_exports_it_in_one_line_without_carriage_returns(made, value, tmp_path):
    text = slurm.render(made)
    assert not set(text) & {"\r", "\x1b"}
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --nodes=9" not in directives
    script = "\n".join([*EXPORT.findall(text), "ray-rl"])
    assert called("ray-rl", script, tmp_path, LC_ALL="C.UTF-8").environment["TEXT"] == value


def test_a_ray_job_gets_it_or_is_refused(made, value, tmp_path):
    from ray._private.utils import update_envs

    options, _ = options_of(called("ray", ray_job.render(made), tmp_path, LC_ALL="C.UTF-8").words)
    given = json.loads(options["--runtime-env-json"])["env_vars"]
    before = dict(os.environ)
    try:
        update_envs(given)
        arrived = os.environ["TEXT"]
    finally:
        os.environ.clear()
        os.environ.update(before)
    if value == VALUES["shell variable"]:
        assert arrived != value
        with pytest.raises(ConfigError, match=r"launch\.environment\.TEXT: Ray would replace \$HOME"):
            check_launch(made.config, "ray-job")
    else:
        assert arrived == value
        check_launch(made.config, "ray-job")


def test_the_kubelet_gives_it_to_every_pod(value):
    run = kubernetes_job(environment={"TEXT": value})
    cluster = documents(kuberay.render(run))["RayJob"]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        environment = variables(group["template"]["spec"]["containers"][0])
        assert run.environment.items() <= environment.items()
        assert environment["TEXT"] == value


def test_the_kubelet_and_the_submitter_give_the_driver_its_words(value):
    run = kubernetes_job(f"data.system_prompt={value}")
    entrypoint = documents(kuberay.render(run))["RayJob"]["spec"]["entrypoint"]
    line = f"printf '%s\\0' {expanded(entrypoint, {'HOME': '/root', 'PYTHONUNBUFFERED': '1'})} ;"
    done = subprocess.run(["bash", "-ec", line], capture_output=True, timeout=30, check=True)
    assert done.stdout.decode().split("\0")[:-1] == list(run.entrypoint)


@pytest.mark.parametrize(
    "name", ["NODES", "STEP", "attempt".upper(), "RAY_ADDRESS", "RAY_RL_PORT", "SLURM_X", "PMI_RANK", "pid"]
)
def test_a_variable_that_the_script_for_slurm_needs_itself_is_refused(job, name):
    made = job(f"launch.environment={{{name}: x}}")
    with pytest.raises(ConfigError, match=rf"launch\.environment\.{name}: the script for Slurm sets or removes"):
        slurm.render(made)


def test_a_plain_dollar_stays_readable():
    run = kubernetes_job(environment={"PLACE": "$HOME/x"})
    assert "value: $HOME/x\n" in kuberay.render(run)
