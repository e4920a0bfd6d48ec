"""A command whose output nobody reads, or which has no room for it."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "grpo_addition_smollm2-135m_cpu.yaml"
COMMAND = [sys.executable, "-m", "ray_rl.cli.main"]


@pytest.fixture
def shell(tmp_path):
    def run(line):
        return subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
        )

    return run


@pytest.mark.parametrize("command", [f"validate {CONFIG}", "--help"])
def test_a_reader_that_leaves_early_changes_neither_exit_code_nor_standard_error(command, shell):
    program = " ".join(COMMAND)
    gone = shell(f"{program} {command} | true; echo ${{PIPESTATUS[0]}}")
    assert (gone.stdout, gone.stderr) == ("0\n", "")


def test_the_exit_code_of_a_wrong_configuration_survives_a_lost_standard_error(shell):
    program = " ".join(COMMAND)
    line = f"({program} validate {CONFIG} run.steps=0 2>&1; echo $? >&3) 3>&1 >/dev/null | cat"
    assert shell(line).stdout == "2\n"
    line = f"({program} validate {CONFIG} run.steps=0; echo $? >&3) 3>&1 2>&1 >&- | cat"
    assert shell(line).stdout.endswith("2\n")
    assert shell(f"{program} validate {CONFIG} run.steps=0 2>/dev/full").returncode == 2


def test_a_command_whose_output_has_no_room_fails_and_says_so(shell):
    done = shell(f"{' '.join(COMMAND)} validate {CONFIG} > /dev/full")
    assert (done.returncode, done.stderr) == (
        1,
        "ray-rl: error: standard output is on a disk that is full; make room there\n",
    )


def test_closed_streams_are_no_error(shell):
    assert shell(f"{' '.join(COMMAND)} validate {CONFIG} >&- 2>&- <&-").returncode == 0
