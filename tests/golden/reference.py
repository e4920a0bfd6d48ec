"""Slow float64 versions of the formulae, in plain Python, written from the papers and not from the code under test.

Lists of rows of lists of floats; one loop a sum. Nothing here is clever.
"""

import math


def group_advantage(rewards, divide_by_std, eps):
    scored = [r for r in rewards if not math.isnan(r)]
    if len(scored) < 2 or max(scored) == min(scored):
        return [0.0 for _ in rewards]
    mean = math.fsum(scored) / len(scored)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in scored) / len(scored))
    scale = std + eps if divide_by_std else 1.0
    return [0.0 if math.isnan(r) else (r - mean) / scale for r in rewards]


def bounded(log_ratio):
    return min(max(log_ratio, -20.0), 20.0)


def clipped_token_loss(new, old, advantage, low, high):
    ratio = math.exp(bounded(new - old))
    clipped_ratio = min(max(ratio, 1.0 - low), 1.0 + high)
    return -min(ratio * advantage, clipped_ratio * advantage)


def kl(new, reference, estimator):
    d = reference - new
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    return math.exp(bounded(d)) - bounded(d) - 1


def reduce(losses_by_row, reduction):
    """The reduced loss of the whole batch: token_mean or sequence_mean; empty rows do not count."""
    rows = [row for row in losses_by_row if row]
    if reduction == "token_mean":
        return math.fsum(x for row in rows for x in row) / sum(len(row) for row in rows)
    return math.fsum(math.fsum(row) / len(row) for row in rows) / len(rows)


def by_row(values_RT, mask_RT):
    """The masked values of each row, as lists."""
    return [
        [float(v) for v, m in zip(values, mask, strict=True) if m]
        for values, mask in zip(values_RT.tolist(), mask_RT.tolist(), strict=True)
    ]
