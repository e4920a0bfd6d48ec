import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_rl.rollout.router import Router

TOKENS = st.integers(min_value=1, max_value=10_000)


def test_requests_go_where_the_fewest_tokens_are_outstanding_and_ties_to_the_first():
    router = Router(3)
    with router.place(5) as a, router.place(3) as b, router.place(4) as c, router.place(1) as d, router.place(1) as e:
        assert [a, b, c, d, e] == [0, 1, 2, 1, 1]
        assert router.outstanding == (5, 5, 4)


def test_a_request_that_fails_is_no_longer_outstanding():
    router = Router(1)
    with pytest.raises(ValueError, match="broken"), router.place(7):
        raise ValueError("broken")
    assert router.outstanding == (0,)


@given(engines=st.integers(1, 5), script=st.lists(st.one_of(TOKENS, st.integers(-20, -1)), max_size=60))
def test_every_request_goes_to_a_least_loaded_engine_and_no_load_is_ever_negative(engines, script):
    """A positive number places a request of that many tokens; a negative one ends one of those that run."""
    router = Router(engines)
    running = []
    loads = [0] * engines
    for action in script:
        if action > 0:
            place = router.place(action)
            engine = place.__enter__()
            assert loads[engine] == min(loads)
            loads[engine] += action
            running.append((place, engine, action))
        elif running:
            place, engine, tokens = running.pop(action % len(running))
            place.__exit__(None, None, None)
            loads[engine] -= tokens
        assert router.outstanding == tuple(loads)
        assert min(loads) >= 0
    for place, _, _ in running:
        place.__exit__(None, None, None)
    assert router.outstanding == (0,) * engines
