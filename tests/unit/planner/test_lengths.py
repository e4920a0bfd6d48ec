import math

import pytest

from ray_rl.errors import ConfigError
from ray_rl.planner.lengths import Lengths, parse_lengths


def test_without_the_option_all_completions_have_full_length():
    full = parse_lengths(None, maximum=100)
    assert full.is_full
    assert full.draws(3) == [100, 100, 100]
    assert full.longest_of(8) == full.quantile(0.1) == 100
    assert full.moments() == (100, 10_000)
    assert full.described() == "if every completion has full length"


@pytest.mark.parametrize(("mean", "sigma"), [(600, 1.0), (3000, 1.0), (2000, 0.3), (4000, 1.5)])
def test_lognormal_lengths_have_the_mean_once_they_are_cut_off(mean, sigma):
    lengths = parse_lengths(f"mean={mean},sigma={sigma}", maximum=4096)
    drawn = lengths.draws(20_000)
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=2e-3)
    assert max(drawn) <= 4096
    assert not lengths.is_full


def test_the_longest_of_many_is_longer_than_that_of_few():
    lengths = parse_lengths("mean=100", maximum=100_000)
    few, many = lengths.longest_of(10), lengths.longest_of(1000)
    assert lengths.quantile(0.5) < few < many
    # The 95th and the 99.95th percentile of a lognormal distribution of sigma 1, whose median is mean / sqrt(e).
    assert few == pytest.approx(100 / math.sqrt(math.e) * math.exp(1.6449), rel=1e-3)
    assert many == pytest.approx(100 / math.sqrt(math.e) * math.exp(3.2905), rel=1e-3)


def test_draws_mix_short_and_long():
    drawn = parse_lengths("mean=100", maximum=1000).draws(1000)
    first = sum(drawn[:100]) / 100
    assert first == pytest.approx(sum(drawn) / 1000, rel=0.1)
    assert drawn == parse_lengths("mean=100", maximum=1000).draws(1000)


def test_lengths_may_be_those_of_a_file(tmp_path):
    file = tmp_path / "lengths"
    file.write_text("300\n100\n\n200\n9000\n")
    lengths = parse_lengths(str(file), maximum=4096)
    assert lengths.measured == (100, 200, 300, 9000)
    assert sorted(lengths.draws(4)) == [100, 200, 300, 4096]
    assert lengths.moments()[0] == pytest.approx((100 + 200 + 300 + 4096) / 4)
    assert lengths.described() == ("if completions have 1,174 tokens on average (4 given lengths, at most 4,096)")


def test_prompts_have_a_mean_of_their_own():
    assert parse_lengths("mean=100,prompt=80", maximum=1000).prompt == 80
    only = parse_lengths("prompt=80", maximum=1000)
    assert (only.is_full, only.prompt) == (True, 80)
    assert parse_lengths("mean=100", maximum=1000).described() == (
        "if completions have 100 tokens on average (lognormal, sigma 1, at most 1,000)"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mean=many", "'mean=many' is not mean=, sigma=, prompt= and a number above 0"),
        ("average=3", "'average=3' is not mean="),
        ("mean=0", "'mean=0' is not"),
        ("mean=10,sigma", "'sigma' is not"),
        ("mean=1000", "the mean is not below rollout.max_tokens=1000"),
        ("nowhere.txt", r"cannot be read \(No such file or directory\); give a file with one length a line"),
    ],
)
def test_what_is_not_a_distribution_is_refused(text, reason):
    with pytest.raises(ConfigError, match=f"--lengths {text}: {reason}"):
        parse_lengths(text, maximum=1000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("100\nlong\n", "line 2 is 'long', not a number of tokens"), ("-1\n", "line 1 is '-1'"), ("\n", "has no lengths")],
)
def test_a_file_of_other_lines_is_refused(tmp_path, text, reason):
    file = tmp_path / "lengths"
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        parse_lengths(str(file), maximum=1000)


def test_a_distribution_is_a_value():
    assert Lengths(10) == parse_lengths(None, maximum=10)
