"""The public interface: what it loads, plans and says. A real run through it is tests/system/e2e/test_examples.py."""

import inspect
import json
import re
import subprocess
import sys

import pytest

import ray_rl
from ray_rl import api, errors
from ray_rl.errors import ConfigError, Preempted, RayRLError, UserError
from tests.test_architecture import ROOT

CONFIG = ROOT / "configs" / "grpo_addition_smollm2-135m_cpu.yaml"


PAGE = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")


@pytest.fixture
def config(tmp_path):
    return ray_rl.load_config(CONFIG, [f"run.dir={tmp_path}", "run.name=first"])


def driver(monkeypatch, program):
    """Stands in for the interpreter: runs a program instead of the command, whose arguments it gets."""
    asked = []
    real = subprocess.Popen

    def popen(command, **options):
        asked.append(command)
        return real([sys.executable, "-c", program, *command[3:]], **options)

    monkeypatch.setattr(api.subprocess, "Popen", popen)
    return asked


def test_importing_the_package_loads_nothing_of_it():
    program = "import ray_rl, sys; print([name for name in sys.modules if name.startswith(('ray_rl.', 'pydantic'))])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        ray_rl.fit  # noqa: B018


def test_a_plan_prints_as_the_command_does(config):
    planned = ray_rl.plan(config)
    assert planned.fits
    assert str(planned).startswith("fits")
    assert "actor" in str(planned)
    assert set(planned.assessment.layout.workers) == {"actor", "rollout"}


def test_training_hands_over_the_whole_configuration_and_returns_the_run(config, tmp_path, monkeypatch, capsys):
    secret = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": "ray://me:pw@host:1"})})
    program = "import sys, pathlib; print('a line'); print(pathlib.Path(sys.argv[2]).read_text(), file=sys.stderr)"
    asked = driver(monkeypatch, program)
    trained = ray_rl.train(secret, resume="auto")
    assert trained.folder == tmp_path / "first"
    assert trained.export == tmp_path / "first" / "export"
    assert asked[0][3:4] == ["train"] and asked[0][5:] == ["--resume", "auto"]
    printed = capsys.readouterr()
    assert printed.out == "a line\n"
    (tmp_path / "given.yaml").write_text(printed.err)
    assert ray_rl.load_config(tmp_path / "given.yaml") == secret


def test_metrics_are_those_of_every_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": i}) + "\n" for i in (1, 2)))
    assert ray_rl.Trained(tmp_path).metrics() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("code", "printed", "error", "message"),
    [
        (
            2,
            "ray-rl: note\nray-rl: error: run.yaml:3: steps=0\n  set it to 1\n",
            UserError,
            "run.yaml:3: steps=0\n  set it to 1",
        ),
        (
            75,
            "ray-rl: stopped by SIGINT after step 3 of 9, saved\n",
            Preempted,
            "stopped by SIGINT after step 3 of 9, saved",
        ),
        (1, "ray-rl: error: a worker is gone\n", RayRLError, "a worker is gone"),
        (-9, "", RayRLError, "the driver ended with code -9 and said nothing"),
    ],
)
def test_an_exit_code_becomes_the_error_with_the_last_message(config, monkeypatch, code, printed, error, message):
    program = f"import os, sys; sys.stderr.write({printed!r}); sys.stderr.flush()\n"
    program += "os.kill(os.getpid(), 9)" if code < 0 else f"sys.exit({code})"
    driver(monkeypatch, program)
    with pytest.raises(error) as caught:
        ray_rl.train(config)
    assert str(caught.value) == message
    assert type(caught.value) is error


@pytest.mark.parametrize("resume", ["required", True, "x"])
def test_a_way_to_resume_that_does_not_exist_is_refused(config, resume):
    with pytest.raises(UserError, match=f"resume={resume!r} is not a way to resume; give 'auto' or None"):
        ray_rl.train(config, resume=resume)


LIST = "pass a list of texts, for example ['run.steps=3']"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "path has the type NoneType; pass the path of a YAML file, as text or as a Path"),
        (({"run": {}},), "path has the type dict; pass the path of a YAML file, as text or as a Path"),
        ((CONFIG, "run.steps=3"), f"overrides has the type str; {LIST}"),
        ((CONFIG, {"run.steps": 3}), f"overrides has the type dict; {LIST}"),
        ((CONFIG, None), f"overrides has the type NoneType; {LIST}"),
        ((CONFIG, ["run.steps=3", ("run.steps", 3)]), f"overrides[1] has the type tuple; {LIST}"),
    ],
)
def test_an_argument_of_another_type_is_refused_with_what_to_pass(arguments, message):
    with pytest.raises(ConfigError) as caught:
        ray_rl.load_config(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("function", ["plan", "train"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a.yaml", "got an argument of the type str; pass what load_config returns: {}(load_config('a.yaml'))"),
        ({"run": {}}, "got an argument of the type dict; pass what load_config returns: {}(load_config(FILE))"),
        (None, "got an argument of the type NoneType; pass what load_config returns: {}(load_config(FILE))"),
    ],
)
def test_what_is_no_configuration_is_neither_planned_nor_trained(function, given, message):
    with pytest.raises(ConfigError) as caught:
        getattr(ray_rl, function)(given)
    assert str(caught.value) == f"{function} {message.format(function)}"


DRIVER = """
import json, pathlib, sys
from ray_rl.config.loading.load import load_config
run = load_config(sys.argv[2]).run
folder = pathlib.Path(run.dir) / run.name
folder.mkdir(parents=True)
lines = [json.dumps({"step": step, "reward/mean": step / 4}) + "\\n" for step in range(1, run.steps + 1)]
(folder / "metrics.jsonl").write_text("".join(lines))
"""


def test_the_program_of_the_page_prints_the_plan_and_what_was_trained(tmp_path, monkeypatch, capsys):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    asked = driver(monkeypatch, DRIVER)
    exec(program, {})
    assert len(asked) == 1
    assert "--resume" not in asked[0]
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("fits")
    assert last == "0.25 -> 0.75, the model is in runs/first/export"


def test_the_page_lists_the_interface():
    functions = dict(re.findall(r"^\| `(\w+)(\(.*?\))`", PAGE, re.MULTILINE))
    listed = {*functions, *re.findall(r"\| (?:a|when .* a) `(\w+)`:", PAGE)}
    assert listed == set(ray_rl.__all__) - {"__version__"}
    for name, arguments in functions.items():
        parameters = inspect.signature(getattr(ray_rl, name)).parameters.values()
        for written in arguments[1:-1].split(", "):
            assert written in [str(each.replace(annotation=inspect.Parameter.empty)) for each in parameters]
    for name in re.findall(r"`(\w+Error|Preempted)`", PAGE):
        assert issubclass(getattr(errors, name), RayRLError)
