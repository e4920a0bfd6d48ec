"""A frozen model: a whole one on each worker, or one that the workers share under ZeRO-3."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from ray_rl.config.train import ReferenceConfig, Trained
from ray_rl.training.deepspeed_config import frozen_config
from ray_rl.training.member import Member
from ray_rl.training.networks import Network
from ray_rl.training.process_group import join_process_group
from ray_rl.training.residence import Residence, model_tensors
from ray_rl.training.share import Scores, Share
from ray_rl.types import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenSettings:
    """How a frozen model is held and evaluated."""

    role: ReferenceConfig
    """Sharing, offload and time limit."""
    layout: Trained
    """The section of the configuration that says how micro-batches are laid out."""
    dtype: str
    """The type of the weights, as torch names it."""
    accelerator: Literal["cpu", "gpu"]

    @property
    def is_shared(self) -> bool:
        """Whether the workers share one model under ZeRO-3."""
        return self.role.zero_stage == 3


class FrozenModel:
    """One worker of a frozen model. All workers are called with the same batch; each computes its share."""

    def __init__(self, network: Network, settings: FrozenSettings, member: Member, *, threads: int = 1) -> None:
        """Loads the model; a collective if it is shared. `threads` of this process work on CPU.

        Raises:
            DataError: the model cannot be loaded whole.
            ConfigError: the model cannot be used this way.
        """
        accelerator = settings.accelerator
        if settings.is_shared:
            device = join_process_group(
                member, accelerator=accelerator, threads=threads, timeout_s=settings.role.timeout_s
            )
        else:
            device = "cpu" if accelerator == "cpu" else "cuda:0"
            if accelerator == "cpu":
                torch.set_num_threads(threads)
        self._network = network
        self._share = Share.of(network.check(), settings.layout, member, accelerator=accelerator, device=device)
        self._model = _load(network, settings, self._share)
        network.verify(self._model, self._share)
        self.residence = Residence(lambda: {"weights": model_tensors(self._model), "states": ()})
        """Moves the model to the host and back."""

    def scores(self, batch: TokenBatch) -> Scores:
        """Scores this worker's share of the batch; a collective if the model is shared."""
        return self._share.scores(batch, partial(self._network.score, self._model))


def _load(network: Network, settings: FrozenSettings, share: Share) -> nn.Module:
    """Returns the module, or DeepSpeed's engine around one whose parameters were sharded while they were read."""
    if not settings.is_shared:
        return network.build(share.attention).requires_grad_(False).eval().to(share.device)
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    config = frozen_config(offload=settings.role.offload, dtype=settings.dtype, accelerator=settings.accelerator)
    # While it is alive, from_pretrained shards parameters as it reads them.
    sharded_loading = HfDeepSpeedConfig(config)
    model = network.build(share.attention).requires_grad_(False).eval()
    del sharded_loading
    engine: nn.Module
    engine, *_ = deepspeed.initialize(model=model, config=config, dist_init_required=False)
    return engine
