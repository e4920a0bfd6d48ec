"""What bitsandbytes says where nobody asked for weights in 4 bits."""

import subprocess
import sys

import pytest

CODE = """
import logging

import ray_rl.models.adapter
import peft

assert "bitsandbytes" in sys.modules
log = logging.getLogger("bitsandbytes.backends.cpu.ops")
log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named kernels")
log.warning("Failed to load something else")
"""


def test_the_line_about_a_kernel_that_no_trainer_uses_is_not_printed_and_others_are():
    pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", "import sys" + CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "gemm_4bit_forward" not in done.stdout + done.stderr
    assert "Failed to load something else" in done.stderr
