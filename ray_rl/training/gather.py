"""Gathers whole parameters from ZeRO's shards, a decoder layer at a time, without touching DeepSpeed's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ray_rl.models.adapter import is_copy
from ray_rl.models.policy import WRAPPED
from ray_rl.models.quantised import shape_of, whole


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """Name, type and shape of a parameter as it is sent."""

    name: str
    """Hugging Face name."""
    dtype: str
    """The type in which it is sent, as torch names it, for example "bfloat16"."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size as sent."""
        element: int = getattr(torch, self.dtype).itemsize
        return torch.Size(self.shape).numel() * element


class WeightStream(Protocol):
    """The weights of a model under training, as they are sent and exported: in a fixed order, layer by layer."""

    specs: list[ParameterSpec]
    """All of them."""
    trained_specs: list[ParameterSpec]
    """Those that training changes."""

    @property
    def device(self) -> torch.device:
        """The device on which whole weights are."""

    def groups(
        self, specs: Sequence[ParameterSpec] | None = None, *, everywhere: bool = False
    ) -> Iterator[list[tuple[ParameterSpec, Tensor | None]]]:
        """Yields the weights of a layer at a time, whole on rank 0 (see `ParameterStream.groups`); a collective."""

    def slices(self, specs: Sequence[ParameterSpec] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yields this rank's part of each (see `ParameterStream.slices`). Every rank must exhaust the iterator."""

    def part_sizes(self, specs: Sequence[ParameterSpec]) -> list[int]:
        """Returns the number of elements of this rank's part of each. Not a collective."""


class ParameterStream:
    """The parameters of a model in a fixed order, in groups of one decoder layer.

    ZeRO-3 keeps a contiguous slice of every flattened parameter on each rank. One flat gather per layer to rank 0 is
    four times as fast as one collective per parameter, and needs memory for one layer on rank 0 alone.
    """

    def __init__(
        self, model: nn.Module, *, dtype: str, on_host: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> None:
        """Reads names and shapes of the model in the DeepSpeed engine.

        Args:
            model: the model in the engine.
            dtype: the type in which parameters are sent.
            on_host: returns where the values of a tensor are while the model is on the host (`Residence.on_host`). They
                are then copied to its device, those of a layer at a time.
        """
        self._on_host = on_host
        # named_parameters() lists a tied embedding once, as a checkpoint does.
        # Any: what ZeRO-3 adds to a parameter (ds_shape, ds_tensor, ds_numel) is not in its type.
        self._parameters: dict[str, Any] = {
            name.removeprefix(WRAPPED): p for name, p in model.named_parameters() if not is_copy(name)
        }
        self._dtype = getattr(torch, dtype)
        self.specs = [
            ParameterSpec(name, dtype, tuple(p.ds_shape if _is_sharded(p) else shape_of(p)))
            for name, p in self._parameters.items()
        ]
        """All parameters, without the frozen copy of adapters, which never leaves the worker."""
        self.trained_specs = [spec for spec in self.specs if self._parameters[spec.name].requires_grad]
        """The parameters that training changes."""

    @property
    def device(self) -> torch.device:
        """The device on which whole parameters are."""
        if dist.get_backend() == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        device: torch.device = next(iter(self._parameters.values())).device
        return device

    def groups(
        self, specs: Sequence[ParameterSpec] | None = None, *, everywhere: bool = False
    ) -> Iterator[list[tuple[ParameterSpec, Tensor | None]]]:
        """Yields the parameters layer by layer, whole on rank 0 and None on other ranks; a collective.

        The tensors may share memory with the parameters: do not write to them. Every rank must exhaust the iterator,
        even after an error: otherwise the other ranks wait.

        Args:
            specs: the parameters to yield, in their order; the same on every rank. None: all.
            everywhere: whether they are whole on every rank.
        """
        group: list[ParameterSpec] = []
        for spec in self.specs if specs is None else specs:
            if group and layer_of(spec.name) != layer_of(group[-1].name):
                yield self._gather(group, everywhere=everywhere)
                group = []
            group.append(spec)
        if group:
            yield self._gather(group, everywhere=everywhere)

    @torch.no_grad()
    def slices(self, specs: Sequence[ParameterSpec] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yields this rank's part of each parameter, in order: its first element, and flat values in its own dtype.

        Together the ranks yield every element once. Not a collective.

        Args:
            specs: the parameters to yield. None: all.
        """
        rank, world = dist.get_rank(), dist.get_world_size()
        for parameter in (self._parameters[spec.name] for spec in (self.specs if specs is None else specs)):
            if _is_sharded(parameter):
                part, total = self._held(parameter.ds_tensor).reshape(-1), parameter.ds_numel
                size = part.numel()
            else:
                flat = whole(parameter, self._held(parameter)).reshape(-1)
                total = flat.numel()
                size = -(-total // world)
                part = flat[rank * size : (rank + 1) * size]
            start = min(rank * size, total)
            # The last slice of ZeRO-3 is padded to the size of the others.
            yield start, part[: total - start]

    def part_sizes(self, specs: Sequence[ParameterSpec]) -> list[int]:
        """Returns the number of elements of this rank's part of each parameter. Not a collective."""
        rank, world = dist.get_rank(), dist.get_world_size()
        sizes = []
        for spec in specs:
            total = torch.Size(spec.shape).numel()
            size = -(-total // world)
            sizes.append(max(0, min(size, total - rank * size)))
        return sizes

    @torch.no_grad()
    def _gather(self, group: list[ParameterSpec], *, everywhere: bool) -> list[tuple[ParameterSpec, Tensor | None]]:
        parameters = [self._parameters[spec.name] for spec in group]
        if not _is_sharded(parameters[0]):
            is_wanted = everywhere or dist.get_rank() == 0
            return [
                (spec, whole(p, self._held(p)).to(self._dtype) if is_wanted else None)
                for spec, p in zip(group, parameters, strict=True)
            ]
        shards = [self._held(p.ds_tensor).reshape(-1).to(self._dtype) for p in parameters]
        flat = torch.cat(shards)
        if flat.device.type == "cpu" and dist.get_backend() == "nccl":  # parameters offloaded to the CPU
            flat = flat.to("cuda")
        if dist.get_rank() != 0 and not everywhere:
            dist.gather(flat, None, dst=0)  # bound: the process group has train.timeout_s
            return [(spec, None) for spec in group]
        parts = flat.new_empty(dist.get_world_size(), flat.numel())
        if everywhere:
            dist.all_gather(list(parts.unbind(0)), flat)  # bound: the process group has train.timeout_s
        else:
            dist.gather(flat, list(parts.unbind(0)), dst=0)  # bound: the process group has train.timeout_s
        gathered: list[tuple[ParameterSpec, Tensor | None]] = []
        offset = 0
        for spec, p, shard in zip(group, parameters, shards, strict=True):
            # Not reshape: a view of one element of each rank has a stride that no other dtype can view.
            columns = parts[:, offset : offset + shard.numel()].contiguous().view(-1)
            # The last slice is padded to the size of the others.
            gathered.append((spec, columns[: p.ds_numel].view(spec.shape)))
            offset += shard.numel()
        return gathered

    def _held(self, tensor: Tensor) -> Tensor:
        """Returns a tensor of the model, or a copy on its device if its memory is on the host."""
        own = tensor.detach()
        held = self._on_host(own)
        return own if held is own else held.to(own.device)


def _is_sharded(parameter: nn.Parameter) -> bool:
    """Returns whether ZeRO-3 has sharded the parameter: its own data is then empty."""
    return "ds_id" in parameter.__dict__


def layer_of(name: str) -> str:
    """Returns the name up to its first number: "model.layers.7" for a decoder layer, "" for embeddings."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ""
