"""Commands as processes: what they import, how quickly they answer, and how a signal ends them before a run begins."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "grpo_addition_smollm2-135m_cpu.yaml"
PROBE = """
import sys
from ray_rl.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "transformers", "ray", "vllm", "deepspeed", "numpy"} & set(sys.modules)
raise SystemExit(f"imported {heavy}" if heavy else code)
"""
RENDER = ["render", "slurm", "--help"]


def processor_s_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["validate", str(CONFIG)], ["doctor", "--json"], RENDER]
)
def test_light_commands_answer_quickly_and_import_nothing_heavy(words, tmp_path):
    before_s = processor_s_of_children()
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert processor_s_of_children() - before_s < 2  # on a machine that is busy with something else, too
    assert list(tmp_path.iterdir()) == []


def test_the_module_advises_commands_that_begin_with_the_script_next_to_its_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "ray_rl.cli.main", "train", CONFIG, "--resume", "here"],
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert f"to continue a run folder: {Path(sys.executable).with_name('ray-rl')} resume here" in done.stderr


FIRST_LINE = """
import sys
from ray_rl.app import before_start
from ray_rl.cli.main import main
from ray_rl.errors import UserError
def stop(config, progress):
    heavy = {"torch", "transformers", "ray", "vllm", "deepspeed", "numpy", "rich"} & set(sys.modules)
    print(sorted(heavy))
    raise UserError("enough")
before_start.CHECKS = (stop,)
raise SystemExit(main(sys.argv[1:]))
"""


def test_the_first_line_comes_before_any_heavy_import_and_says_what_comes_next(tmp_path):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LINE, "train", str(CONFIG), "run.steps=3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "ray-rl: error: enough\n")
    assert time.monotonic() - started < 5
    assert done.stdout == (
        "grpo-addition: training smollm2-135m-instruct on CPU, 3 steps; checking data and models, then starting Ray\n"
        "[]\n"
    )


STOPPED = """
import os, signal, sys
from ray_rl.app import before_start
from ray_rl.cli.main import main
def stop(config, progress):
    try:
        os.kill(os.getpid(), int(os.environ["NUMBER"]))
    except Exception as error:
        print("taken for an error")
before_start.CHECKS = (stop,)
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_scheduler_that_stops_a_run_during_its_checks_is_told_to_start_it_again(tmp_path, name):
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, "train", str(CONFIG)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"NUMBER": str(int(signal.Signals[name]))},
        timeout=60,
        check=False,
    )
    assert done.returncode == 75
    assert done.stderr == f"ray-rl: stopped by {name} before the run began; nothing was lost: start it again\n"
    assert list(tmp_path.iterdir()) == []
