"""What is said of nodes, from what was seen on them."""

from dataclasses import replace

import pytest

from ray_rl.preflight.node_verdicts import Canary, NodeSight, Room, Wanted, judge_nodes

VERSIONS = {
    "python": "3.11.9",
    "torch": "2.13.0",
    "ray": "2.60.0",
    "vllm": "0.32.0",
    "deepspeed": "0.19.8",
    "transformers": "5.19.0",
    "ray_rl": "0.1.0, source 12345678",
}
WANTED = Wanted(nodes=3, gpus_per_node=8, folder="/shared/runs")


def sight(name, **fields):
    healthy = {
        "versions": VERSIONS,
        "gpus": 8,
        "gpu_trouble": "",
        "ray_gpus": 8,
        "shared_memory": Room("/dev/shm", 60.0, 64.0),
        "disks": {"disk of runs": Room("/shared", 900.0, 999.0), "disk of TMPDIR": Room("/tmp", 50.0, 99.0)},
        "clock_ahead_s": 0.002,
        "clock_doubt_s": 0.001,
        "canary": Canary(),
    }
    return NodeSight(name=name, **(healthy | fields))


def judged(silent=None, driver=VERSIONS, wanted=WANTED, **odd):
    """All findings on nodes a, b and c, of which c has what is odd."""
    return judge_nodes([sight("a"), sight("b"), sight("c", **odd)], silent or {}, driver, wanted)


def faults(findings):
    return [(finding.name, finding.verdict, finding.node) for finding in findings if finding.verdict != "ok"]


def test_a_healthy_cluster_has_one_line_a_check():
    findings = judged()
    assert faults(findings) == []
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names)) == 14
    assert findings[0].detail == "3 answer with 8 GPUs or more, cluster.nodes is 3: a, b, c"


@pytest.mark.parametrize(
    ("odd", "fault", "words"),
    [
        ({"versions": VERSIONS | {"vllm": "0.31.0"}}, ("vllm", "fail"), ["0.31.0; the others have 0.32.0"]),
        ({"versions": VERSIONS | {"python": "3.12.1"}}, ("python", "fail"), ["3.12.1", "3.11.9"]),
        ({"versions": VERSIONS | {"ray_rl": None}}, ("ray_rl", "fail"), ["not installed; the others have 0.1.0"]),
        ({"gpus": 7}, ("gpus", "fail"), ["7 listed by nvidia-smi, 8 known to Ray"]),
        ({"gpus": 0, "gpu_trouble": "no devices were found"}, ("gpus", "fail"), ["nvidia-smi: no devices were found"]),
        ({"shared_memory": Room("/dev/shm", 0.06, 0.0625)}, ("/dev/shm", "fail"), ["0.1 GiB free of 0.1"]),
        ({"shared_memory": Room("/dev/shm", 1.0, 64.0)}, ("/dev/shm", "warn"), ["1.0 GiB free of 64.0"]),
        ({"shared_memory": None}, ("/dev/shm", "warn"), ["missing"]),
        ({"clock_ahead_s": 31.0}, ("clock", "fail"), ["31.000 s ahead of the driver's"]),
        ({"clock_ahead_s": -2.5}, ("clock", "warn"), ["2.500 s behind the driver's"]),
        ({"canary": Canary(unread="no such file")}, ("shared folder", "fail"), ["not the file system", "no such file"]),
        ({"canary": Canary(unwritten="[Errno 30] Read-only file system", unseen="x")}, ("shared folder", "fail"),
         ["/shared/runs cannot be written: [Errno 30] Read-only"]),
        ({"canary": Canary(unseen="no such file")}, ("shared folder", "fail"), ["the driver does not see what"]),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_node_and_what_to_do(odd, fault, words):
    findings = judged(**odd)
    assert faults(findings) == [(*fault, "c")]
    (finding,) = (finding for finding in findings if finding.verdict != "ok")
    assert all(word in finding.detail for word in words)
    assert finding.remedy


def test_a_full_disk_is_named_among_others():
    disks = {"disk of runs": Room("/shared", 900.0, 999.0), "disk of TMPDIR": Room("/tmp", 0.0, 0.1)}
    assert faults(judged(disks=disks)) == [("disk of TMPDIR", "fail", "c")]


def test_a_difference_of_clocks_within_the_doubt_is_none():
    assert faults(judged(clock_ahead_s=1.4, clock_doubt_s=0.5)) == []
    assert faults(judged(clock_ahead_s=1.6, clock_doubt_s=0.5)) == [("clock", "warn", "c")]


def test_a_driver_that_differs_from_all_nodes_is_the_odd_one():
    assert faults(judged(driver=VERSIONS | {"torch": "2.12.0"})) == [("torch", "fail", "the driver")]


def test_of_two_versions_that_are_as_frequent_the_drivers_is_right():
    two = [sight("a"), sight("b", versions=VERSIONS | {"torch": "2.12.0"})]
    driver = VERSIONS | {"torch": "2.12.0"}
    found = judge_nodes(two, {}, driver, replace(WANTED, nodes=2))
    assert faults(found) == [("torch", "fail", "a")]
    found = judge_nodes(two[1:], {}, VERSIONS, replace(WANTED, nodes=1))
    assert faults(found) == [("torch", "fail", "b")]
    assert "2.12.0; the driver has 2.13.0" in next(f for f in found if f.verdict != "ok").detail


def test_a_package_that_nobody_has_is_one_failure():
    nobody = VERSIONS | {"vllm": None}
    found = judge_nodes([sight(name, versions=nobody) for name in "abc"], {}, nobody, WANTED)
    assert faults(found) == [("vllm", "fail", "")]


def test_a_node_that_does_not_answer_is_named():
    silent = {"d": "nothing within 60 s"}
    findings = judged(silent=silent)
    assert faults(findings) == [("nodes", "fail", "d")]
    assert findings[0].detail == "did not answer: nothing within 60 s"
    assert faults(judge_nodes([], silent, VERSIONS, WANTED)) == [("nodes", "fail", "d"), ("nodes", "fail", "")]


def test_too_few_nodes_are_a_failure():
    found = judged(wanted=replace(WANTED, nodes=4))
    assert faults(found) == [("nodes", "fail", "")]
    assert found[0].detail.startswith("3 answer with 8 GPUs or more, cluster.nodes is 4")


def test_a_node_without_gpus_is_for_work_on_cpu_and_does_not_count():
    assert faults(judged(gpus=0, ray_gpus=0)) == [("nodes", "fail", "")]
    assert faults(judged(gpus=0, ray_gpus=0, wanted=replace(WANTED, nodes=2))) == []


def test_a_node_with_fewer_gpus_than_the_run_wants_is_named():
    found = judged(gpus=4, ray_gpus=4, wanted=replace(WANTED, nodes=2))
    assert faults(found) == [("gpus", "fail", "c")]
    assert "cluster.gpus_per_node is 8" in next(f for f in found if f.verdict != "ok").detail


def test_a_run_on_cpu_wants_no_gpus():
    assert faults(judged(gpus=0, ray_gpus=2, wanted=replace(WANTED, gpus_per_node=0))) == []
