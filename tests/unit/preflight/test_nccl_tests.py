"""The output of nccl-tests, as recorded on 8 x H100, and of versions with other columns."""

import pytest

from ray_rl.preflight.nccl_tests import MISSING, NcclTest, judge_nccl_tests, parse

RECORDED = """\
# nThread 1 nGpus 8 minBytes 268435456 maxBytes 2147483648 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid 1623025 on    host device  0 [0x19] NVIDIA H100 80GB HBM3
#  Rank  7 Group  0 Pid 1623025 on    host device  7 [0xdf] NVIDIA H100 80GB HBM3
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
   268435456      67108864     float     sum      -1   1119.8  239.71  419.49      0   1117.4  240.24  420.42      0
   536870912     134217728     float     sum      -1   2157.5  248.83  435.46      0   2154.8  249.16  436.02      0
  1073741824     268435456     float     sum      -1   4027.3  266.61  466.57      0   4029.1  266.50  466.37      0
  2147483648     536870912     float     sum      -1   7983.5  268.99  470.73      0   7985.2  268.93  470.63      0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 448.212
#
"""  # noqa: E501 - as it was printed

OLD = """\
#       size         count      type   redop     time   algbw   busbw  error     time   algbw   busbw  error
#        (B)    (elements)                       (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
  1310720000     327680000     float     sum  2118150    0.62    0.62  0e+00  2117983    0.62    0.62  0e+00
"""

BROADCAST = """\
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
     1048576        262144     float    none       0    31.05   33.77   33.77      0    30.91   33.92   33.92    N/A
"""


def test_bus_bandwidth_is_read_out_of_place_by_size():
    assert parse(RECORDED) == {268435456: 419.49, 536870912: 435.46, 1073741824: 466.57, 2147483648: 470.73}


def test_columns_are_found_by_their_names():
    assert parse(OLD) == {1310720000: 0.62}
    assert parse(BROADCAST) == {1048576: 33.77}


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("Test NCCL failure common.cu:958 'unhandled cuda error'", "no table in what it printed: Test NCCL failure"),
        (RECORDED.replace("419.49      0", "419.49      3"), "#wrong is not 0: 268435456"),
        (RECORDED.replace("  435.46      0", "  435.46"), "a row has 12 columns and the header 13: 536870912"),
    ],
)
def test_what_is_no_result_is_an_error(output, words):
    with pytest.raises(ValueError, match="^" + words.replace("(", r"\(")):
        parse(output)


def test_nodes_are_compared_by_their_best():
    fast, slow = NcclTest({2**20: 50.0, 2**28: 420.0}), NcclTest({2**20: 50.0, 2**28: 120.0})
    results = {
        "a": {"all_reduce_perf": fast},
        "b": {"all_reduce_perf": fast},
        "c": {"all_reduce_perf": slow},
    }
    (finding,) = judge_nccl_tests(results)
    assert (finding.name, finding.verdict, finding.node) == ("all_reduce_perf", "warn", "c")
    assert finding.detail == "120 GB/s; the median of the other nodes is 420 GB/s"
    (finding,) = judge_nccl_tests({"a": results["a"], "b": results["b"]})
    assert (finding.verdict, finding.detail) == ("ok", "420 to 420 GB/s in a node")


def test_a_program_that_fails_is_named_with_its_node_and_one_that_is_missing_is_no_failure():
    results = {
        "a": {"broadcast_perf": NcclTest({}, trouble="exit code 1: unhandled cuda error")},
        "b": {"broadcast_perf": NcclTest({}, trouble=MISSING)},
    }
    failed, missing = judge_nccl_tests(results)
    assert (failed.verdict, failed.node, failed.detail) == ("fail", "a", "exit code 1: unhandled cuda error")
    assert (missing.verdict, missing.detail) == (
        "ok",
        "not in PATH on b (optional): links are measured without",
    )
