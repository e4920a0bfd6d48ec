import pytest

from ray_rl.algorithms.kl_control import Adaptive, KlControl, adapted_kl_coefficient


@pytest.mark.parametrize(
    ("observed", "expected"),
    [(0.1, 0.2), (0.11, 0.2 * (1 + 0.1 * 0.0256)), (9.0, 0.2 * (1 + 0.2 * 0.0256)), (0.0, 0.2 * (1 - 0.2 * 0.0256))],
)
def test_the_coefficient_follows_the_bounded_relative_error(observed, expected):
    actual = adapted_kl_coefficient(0.2, observed, target=0.1, horizon=10000, samples=256)
    assert actual == pytest.approx(expected)


def test_a_horizon_that_would_turn_the_coefficient_negative_is_refused():
    with pytest.raises(ValueError, match=r"horizon=10 is too short for 256 sequences"):
        adapted_kl_coefficient(0.2, 0.0, target=0.1, horizon=10, samples=256)


def test_a_fixed_coefficient_stays():
    control = KlControl(0.1)
    control.observe(100.0, samples=64)
    assert control.coefficient == 0.1


def test_an_adaptive_coefficient_follows_the_divergence():
    control = KlControl(0.1, Adaptive(target=0.5, horizon=100.0))
    control.observe(0.55, samples=10)
    assert control.coefficient == pytest.approx(0.1 * 1.01)
    control.observe(0.0, samples=10)
    assert control.coefficient == pytest.approx(0.1 * 1.01 * 0.98)
