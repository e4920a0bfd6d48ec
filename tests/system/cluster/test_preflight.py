"""`ray-rl doctor --cluster` on three hosts with real links, well and with planted faults: each is named, and no other.

Times of the reports are in the output of `pytest -s`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ray_rl.config import RunConfig
from ray_rl.config.loading.load import dump_config
from tests.algorithm import algorithm
from tests.system.cluster.namespaces import PORT, UP_S, Hosts, why_impossible

pytestmark = pytest.mark.launch

ONE, TWO, THREE = (Hosts.address(number) for number in (1, 2, 3))
DOCTOR_S = 150
OF_THE_MACHINE = {"/dev/shm", "disk of runs", "disk of TMPDIR", "disk of ~/.cache"}
"""Checks that also say what is true of the machine that the test runs on."""


class Cluster:
    """Three hosts with Ray, and what the doctor says of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs, self.tmp, self.packages = folder / "runs", folder / "tmp", folder / "packages"
        for place in (self.runs, self.tmp, self.packages):
            place.mkdir()
        run = {
            "run": {"name": "preflight", "dir": str(self.runs), "steps": 1},
            "model": {"path": "tiny"},
            "data": {"kind": "addition"},
            "rewards": [{"kind": "number"}],
            "algorithm": algorithm(),
            "cluster": {"accelerator": "cpu", "nodes": 3, "address": f"{ONE}:{PORT}"},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(run))
        self.hosts = Hosts(3, folder)

    def start(self) -> None:
        own = [str(Path(__file__).parents[3])]
        for number in self.hosts.numbers:
            path = [str(self.packages), *own] if number == 2 else own
            variables = {"PYTHONPATH": ":".join(path), "TMPDIR": str(self.tmp)}
            self.hosts.start(number, environment=variables)
            if number == 1:
                self._await(1)
        self._await(3)

    def _await(self, count: int) -> None:
        program = f"import ray; ray.init(address='{ONE}:{PORT}', log_to_driver=False); print(len(ray.nodes()))"
        words = [sys.executable, "-c", program]
        deadline_s = time.monotonic() + UP_S
        while (done := self.hosts.command(1, *words, timeout_s=UP_S)).stdout.strip() != str(count):
            assert time.monotonic() < deadline_s, done.stdout + done.stderr + self.hosts.logs()
            time.sleep(0.5)

    def doctor(self, *words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "ray_rl.cli.main", "doctor", "--cluster", str(self.folder / "run.yaml")]
        begin_s = time.monotonic()
        done = self.hosts.command(1, *command, *words, timeout_s=DOCTOR_S)
        print(f"doctor {' '.join(words)}: {time.monotonic() - begin_s:.1f} s\n{done.stdout}{done.stderr}")
        return done


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = why_impossible()
    if reason:
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("preflight"))
    try:
        made.start()
        yield made
    finally:
        made.hosts.close()


@pytest.fixture(scope="module")
def healthy(cluster):
    """The report on the cluster as it is."""
    return cluster.doctor("--json")


@pytest.fixture(scope="module")
def planted(cluster, healthy):
    """The report with a fault of every kind, on different hosts where they would hide each other."""
    metadata = cluster.packages / "transformers-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.9.9\n")
    cluster.hosts.mount(2, "-t", "tmpfs", "none", str(cluster.runs))
    cluster.hosts.mount(3, "--bind", str(cluster.runs), str(cluster.runs))
    cluster.hosts.mount(3, "-o", "remount,bind,ro", str(cluster.runs))
    cluster.hosts.mount(3, "-t", "tmpfs", "-o", "size=64k", "none", str(cluster.tmp))
    cluster.hosts.command(3, "dd", "if=/dev/zero", f"of={cluster.tmp}/full", "bs=64k", timeout_s=30)
    kind = cluster.hosts.slow(2, 3)
    done = cluster.doctor("--json")
    cluster.hosts.heal(2, 3)
    return done, kind


def faults(done):
    findings = json.loads(done.stdout)["findings"]
    return {(one["name"], one.get("node", "")): one for one in findings if one["verdict"] != "ok"}


def test_a_healthy_cluster_has_no_faults(healthy):
    assert {name for name, _ in faults(healthy)} <= OF_THE_MACHINE, healthy.stdout + healthy.stderr
    is_fit = all(fault["verdict"] == "warn" for fault in faults(healthy).values())
    assert healthy.returncode == (0 if is_fit else 1)


def test_it_says_what_it_waits_for_apart_from_the_report(healthy):
    for words in ("nodes: waiting for 3 to say", "links: round 1 of 3", "all-reduce and broadcast over 3 ranks"):
        assert words in healthy.stderr


def test_every_size_and_every_pair_has_its_speed(healthy):
    report = json.loads(healthy.stdout)
    sizes = {(point["operation"], point["bytes"]) for point in report["bandwidth"]}
    assert {("all_reduce", 2**10), ("broadcast", 2**10), ("all_reduce", 2**25), ("broadcast", 2**25)} <= sizes
    assert all(point["bus_gb_s"] > 0 and point["ranks"] == 3 for point in report["bandwidth"])
    assert sorted(tuple(pair["nodes"]) for pair in report["pairs"]) == [(ONE, TWO), (ONE, THREE), (TWO, THREE)]
    assert all(min(pair["forth_gb_s"], pair["back_gb_s"], pair["round_trip_s"]) > 0 for pair in report["pairs"])


def test_the_canary_leaves_nothing_behind(cluster, healthy, planted):
    assert list(cluster.runs.iterdir()) == []


def test_exactly_the_planted_faults_are_named(healthy, planted):
    done, _ = planted
    found = faults(done)
    wanted = {
        ("transformers", TWO),
        ("shared folder", TWO),
        ("shared folder", THREE),
        ("disk of TMPDIR", THREE),
        ("link", f"{TWO} - {THREE}"),
    }
    assert done.returncode == 1
    assert {(name, node) for name, node in found if name not in OF_THE_MACHINE or (name, node) in wanted} == wanted
    assert {found[fault]["verdict"] for fault in wanted} == {"fail"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (("transformers", TWO), "9.9.9; the others have "),
        (("shared folder", TWO), "is not the file system that the driver sees: [Errno 2] No such file or directory"),
        (("shared folder", THREE), "cannot be written: [Errno 30] Read-only file system"),
        (("disk of TMPDIR", THREE), "0.0 GiB free at "),
        (("link", f"{TWO} - {THREE}"), f" GB/s from {TWO} to {THREE}, "),
    ],
)
def test_a_fault_is_told_with_what_was_seen_and_a_remedy(planted, fault, words):
    finding = faults(planted[0])[fault]
    assert words in finding["detail"]
    assert finding["remedy"]


def test_the_speed_of_the_slow_link_is_the_one_it_was_given(planted):
    """10 Mbit/s one way; the other way only acknowledgements share it."""
    pair = next(pair for pair in json.loads(planted[0].stdout)["pairs"] if pair["nodes"] == [TWO, THREE])
    assert pair["forth_gb_s"] == pytest.approx(10e6 / 8 / 1e9, rel=0.5)
    assert pair["back_gb_s"] > 10 * pair["forth_gb_s"]


def test_a_link_that_loses_everything_is_named_within_a_bound(cluster, planted):
    cluster.hosts.cut(2, 3)
    done = cluster.doctor()
    assert done.returncode == 1
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    links = [
        rest
        for verdict, name, rest in (line for line in lines if len(line) == 3)
        if (verdict, name) == ("fail", "link")
    ]
    assert len(links) == 1
    assert links[0].startswith(f"{TWO} - {THREE}: no answer: ")
    assert f"not measured over all nodes, since {TWO} - {THREE} did not answer" in done.stdout
    assert f"{ONE}  {TWO}" in done.stdout  # the table of the others


def test_a_cluster_that_is_not_there_is_said_at_once(cluster):
    done = cluster.doctor(f"cluster.address={ONE}:1")
    assert done.returncode == 1
    assert f"cluster.address={ONE}:1: no Ray started or answers there" in done.stderr


def test_without_an_address_there_is_nothing_to_look_at(make_config, tmp_path, capsys):
    from ray_rl.cli.main import main

    config: RunConfig = make_config(cluster={"accelerator": "cpu"})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert main(["doctor", "--cluster", str(tmp_path / "run.yaml")]) == 2
    assert "cluster.address=null: there is no cluster to check" in capsys.readouterr().err
