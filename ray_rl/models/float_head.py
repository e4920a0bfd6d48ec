"""A linear head that computes in float32 for any dtype of the weights."""

from __future__ import annotations

from torch import Tensor, nn


class FloatHead(nn.Module):
    """Maps hidden states to one number for each label, in float32: bfloat16 is too coarse for values and scores."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Makes a head from a weight [labels, D] and a bias [labels], which may be shards."""
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Returns float32 [N, labels]."""
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden_ND.float(), self.weight.float(), bias)
