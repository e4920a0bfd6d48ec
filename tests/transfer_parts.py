"""What the two sides of a scripted publish share: parameters that meet the traps, and the threads of the parties."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from math import prod

import torch
from torch import nn

SHAPES = {
    "embed.weight": (31, 16),
    "layers.0.down.weight": (48, 32),
    "layers.0.down.bias": (48,),
    "layers.0.norm.weight": (7,),
    "layers.1.down.weight": (3, 5, 7),
    "layers.1.down.scale": (1,),
    "layers.1.norm.weight": (333,),
    "norm.weight": (15,),
}
"""Of all parameters; "head.weight" is tied to "embed.weight". In bfloat16: 992, 3072, 96, 14, 210, 2, 666 and 30 B."""
FROZEN = ("embed.weight", "layers.0.norm.weight")
CAPACITY_BYTES = 512
"""Of a bucket: two parameters are larger, and a layer is cut in two."""
LIMIT_S = 20.0
"""Of waits that end much earlier."""


def make_module(dtype: torch.dtype, device: str, *, beside: Mapping[str, tuple[int, ...]] = {}) -> nn.Module:
    """Modules and parameters by the names of `SHAPES` and `beside`, and a tied head."""
    root = nn.Module()
    for name, shape in (SHAPES | dict(beside)).items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)))
    root.head = nn.Module()
    root.head.weight = root.embed.weight
    return root


def wire_bytes(names, shapes=SHAPES):
    """Size of these parameters as sent."""
    return sum(2 * prod(shapes[name]) for name in names)


def use(device):
    """The current device of this thread."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)


def party():
    """Who this thread is: "actor-0", "rollout-1/0"; a pool's thread has its number behind that."""
    return threading.current_thread().name.rpartition("_")[0]


def outcome(call, *args):
    """What a call returns or raises, without the frames: they would keep sockets open that a dead process closes."""
    try:
        return call(*args)
    except BaseException as error:
        return error.with_traceback(None)
