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


def clipped_token_loss(new, old, advantage, low, high, dual_clip=None, ratio_cap=None):
    ratio = math.exp(bounded(new - old))
    if ratio_cap is not None:
        ratio = min(ratio, ratio_cap)
    clipped_ratio = min(max(ratio, 1.0 - low), 1.0 + high)
    objective = min(ratio * advantage, clipped_ratio * advantage)
    if dual_clip is not None and advantage < 0:
        objective = max(objective, dual_clip * advantage)
    return -objective


def gspo_loss(new_row, old_row, advantage, low, high):
    if not new_row:
        return None
    mean = math.fsum(n - o for n, o in zip(new_row, old_row, strict=True)) / len(new_row)
    return clipped_token_loss(mean, 0.0, advantage, low, high)


def cispo_loss(new, old, advantage, low, high):
    return -min(max(math.exp(bounded(new - old)), low), high) * advantage * new


def sapo_loss(new, old, advantage, tau_positive, tau_negative):
    tau = tau_positive if advantage > 0 else tau_negative
    exponent = -tau * (math.exp(bounded(new - old)) - 1)
    gate = 0.0 if exponent > 700 else 1 / (1 + math.exp(exponent))
    return -advantage * gate * 4 / tau


def leave_one_out(rewards):
    scored = [i for i, r in enumerate(rewards) if not math.isnan(r)]
    advantages = [0.0 for _ in rewards]
    for i in scored:
        others = [rewards[j] for j in scored if j != i]
        if others:
            advantages[i] = rewards[i] - math.fsum(others) / len(others)
    return advantages


def gae_row(rewards, values, gamma, lam):
    """Advantages of one row without gaps, by the definition: a sum over all later deltas."""
    ahead = [*values[1:], 0.0][: len(values)]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, ahead, strict=True)]
    return [math.fsum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def whitened(values, ddof, eps, eps_is_floor):
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - ddof)
    scale = math.sqrt(max(variance, eps) if eps_is_floor else variance + eps)
    return [(v - mean) / scale for v in values]


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


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def dpo_pair(m, beta, smoothing=0.0, robust=False):
    """DPO's loss of a pair; m is how much more the policy prefers the chosen completion than the reference does."""
    right, wrong = -log_sigmoid(beta * m), -log_sigmoid(-beta * m)
    if robust:
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
    return (1 - smoothing) * right + smoothing * wrong


def ipo_pair(gap, beta):
    return (gap - 1 / (2 * beta)) ** 2


def simpo_pair(chosen, rejected, chosen_tokens, rejected_tokens, beta, margin):
    return -log_sigmoid(beta / chosen_tokens * chosen - beta / rejected_tokens * rejected - margin)


def log_odds(x):
    return math.log(math.exp(x) / -math.expm1(x))


def orpo_pair(chosen, rejected, chosen_tokens, rejected_tokens, beta):
    """The part of the odds ratio alone, without the likelihood."""
    return -beta * log_sigmoid(log_odds(chosen / chosen_tokens) - log_odds(rejected / rejected_tokens))


def kto_row(log_ratio, desirable, baseline, beta, desirable_weight, undesirable_weight):
    gap = log_ratio - baseline
    if desirable:
        return desirable_weight * (1 - math.exp(log_sigmoid(beta * gap)))
    return undesirable_weight * (1 - math.exp(log_sigmoid(-beta * gap)))


def bradley_terry_pair(chosen, rejected, margin=0.0, centering=0.0):
    return -log_sigmoid(chosen - rejected - margin) + centering * (chosen + rejected) ** 2


def step(good_logit, bad_logit, label):
    """Cross-entropy of the softmax over two labels."""
    total = math.exp(good_logit) + math.exp(bad_logit)
    return -label * math.log(math.exp(good_logit) / total) - (1 - label) * math.log(math.exp(bad_logit) / total)
