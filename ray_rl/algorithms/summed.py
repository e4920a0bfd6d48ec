"""The result of a loss over a part of an optimizer step: sums and counts, which add up over the parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """Sums over a micro-batch. Those of all micro-batches of all ranks add up to those of the optimizer step."""

    loss_sum: Tensor
    """Scalar, differentiable, to be divided by the count of the whole optimizer step."""
    means: dict[str, tuple[float, float]]
    """Total and count by name; total / count is the mean. Names have no prefix: training and evaluation add theirs."""
    each: Mapping[str, Tensor] = field(default_factory=dict)
    """One value for each pair or row, in their order, by name; without a gradient."""


def summed(
    loss_sum: Tensor, terms: Mapping[str, tuple[Tensor, Tensor | int]], *, each: Mapping[str, Tensor] | None = None
) -> Summed:
    """Returns the loss with its metrics, copied to the host in one transfer: several would each wait for the device.

    Args:
        loss_sum: scalar, differentiable.
        terms: the values of each metric, and what their mean is over: a mask or lengths, which are added up as well, or
            a number.
        each: one value for each pair or row, by name.
    """
    with torch.no_grad():
        sums = [values.sum() for values, _ in terms.values()]
        sums += [count.sum() for _, count in terms.values() if isinstance(count, Tensor)]
        numbers = torch.stack([number.double() for number in sums]).tolist()
    totals, counted = dict(zip(terms, numbers, strict=False)), iter(numbers[len(terms) :])
    counts = {name: next(counted) if isinstance(count, Tensor) else float(count) for name, (_, count) in terms.items()}
    means = {name: (totals[name], counts[name]) for name in terms}
    return Summed(loss_sum=loss_sum, means=means, each={name: value.detach() for name, value in (each or {}).items()})
