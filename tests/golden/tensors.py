"""The fixed tensors that every loss and estimator is checked on, and nothing else.

Six rollouts, two prompts of three completions, nine positions:
    row 0  all nine tokens
    row 1  a gap inside, as a tool's answer leaves it
    row 2  empty: nothing was sampled that may be trained on
    row 3  short, the prompt's group has equal rewards
    row 4  in the "extreme" version the policy moved by +25 and -25 nats on two tokens
    row 5  a single token
"""

import torch
from torch import Tensor

GROUP_SIZE = 3

MASK_RT: Tensor = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
    dtype=torch.bool,
)

REWARDS_PG: Tensor = torch.tensor([[1.0, 0.0, 0.25], [0.9, 0.9, 0.9]])
"""Scored, the second group with zero variance."""

REWARDS_UNSCORED_PG: Tensor = torch.tensor([[1.0, float("nan"), 0.25], [float("nan"), 0.7, float("nan")]])
"""One completion without a score; then a group of one, as far as scores go."""

ADVANTAGES_R: Tensor = torch.tensor([1.5, -0.75, 0.5, 0.0, -1.25, 2.0])


def logprobs_RT(kind: str) -> Tensor:
    """float32 [6, 9] of "new", "extreme", "old" or "reference": smooth and distinct; garbage outside the mask.

    Whoever reads a position outside the mask gets 1e4 and notices.
    """
    position = torch.arange(54, dtype=torch.float64).view(6, 9)
    base = -1.0 - 0.9 * torch.sin(position * 1.3) ** 2
    shift = {"old": 0.0, "new": 0.4, "extreme": 0.4, "reference": 0.7}[kind]
    values = base + shift * torch.cos(position * 0.7 + 0.5)
    if kind == "extreme":
        values[4, 1] += 25.0
        values[4, 3] -= 25.0
    return values.masked_fill(~MASK_RT, 1e4).float()


def flat(values_RT: Tensor) -> Tensor:
    """The loss tokens of a [6, 9] tensor as [N], by row and position."""
    return values_RT[MASK_RT]


def flat_rows() -> Tensor:
    """int64 [N]: the row of each loss token."""
    return MASK_RT.nonzero()[:, 0]
