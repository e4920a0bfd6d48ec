"""The parts of a model under training that can leave its device."""

from typing import Literal

Part = Literal["weights", "states"]
"""weights: what a forward pass reads and engines receive. states: the rest, of gradients and the optimizer."""

PARTS: tuple[Part, ...] = ("weights", "states")
