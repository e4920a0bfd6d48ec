import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_rl.app import before_start
from ray_rl.app.before_start import check_installed
from ray_rl.errors import UserError

CONFIG = Path(__file__).parents[3] / "configs" / "grpo_addition_smollm2-135m_cpu.yaml"


def test_a_missing_package_is_named_before_anything_starts(monkeypatch):
    monkeypatch.setattr(before_start, "NEEDED", ("json", "no_such_package_1", "no_such_package_2"))
    with pytest.raises(UserError) as caught:
        check_installed()
    assert str(caught.value) == (
        "training needs no_such_package_1, no_such_package_2, which are not installed; "
        "pip install -r docker/requirements-cpu.txt (or -gpu.txt), then see `ray-rl doctor`"
    )


PROBE = """
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
        [sys.executable, "-c", PROBE, "train", str(CONFIG), "run.steps=3"],
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
