"""The rates that a time is computed from: shares of a GPU's data sheet, or rates that were measured."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from ray_rl.errors import ConfigError
from ray_rl.planner.gpus import Speed

TRAINING_SHARE = 0.4
"""Share of the peak that large matrix products of training reach; small micro-batches reach less (`LAUNCH_S`)."""
SCORING_SHARE = 0.45
"""The same in passes without gradients and in prefill."""
BANDWIDTH_SHARE = 0.6
"""Share of the memory bandwidth that decoding reaches."""
LINK_SHARE = 0.7
"""Share of the links between GPUs and of the network that collectives reach."""
LAUNCH_S = 150e-6
"""Seconds that a decoder layer takes however few tokens it has: about 25 kernels of transformers' eager code."""
FRONT_END_S = 40e-6
"""Processor seconds of an engine's front end for a token: measured 120e-6 on two AVX2 cores, a third on a server."""
HOST_BYTES_PER_S = 20e9
"""Copies between a GPU and pinned memory of the host."""
DIGEST_BYTES_PER_S = 70e9
"""Checksums of a publish, on the sender and on each receiver (`weight_sync.proof`)."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Sustained rates of one GPU, or on CPU of the whole machine, per second."""

    training: float
    """Operations of training with large micro-batches."""
    scoring: float
    """Operations of passes without gradients."""
    decoding: float
    """Operations of decoding, whose products have few rows."""
    memory: float
    """Bytes that decoding reads."""
    link: float
    """Bytes between the GPUs of a node."""
    network: float
    """Bytes between nodes, by GPU."""
    host: float = HOST_BYTES_PER_S
    """Bytes between a GPU and the host."""
    digest: float = DIGEST_BYTES_PER_S
    """Bytes whose checksum is computed."""
    launch_s: float = LAUNCH_S
    """Seconds that a layer takes at least."""
    front_end_s: float = FRONT_END_S
    """Processor seconds of an engine's front end for a token."""

    @classmethod
    def of(cls, speed: Speed, dtype: str) -> Rates:
        """Returns the assumed shares of a data sheet."""
        flops = speed.flops(dtype)
        return cls(
            training=TRAINING_SHARE * flops,
            scoring=SCORING_SHARE * flops,
            decoding=SCORING_SHARE * flops,
            memory=BANDWIDTH_SHARE * speed.bandwidth,
            link=LINK_SHARE * speed.link,
            network=LINK_SHARE * speed.network,
        )


def read_rates(path: str, rates: Rates | None) -> Rates:
    """Returns the rates with those that `ray-rl plan --calibrate` measured.

    Args:
        path: the file that it wrote: a JSON object with names of `Rates` and numbers; others are ignored.
        rates: the rates of those that the file does not have; None if it must have all without a default.

    Raises:
        ConfigError: the file cannot be read, or a rate is missing or not positive.
    """
    try:
        given = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--rates {path}: cannot be read ({error}); write it with ray-rl plan --calibrate") from None
    names = [field.name for field in fields(Rates)]
    numbers = {name: given[name] for name in names if isinstance(given, dict) and name in given}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < float("inf"):
            raise ConfigError(f"--rates {path}: {name} is {number!r}, not a rate above 0; calibrate again")
    if rates is not None:
        return replace(rates, **numbers)
    needed = [field.name for field in fields(Rates) if field.default is MISSING]
    missing = [name for name in needed if name not in numbers]
    if missing:
        raise ConfigError(f"--rates {path}: has no {', '.join(missing)}; write it with ray-rl plan --calibrate")
    return Rates(**numbers)
