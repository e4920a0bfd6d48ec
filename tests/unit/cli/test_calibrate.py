import json
import subprocess
import sys
from pathlib import Path

import pytest

from ray_rl.cli import calibrate
from ray_rl.cli.main import main

CONFIG = "configs/grpo_addition_smollm2-135m_cpu.yaml"
MEASURED = {"products": 1e11, "narrow_products": 5e10, "copies": 2e10, "digests": 7e9, "layer_s": 1e-4, "loopback": 1e9}


@pytest.fixture
def probe(monkeypatch):
    """Replaces the process that measures by one with this output, or this exit code."""
    commands = []

    def answer(text="", *, code=0, error=""):
        def run(command, **_):
            commands.append(command)
            if text is None:
                raise subprocess.TimeoutExpired(command, 1)
            return subprocess.CompletedProcess(command, code, text, error)

        monkeypatch.setattr(calibrate.subprocess, "run", run)
        return commands

    return answer


def test_the_rates_of_this_machine_are_a_file_that_plan_reads(probe, capsys, tmp_path):
    commands = probe("a library says something\n" + json.dumps(MEASURED) + "\n")
    assert main(["plan", "--calibrate", CONFIG, "model.dtype=float32"]) == 0
    rates = tmp_path / "rates.json"
    rates.write_text(capsys.readouterr().out)
    assert commands == [[sys.executable, "-m", "ray_rl.preflight.rate_probe", "float32", "cpu"]]
    assert json.loads(rates.read_text())["measured_on"] == "cpu"
    assert main(["plan", CONFIG, "--rates", str(rates)]) == 0
    assert "\ntime of a step, " in capsys.readouterr().out


def test_a_measurement_that_fails_says_why(probe, capsys):
    probe(code=1, error="Traceback\nModuleNotFoundError: No module named 'torch'\n")
    assert main(["plan", "--calibrate", CONFIG, "cluster.accelerator=gpu", "cluster.address=auto"]) != 0
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("on cuda failed: ModuleNotFoundError: No module named 'torch'; it needs torch and a GPU")
    )
    probe(code=1)
    assert main(["plan", "--calibrate", CONFIG, "model.dtype=float32"]) != 0
    assert "the measurement in float32 on cpu failed: it said nothing; it needs torch\n" in capsys.readouterr().err
    probe(None)
    assert main(["plan", "--calibrate", CONFIG]) != 0
    assert "the measurement did not end within 600 s" in capsys.readouterr().err


def test_a_run_folder_gives_the_rates_of_its_phases(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text(Path(CONFIG).read_text(encoding="utf-8"))
    step = {
        "time/rollout_s": 8.0,
        "time/train_s": 13.0,
        "time/sync_s": 0.8,
        "rollout/length_mean": 18.0,
    }
    (tmp_path / "metrics.jsonl").write_text("\n".join([json.dumps(step)] * 3))
    assert main(["plan", "--calibrate", str(tmp_path), "--lengths", "mean=18,prompt=40"]) == 0
    rates = tmp_path / "rates.json"
    rates.write_text(capsys.readouterr().out)
    assert json.loads(rates.read_text())["steps"] == 2
    assert main(["plan", CONFIG, "--rates", str(rates), "--lengths", "mean=18,prompt=40"]) == 0
    out = capsys.readouterr().out.replace("\n    ", " ")
    assert ": 22 s: rollouts 8.0, scores 0, update 13, sync 0.80; " in out
    assert main(["plan", "--calibrate", str(tmp_path), "--rates", str(rates)]) == 0


def test_a_run_on_gpus_starts_from_the_data_sheet(capsys, tmp_path):
    recipe = "configs/grpo_math_qwen2.5-7b_8xh100.yaml"
    (tmp_path / "config.yaml").write_text(Path(recipe).read_text(encoding="utf-8"))
    step = {"time/rollout_s": 50, "time/reference_s": 60, "time/train_s": 150, "time/sync_s": 3}
    (tmp_path / "metrics.jsonl").write_text("\n".join([json.dumps({**step, "rollout/length_mean": 2048})] * 2))
    assert main(["plan", "--calibrate", str(tmp_path)]) == 0
    rates = json.loads(capsys.readouterr().out)
    assert 1e14 < rates["training"] < 4e14
