"""Lengths of completions, from which the time of a step follows: all at the limit, lognormal, or those of a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist, fmean

from ray_rl.errors import ConfigError

SIGMA = 1.0
"""Standard deviation of the logarithm of a length, if it is not given: long answers are several times the mean."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Step of the sequence that draws from a distribution evenly, in an order that mixes short and long."""

NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of the tokens of a completion, and the mean tokens of a prompt."""

    maximum: float
    """Tokens at which a completion is cut off: `rollout.max_tokens`."""
    median: float | None = None
    """Median of the lognormal distribution before it is cut off; None if all completions have the maximum."""
    sigma: float = SIGMA
    """Standard deviation of the logarithm of a length."""
    measured: tuple[float, ...] = ()
    """Lengths in ascending order that replace the lognormal distribution."""
    prompt: float | None = None
    """Mean tokens of a prompt; None is `data.max_prompt_tokens`."""

    def quantile(self, share: float) -> float:
        """Returns the length that this share of the completions does not exceed, for a share above 0 and below 1."""
        if self.measured:
            return min(self.measured[int(share * len(self.measured))], self.maximum)
        if self.median is None:
            return self.maximum
        return min(self.median * math.exp(self.sigma * NORMAL.inv_cdf(share)), self.maximum)

    def draws(self, count: int) -> list[float]:
        """Returns as many lengths as drawn, in an order that mixes short and long; always the same ones."""
        if self.measured or self.median is not None:
            shares = sorted(range(count), key=lambda index: (index + 1) * GOLDEN % 1)
            lengths = [0.0] * count
            for rank, index in enumerate(shares):
                lengths[index] = self.quantile((rank + 0.5) / count)
            return lengths
        return [self.maximum] * count

    @property
    def is_full(self) -> bool:
        """Whether all completions have the maximum."""
        return self.median is None and not self.measured

    def longest_of(self, count: int) -> float:
        """Returns the longest of so many draws, as expected."""
        return self.quantile(1 - 0.5 / count)

    def moments(self) -> tuple[float, float]:
        """Returns the mean of the length, and of its square."""
        if self.is_full:
            return self.maximum, self.maximum**2
        return _drawn_moments(self)

    def described(self) -> str:
        """Returns a phrase: "if every completion has full length"."""
        if self.is_full:
            return "if every completion has full length"
        mean, _ = self.moments()
        shape = f"{len(self.measured):,} given lengths" if self.measured else f"lognormal, sigma {self.sigma:g}"
        return f"if completions have {mean:,.0f} tokens on average ({shape}, at most {self.maximum:,.0f})"


def parse_lengths(text: str | None, *, maximum: int) -> Lengths:
    """Returns the distribution that the option `--lengths` describes.

    Args:
        text: "mean=600", also with sigma= and prompt=; the path of a file with one length a line; or None for
            completions of full length.
        maximum: `rollout.max_tokens`.

    Raises:
        ConfigError: the text is neither, a number is impossible, or the file cannot be read.
    """
    if text is None:
        return Lengths(maximum)
    if "=" not in text:
        return Lengths(maximum, measured=_read(Path(text)))
    given = _numbers(text)
    prompt = given.get("prompt")
    if "mean" not in given:
        return Lengths(maximum, prompt=prompt)
    sigma = given.get("sigma", SIGMA)
    if not given["mean"] < maximum:
        raise ConfigError(
            f"--lengths {text}: the mean is not below rollout.max_tokens={maximum}, at which completions are cut off; "
            "give a smaller mean, or leave the option out for completions of full length"
        )
    return Lengths(maximum, median=_median(given["mean"], sigma, maximum), sigma=sigma, prompt=prompt)


@lru_cache
def _drawn_moments(lengths: Lengths) -> tuple[float, float]:
    drawn = lengths.draws(1000)
    return fmean(drawn), fmean(length**2 for length in drawn)


def _numbers(text: str) -> Mapping[str, float]:
    """Returns the numbers of "mean=600,sigma=0.8"."""
    known, numbers = ("mean", "sigma", "prompt"), {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if key not in known or not 0 < number < math.inf:
            raise ConfigError(
                f"--lengths {text}: {part!r} is not {'=, '.join(known)}= and a number above 0; give for example "
                "mean=600, or mean=600,sigma=0.8,prompt=120, or a file with one length a line"
            )
        numbers[key] = number
    return numbers


def _read(path: Path) -> tuple[float, ...]:
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"--lengths {path}: cannot be read ({error.strerror}); give a file with one length a line, or mean=600"
        ) from None
    lengths = []
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            length = float(line)
        except ValueError:
            length = math.nan
        if not 0 < length < math.inf:
            raise ConfigError(f"--lengths {path}: line {row} is {line!r}, not a number of tokens; correct it")
        lengths.append(length)
    if not lengths:
        raise ConfigError(f"--lengths {path}: has no lengths; write one a line")
    return tuple(sorted(lengths))


def _median(mean: float, sigma: float, maximum: float) -> float:
    """Returns the median of the lognormal distribution that has this mean once it is cut off."""
    low, high = 0.0, 1.0
    while _cut_mean(high, sigma, maximum) < mean:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cut_mean(middle, sigma, maximum) < mean else (low, middle)
    return high


def _cut_mean(median: float, sigma: float, maximum: float) -> float:
    """Returns E[min(X, maximum)] of the lognormal distribution."""
    z = (math.log(maximum) - math.log(median)) / sigma
    return median * math.exp(sigma**2 / 2) * NORMAL.cdf(z - sigma) + maximum * (1 - NORMAL.cdf(z))
