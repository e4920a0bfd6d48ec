import importlib
import sys
import types
from pathlib import Path

import pytest

from ray_rl.cli.main import main
from tests.unit.launching.bash import called, options_of

CONFIG = """\
run: {name: test, dir: /runs, steps: 10}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
rewards: [{kind: number}]
algorithm: {kind: grpo, reduction: token_mean, kl: {coefficient: 0}}
cluster: {accelerator: cpu}
launch:
  queue: mine
  retries: 1
"""
RECIPE = "grpo_math_qwen2.5-7b_16xh100.yaml"
THEIRS = "data={kind: jsonl, path: /there.jsonl}"
NOBODY = "launch.ray_job.address=http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project with a configuration, and a recipe of ours for two nodes; no Ray cluster in the environment."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(CONFIG)
    Path(RECIPE).write_text((Path(__file__).parents[3] / "configs" / RECIPE).read_text())
    return tmp_path


@pytest.mark.parametrize("backend", ["local", "ray-job"])
def test_render_prints_a_script_and_nothing_else(backend, project, capsys):
    assert main(["render", backend, "run.yaml", "run.seed=3"]) == 0
    captured = capsys.readouterr()
    call = called("ray-rl" if backend == "local" else "ray", captured.out, project)
    words = call.words if backend == "local" else options_of(call.words)[1][1:]
    assert words[:3] == ["train", "run.yaml", "run.seed=3"]
    assert captured.err == ""


def test_rendering_for_a_cluster_needs_none_of_its_gpus_here(capsys):
    assert main(["render", "ray-job", RECIPE, "run.dir=/runs", THEIRS]) == 0
    assert "--submission-id grpo-math-qwen2.5-7b-" in capsys.readouterr().out


def test_a_path_that_only_the_cluster_has_is_not_looked_for_here_but_a_relative_one_is(capsys):
    assert (
        main(["render", "ray-job", "run.yaml", "model.path=/only/there", "data={kind: jsonl, path: /there.jsonl}"]) == 0
    )
    assert main(["render", "ray-job", "run.yaml", "model.path=./only/there"]) == 2
    assert "model.path=./only/there: no such model folder" in capsys.readouterr().err
    assert main(["render", "local", "run.yaml", "model.path=/only/there"]) == 2
    assert "model.path=/only/there: no such model folder" in capsys.readouterr().err


class TestLaunchFile:
    def test_it_goes_before_the_section_of_the_configuration_and_behind_overrides(self, capsys):
        Path("launch.yaml").write_text("queue: theirs\nenvironment: {A: one, B: two}\n")
        words = ["render", "local", "run.yaml", "--launch", "launch.yaml", "launch.environment.B=three"]
        assert main(words) == 0
        out = capsys.readouterr().out
        assert "export A=one\n" in out
        assert "export B=three\n" in out

    def test_what_it_does_not_say_stays(self):
        from ray_rl.config.loading.load import load_config

        Path("launch.yaml").write_text("queue: theirs\n")
        section = load_config("run.yaml", launch="launch.yaml").launch
        assert (section.queue, section.retries) == ("theirs", 1)

    def test_a_configuration_without_a_section_takes_it_whole(self):
        from ray_rl.config.loading.load import load_config

        Path("run.yaml").write_text(CONFIG.partition("launch:")[0])
        Path("launch.yaml").write_text("queue: theirs\n")
        assert load_config("run.yaml", launch="launch.yaml").launch.queue == "theirs"

    def test_a_mistake_in_it_is_named_by_its_line(self, capsys):
        Path("launch.yaml").write_text("queue: theirs\nray_job:\n  adress: http://a\n")
        assert main(["render", "local", "run.yaml", "--launch", "launch.yaml"]) == 2
        assert "launch.yaml:3: launch.ray_job.adress: unknown key" in capsys.readouterr().err

    def test_one_that_is_missing_is_named(self, capsys):
        assert main(["render", "local", "run.yaml", "--launch", "nothing.yaml"]) == 2
        assert "nothing.yaml: no such file" in capsys.readouterr().err


class TestSubmit:
    def test_a_dry_run_prints_what_is_rendered_and_contacts_nobody(self, capsys):
        assert main(["render", "ray-job", "run.yaml", NOBODY]) == 0
        text = capsys.readouterr().out
        assert main(["submit", "ray-job", "run.yaml", NOBODY, "--dry-run"]) == 0
        captured = capsys.readouterr()
        assert captured.out == text
        assert "dry run: test is valid and fits; nothing was submitted" in captured.err

    def test_what_does_not_fit_is_refused_with_what_would(self, capsys):
        words = ["submit", "ray-job", RECIPE, "run.dir=/runs", THEIRS, "model.path=Qwen/Qwen2.5-72B-Instruct"]
        assert main([*words, "--dry-run"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "ray-rl: error: the run does not fit:" in captured.err
        assert "each of these changes makes it fit:" in captured.err

    def test_more_gpus_than_the_nodes_have_are_refused(self, capsys):
        assert main(["submit", "ray-job", RECIPE, "run.dir=/runs", THEIRS, "cluster.nodes=1"]) == 2
        assert "cluster.nodes=1 * cluster.gpus_per_node=8: the cluster has 8 GPUs, but 16 GPUs are needed" in (
            capsys.readouterr().err
        )

    def test_a_model_of_unknown_shape_is_let_through_with_a_note(self, capsys):
        assert main(["submit", "ray-job", "run.yaml", "model.path=someone/novel", "--dry-run"]) == 0
        assert "note: the shape of someone/novel is not known: memory was not planned" in capsys.readouterr().err

    def test_a_relative_run_folder_is_refused_before_anybody_is_contacted(self, capsys):
        assert main(["submit", "ray-job", "run.yaml", "run.dir=runs", NOBODY]) == 2
        assert "run.dir=runs: a Ray job runs in a copy of the current folder" in capsys.readouterr().err

    def test_a_run_on_this_machine_is_not_submitted(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(["submit", "local", "run.yaml"])
        assert stopped.value.code == 2


RENDERING = {"slurm": "script", "kuberay": "manifest"}


def backend_modules(monkeypatch, name):
    """Scripted commands of a scheduler, which note what they are asked."""
    asked = []
    commands = types.ModuleType(f"ray_rl.launching.{name}.commands")
    rendering = types.ModuleType(f"ray_rl.launching.{name}.{RENDERING[name]}")

    def answer(kind, value):
        def called_with(*args, **options):
            asked.append((kind, args[-1], options))
            return value

        return called_with

    commands.submit = answer("submit", "17")
    commands.status = answer("status", "17: RUNNING")
    commands.logs = answer("logs", iter(["one\n", "two"]))
    commands.stop = answer("stop", "17: asked to save and end")
    rendering.render = lambda job: f"# {job.name}\n"
    package = importlib.import_module(f"ray_rl.launching.{name}")
    for module, attribute in ((commands, "commands"), (rendering, RENDERING[name])):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(package, attribute, module, raising=False)
    return asked


@pytest.mark.parametrize(
    ("backend", "given", "options"),
    [("slurm", [], {}), ("kuberay", ["--namespace", "team"], {"namespace": "team"})],
)
class TestSchedulers:
    def test_submit_hands_over_the_rendering_and_says_how_to_follow(self, backend, given, options, monkeypatch, capsys):
        asked = backend_modules(monkeypatch, backend)
        assert main(["submit", backend, "run.yaml", "launch.kuberay.namespace=team"]) == 0
        assert asked == [("submit", "# test\n", {})]
        assert f"ray-rl logs {' '.join([backend, '17', *given])} --follow" in capsys.readouterr().err

    def test_status_logs_and_stop_are_passed_on(self, backend, given, options, monkeypatch, capsys):
        asked = backend_modules(monkeypatch, backend)
        assert main(["status", backend, "17", *given]) == 0
        assert main(["logs", backend, "17", *given, "--follow"]) == 0
        assert main(["stop", backend, "17", *given]) == 0
        assert capsys.readouterr().out == "17: RUNNING\none\ntwo\n17: asked to save and end\n"
        follow = {"follow": True}
        assert asked == [("status", "17", options), ("logs", "17", follow | options), ("stop", "17", options)]

    def test_a_dry_run_of_stop_only_looks(self, backend, given, options, monkeypatch, capsys):
        asked = backend_modules(monkeypatch, backend)
        assert main(["stop", backend, "17", *given, "--dry-run"]) == 0
        assert [kind for kind, *_ in asked] == ["status"]
        assert "nothing was done" in capsys.readouterr().out
