"""A module under DeepSpeed: exact gradients of global means, a clipped step, a schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ray_rl.batching.encoding import Encoded
from ray_rl.config.train import Trained
from ray_rl.errors import TrainingError
from ray_rl.metrics.metric import SKIPPED, Last, Metric, Total
from ray_rl.training import zero_state
from ray_rl.training.deepspeed_config import deepspeed_config, with_bucket
from ray_rl.training.discard import discard_gradients
from ray_rl.training.parts import Part
from ray_rl.training.residence import Residence, model_tensors, tensors_within
from ray_rl.training.schedule import learning_rate_factor
from ray_rl.training.settings import TrainSettings

logger = logging.getLogger(__name__)

Backward = Callable[[Encoded], tuple[Tensor, list[Metric]]]
"""Computes the loss of a micro-batch: a sum over tokens, not yet divided by the count of the optimizer step."""


class ZeroEngine:
    """One rank of a model under training. All ranks call the same methods in the same order."""

    def __init__(self, settings: TrainSettings, build: Callable[[], nn.Module], *, name: str, device: str) -> None:
        """Builds and shards the module; a collective.

        Args:
            settings: the optimizer and ZeRO.
            build: makes the module, with its parameters in the settings' dtype.
            name: the name in messages and metrics ("policy/grad_norm").
            device: the device of this rank.
        """
        self._settings = settings
        self._role = settings.role
        self._name = name
        self._device = device
        self._steps = 0
        self.engine = self._initialize(build)
        self.residence = Residence(self._tensors)
        """Moves the model to the host and back. Checkpoints can be written while it is there."""

    @property
    def module(self) -> Any:
        """The module that `build` made; its parameters are shards under ZeRO-3."""
        return self.engine.module

    def accumulate(self, share: Sequence[Encoded], backward: Backward, *, count: float) -> list[Metric]:
        """Leaves the gradient of (sum of the losses over all ranks) / count in the engine.

        Args:
            share: this rank's micro-batches, the same number on every rank.
            backward: computes the sum of the losses of a micro-batch.
            count: the count of the whole optimizer step, over all ranks.

        Raises:
            TrainingError: the loss of a rank is not finite; raised on every rank. The gradient is discarded.
        """
        metrics: list[Metric] = []
        total = 0.0
        for i, encoded in enumerate(share):
            self.engine.set_gradient_accumulation_boundary(i == len(share) - 1)
            loss_sum, found = backward(encoded)
            # DeepSpeed averages over the ranks; the count is already global, so the average is undone.
            self.engine.backward(loss_sum / count * dist.get_world_size(), scale_wrt_gas=False)
            metrics += found
            total += float(loss_sum.detach())
        self._require_finite(total)
        return metrics

    def step(self, learn: Callable[[], list[Metric]] | None) -> list[Metric]:
        """Takes one optimizer step: `learn` accumulates a gradient. None: only the schedule advances.

        Raises:
            TrainingError: loss or gradient are not finite, and `train.on_nonfinite` is stop. Raised on every rank;
                weights and moments are unchanged, and the gradient is discarded.
        """
        rate = self._set_learning_rate()
        metrics: list[Metric] = []
        if learn is not None:
            try:
                metrics = self._learn(learn, rate)
            except TrainingError as error:
                if self._settings.on_nonfinite == "stop":
                    raise
                logger.warning("%s", error)
                metrics = [Total(f"{self._name}/{SKIPPED}", 1)] if dist.get_rank() == 0 else []
        self._steps += 1
        return metrics

    def slices(self) -> Iterator[tuple[str, int, Tensor]]:
        """Yields this rank's slices of weights and moments (see `zero_state.slices`), and its random generators."""
        yield from zero_state.slices(self.engine, self.residence.on_host)
        for name, generator in self._generators().items():
            yield name, 0, generator.get_state()

    def state(self) -> dict[str, int]:
        """Returns the counters that `restore` needs, in addition to the slices."""
        return {"steps": self._steps, "adam_step": zero_state.adam_step(self.engine), "ranks": dist.get_world_size()}

    def restore(self, read: zero_state.Read, state: Mapping[str, int]) -> None:
        """Restores the state of an engine of the same model with any stage and number of ranks; a collective.

        Ranks beyond the saved ones keep their own generators.
        """
        zero_state.restore(self.engine, read, step=state["adam_step"])
        self._steps = state["steps"]
        if dist.get_rank() < state["ranks"]:
            for name, generator in self._generators().items():
                generator.set_state(read(name, 0, generator.get_state().numel()))

    def _tensors(self) -> Mapping[Part, Iterable[Tensor]]:
        return {"weights": model_tensors(self.engine.module), "states": tensors_within(self.engine.optimizer)}

    def _generators(self) -> dict[str, torch.Generator]:
        """Returns torch's generators, by name in a checkpoint."""
        rank = dist.get_rank()
        found = {f"generator/cpu/{rank}": torch.default_generator}
        if self._device != "cpu":
            found[f"generator/cuda/{rank}"] = torch.cuda.default_generators[torch.cuda.current_device()]
        return found

    def _initialize(self, build: Callable[[], nn.Module]) -> Any:
        import deepspeed
        from transformers.integrations import HfDeepSpeedConfig

        settings = self._settings
        config = deepspeed_config(self._role, dtype=settings.dtype, accelerator=settings.accelerator)
        # While it is alive, from_pretrained shards ZeRO-3 parameters as it reads them; it must outlive the loading.
        sharded_loading = HfDeepSpeedConfig(config) if self._role.zero_stage == 3 else None
        module = build()
        del sharded_loading
        config = with_bucket(config, elements=sum(math.prod(_shape(parameter)) for parameter in _trained(module)))
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=_optimizer(module, self._role), config=config, dist_init_required=False
        )
        if dist.get_world_size() == 1 and self._role.zero_stage == 0:
            # DeepSpeed would copy all gradients into a buffer and back, and change nothing.
            engine.enable_backward_allreduce = False
        return engine

    def _learn(self, learn: Callable[[], list[Metric]], rate: float) -> list[Metric]:
        metrics = learn()
        norm = self._apply()
        return [*metrics, Last(f"{self._name}/grad_norm", norm), Last(f"{self._name}/learning_rate", rate)]

    def _require_finite(self, loss: float) -> None:
        """Raises on every rank if any has a loss that is not finite; nothing has been applied."""
        is_bad = torch.tensor(0.0 if math.isfinite(loss) else 1.0, device=self._device)
        dist.all_reduce(is_bad, op=dist.ReduceOp.MAX)  # bound: the process group has train.timeout_s
        if is_bad.item():
            discard_gradients(self.engine)
            raise TrainingError(
                f"optimizer step {self._steps} of the {self._name}: non-finite loss on at least one rank (rank "
                f"{dist.get_rank()}: {loss}); the step was not applied. Look at the step's rollouts; a lower "
                "learning_rate or clip_grad_norm may help"
            )

    def _apply(self) -> float:
        """Clips and applies the accumulated gradient; returns its norm before clipping."""
        engine = self.engine
        if engine.zero_optimization_stage() == 0 and self._settings.dtype == "float32":
            # In this case DeepSpeed neither reports the norm nor refuses one that is not finite.
            gradients = [p.grad for p in _trained(engine.module) if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            is_applied = math.isfinite(norm)
            if is_applied:
                engine.step()
            else:
                discard_gradients(engine)
        else:
            engine.step()
            norm, is_applied = float(engine.get_global_grad_norm()), engine.was_step_applied()
        if not is_applied:
            raise TrainingError(
                f"optimizer step {self._steps} of the {self._name}: the loss is finite, but the norm of its gradient "
                "is not; the step was not applied. Look at the step's rollouts; a lower learning_rate or "
                "model.dtype=float32 may help"
            )
        return norm

    def _set_learning_rate(self) -> float:
        """Sets and returns the learning rate of this step."""
        factor = learning_rate_factor(self._role.schedule, step=self._steps, total_steps=self._settings.total_steps)
        rate = self._role.learning_rate * factor
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        return rate


def _optimizer(module: nn.Module, role: Trained) -> torch.optim.Optimizer:
    """Returns AdamW without decay of norms and biases (parameters of one axis)."""
    matrices = [p for p in _trained(module) if len(_shape(p)) > 1]
    vectors = [p for p in _trained(module) if len(_shape(p)) <= 1]
    groups = [{"params": matrices, "weight_decay": role.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=role.learning_rate,
        betas=role.betas,
        eps=role.eps,
        fused=True,
    )


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(parameter.__dict__.get("ds_shape", parameter.shape))
