"""Which pairs are measured when, and what is said of their speeds."""

from itertools import combinations

import pytest

from ray_rl.preflight.link_verdicts import PairSpeed, SweepPoint, judge_links, judge_sweep, rounds, size_text, suspects


def pairs(names, slow=(), rate=10.0, **trouble):
    """A speed for each pair; those in `slow` have a hundredth of the others'."""
    found = []
    for a, b in combinations(names, 2):
        if a + b in trouble:
            found.append(PairSpeed(nodes=(a, b), trouble=trouble[a + b]))
        else:
            forth = rate / 100 if a + b in slow else rate
            found.append(PairSpeed(nodes=(a, b), forth_gb_s=forth, back_gb_s=rate, round_trip_s=1e-4))
    return found


@pytest.mark.parametrize("count", range(12))
def test_rounds_have_every_pair_once_and_no_node_twice_at_a_time(count):
    plan = rounds(count)
    assert sorted(pair for together in plan for pair in together) == list(combinations(range(count), 2))
    for together in plan:
        nodes = [node for pair in together for node in pair]
        assert len(nodes) == len(set(nodes))
    assert len([together for together in plan if together]) == (0 if count < 2 else count - 1 + count % 2)


def test_bandwidth_of_the_bus_is_that_of_nccl_tests():
    # 8 ranks, 1 GB in 7.5 ms: all-reduce moves 2 * 7/8 of it over every link.
    assert SweepPoint("all_reduce", 10**9, 8, 7.5e-3).bus_gb_s == pytest.approx(1.75 / 7.5e-3)
    assert SweepPoint("broadcast", 10**9, 8, 7.5e-3).bus_gb_s == pytest.approx(1 / 7.5e-3)


def test_equal_links_are_one_line():
    (finding,) = judge_links(pairs("abcd"))
    assert (finding.verdict, finding.detail) == ("ok", "6 pairs, 10 to 10 GB/s")


@pytest.mark.parametrize("names", ["abc", "abcd", "abcdef"])
def test_a_slow_pair_is_named_with_its_speeds(names):
    (finding,) = judge_links(pairs(names, slow=["bc"]))
    assert (finding.name, finding.verdict, finding.node) == ("link", "fail", "b - c")
    assert finding.detail == "0.1 GB/s from b to c, 10 GB/s back; the median of the other pairs is 10 GB/s"
    assert "between the two" in finding.remedy


@pytest.mark.parametrize(("rate", "verdicts"), [(4.0, ["ok"]), (3.0, ["warn"]), (1.1, ["warn"]), (0.9, ["fail"])])
def test_a_third_of_the_median_is_a_warning_and_a_tenth_a_failure(rate, verdicts):
    speeds = [*pairs("abc"), PairSpeed(nodes=("a", "d"), forth_gb_s=rate, back_gb_s=20.0)]
    assert [finding.verdict for finding in judge_links(speeds)] == verdicts


def test_a_pair_that_does_not_answer_fails():
    (finding,) = judge_links(pairs("abc", bc="c: nothing within 30 s"))
    assert (finding.verdict, finding.node, finding.detail) == ("fail", "b - c", "no answer: c: nothing within 30 s")
    (finding,) = judge_links(pairs("ab", ab="refused"))
    assert (finding.verdict, finding.node) == ("fail", "a - b")


@pytest.mark.parametrize("names", ["abc", "abcd", "abcde"])
def test_a_node_all_of_whose_links_are_slow_is_named_in_the_remedy(names):
    findings = judge_links(pairs(names, slow=["a" + name for name in names[1:]]))
    assert [finding.node for finding in findings] == [f"a - {name}" for name in names[1:]]
    assert {finding.verdict for finding in findings} == {"fail"}
    assert all("all links of a are like this" in finding.remedy for finding in findings)


def test_the_only_pair_is_compared_with_a_floor():
    assert judge_links(pairs("ab", rate=0.1))[0].verdict == "ok"
    (finding,) = judge_links(pairs("ab", rate=0.01))
    assert (finding.verdict, finding.node, finding.detail) == (
        "warn",
        "a - b",
        "0.01 GB/s from a to b, 0.01 GB/s back",
    )


def test_of_several_rails_of_a_pair_the_worst_is_named():
    speeds = [
        PairSpeed(nodes=nodes, rail=rail, forth_gb_s=0.5 + rail if nodes == ("b", "c") and rail else 40, back_gb_s=40)
        for nodes in [("a", "b"), ("a", "c"), ("b", "c")]
        for rail in range(3)
    ]
    assert len(suspects(speeds)) == 2
    (finding,) = judge_links(speeds)
    assert (finding.node, finding.verdict) == ("b - c", "fail")
    assert finding.detail.startswith("1.5 GB/s from b to c, 40 GB/s back, GPU 1 of both")


def test_one_node_has_no_links():
    assert [finding.verdict for finding in judge_links([])] == ["ok"]
    assert judge_sweep([], "")[0].verdict == "ok"


def test_a_sweep_is_told_by_its_best_sizes():
    points = [
        SweepPoint("all_reduce", 2**10, 2, 1e-3),
        SweepPoint("all_reduce", 2**20, 2, 1e-3),
        SweepPoint("broadcast", 2**20, 2, 2e-3),
    ]
    (finding,) = judge_sweep(points, "")
    assert finding.detail == "over 2 ranks: all_reduce 1.05 GB/s at 1 MiB, broadcast 0.524 GB/s at 1 MiB"


def test_a_sweep_that_failed_fails():
    (finding,) = judge_sweep([], "1 of 3 ranks failed: c rank 0: killed")
    assert (finding.verdict, finding.detail) == ("fail", "1 of 3 ranks failed: c rank 0: killed")


@pytest.mark.parametrize(("count", "text"), [(512, "512 B"), (2**10, "1 KiB"), (2**25, "32 MiB"), (2**30, "1 GiB")])
def test_sizes_are_in_binary_units(count, text):
    assert size_text(count) == text
