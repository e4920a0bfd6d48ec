import pytest

from ray_rl.exit_codes import BAD_INPUT, CHECKPOINTED, DONE, FAILED
from ray_rl.launching.attempts import attempt_id, attempts_of, is_countable
from ray_rl.launching.attempts import is_tried_again as tried


def test_attempts_are_numbered_by_run():
    names = [attempt_id("a", 10), "a-2", "a-b-1", "a-0", "a-02", "a", "aa-4", "a-1-1"]
    assert attempts_of("a", names) == [2, 10]
    assert attempts_of("a.b", ["axb-1", "a.b-3"]) == [3]


@pytest.mark.parametrize(
    ("code", "failures", "retries", "again"),
    [
        (0, 0, 3, False),
        (2, 0, 3, False),
        (75, 0, 0, True),
        (75, 9, 3, True),
        (1, 1, 0, False),
        (1, 1, 1, True),
        (1, 2, 1, False),
        (137, 3, 3, True),
        (-9, 4, 3, False),
    ],
)
def test_done_and_misconfigured_are_final_saved_always_goes_on_and_failures_count(code, failures, retries, again):
    assert tried(code, failures=failures, retries=retries) is again


def test_only_failures_count():
    assert [is_countable(code) for code in (0, 1, 2, 75, 137)] == [False, True, False, False, True]


def test_the_codes_are_those_of_the_contract_with_schedulers():
    assert (DONE, FAILED, BAD_INPUT, CHECKPOINTED) == (0, 1, 2, 75)
