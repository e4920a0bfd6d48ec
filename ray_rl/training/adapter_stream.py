"""The weights of a model with adapters, as engines and exports get them: merged, or the model and its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from ray_rl.models.adapter import base_name, is_adapter, merge, parts_of, peft_name, product
from ray_rl.training.gather import ParameterSpec, ParameterStream, layer_of


class MergedStream:
    """The parameters of the model without adapters, under its own names: each targeted matrix is W + scale * B A.

    After the first publish only these matrices change.
    """

    def __init__(self, stream: ParameterStream, *, scale: float) -> None:
        """Makes a stream of the same model; `scale` is that of its adapters."""
        self._stream, self._scale = stream, scale
        raw = {spec.name: spec for spec in stream.specs}
        self._raw = {base_name(name): spec for name, spec in raw.items() if not is_adapter(name)}
        """Each parameter in the model with adapters, by its own name."""
        self._adapters = {
            base_name(name): (raw[parts[0]], raw[parts[1]]) for name in raw if (parts := parts_of(name)) is not None
        }
        """A and B by the name of their matrix."""
        self.specs = [ParameterSpec(name, spec.dtype, spec.shape) for name, spec in self._raw.items()]
        """All parameters."""
        trained = {base_name(spec.name) for spec in stream.trained_specs} | self._adapters.keys()
        self.trained_specs = [spec for spec in self.specs if spec.name in trained]
        """The parameters that training changes."""

    @property
    def device(self) -> torch.device:
        """The device on which whole parameters are."""
        return self._stream.device

    def groups(
        self, specs: Sequence[ParameterSpec] | None = None, *, everywhere: bool = False
    ) -> Iterator[list[tuple[ParameterSpec, Tensor | None]]]:
        """Yields merged parameters, as `ParameterStream.groups`; a collective."""
        wanted = [
            each
            for spec in (self.specs if specs is None else specs)
            for each in (self._raw[spec.name], *self._adapters.get(spec.name, ()))
        ]
        for group in self._stream.groups(wanted, everywhere=everywhere):
            yield self._merged(group)

    @torch.no_grad()
    def slices(self, specs: Sequence[ParameterSpec] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yields this rank's part of each merged parameter, as `ParameterStream.slices`.

        A collective, unlike there: each rank gathers the adapters of a layer, which are small, and its own part of
        their product.
        """
        for _, layer in groupby(self.specs if specs is None else specs, key=lambda spec: layer_of(spec.name)):
            names = [spec.name for spec in layer]
            small = [part for name in names for part in self._adapters.get(name, ())]
            adapters = {
                spec.name: each for group in self._stream.groups(small, everywhere=True) for spec, each in group
            }
            parts = self._stream.slices([self._raw[name] for name in names])
            for name, (start, values) in zip(names, parts, strict=True):
                if name in self._adapters:
                    a, b = (adapters[part.name] for part in self._adapters[name])
                    assert a is not None and b is not None, "gathered on every rank"
                    # The product of whole matrices, so that a sum has the same bits in every layout.
                    change = product(a, b, self._scale).view(-1)[start : start + values.numel()]
                    yield start, (values.float() + change).to(values.dtype)
                else:
                    yield start, values

    def part_sizes(self, specs: Sequence[ParameterSpec]) -> list[int]:
        """Returns the number of elements of this rank's part of each parameter. Not a collective."""
        return self._stream.part_sizes([self._raw[spec.name] for spec in specs])

    def _merged(
        self, group: Sequence[tuple[ParameterSpec, Tensor | None]]
    ) -> list[tuple[ParameterSpec, Tensor | None]]:
        gathered = {spec.name: tensor for spec, tensor in group}
        merged: list[tuple[ParameterSpec, Tensor | None]] = []
        for spec, tensor in group:
            if is_adapter(spec.name):
                continue
            name = base_name(spec.name)
            if tensor is not None and name in self._adapters:
                a, b = (gathered[part.name] for part in self._adapters[name])
                assert a is not None and b is not None, "gathered with their matrix"
                tensor = merge(tensor, a, b, scale=self._scale)
            merged.append((ParameterSpec(name, spec.dtype, spec.shape), tensor))
        return merged


class SeparateStream:
    """The parameters of the model under its own names, then those of its adapters under peft's names.

    After the first publish only the adapters change.
    """

    def __init__(self, stream: ParameterStream) -> None:
        """Makes a stream of the same model."""
        self._stream = stream
        own = [spec for spec in stream.specs if not is_adapter(spec.name)]
        adapters = [spec for spec in stream.specs if is_adapter(spec.name)]
        self._raw = {base_name(spec.name): spec for spec in own} | {peft_name(spec.name): spec for spec in adapters}
        """Each parameter in the model with adapters, by the name under which it is sent."""
        self.specs = [ParameterSpec(name, spec.dtype, spec.shape) for name, spec in self._raw.items()]
        """All parameters."""
        trained = {spec.name for spec in stream.trained_specs}
        self.trained_specs = [spec for spec in self.specs if self._raw[spec.name].name in trained]
        """The parameters that training changes."""

    @property
    def device(self) -> torch.device:
        """The device on which whole parameters are."""
        return self._stream.device

    def groups(
        self, specs: Sequence[ParameterSpec] | None = None, *, everywhere: bool = False
    ) -> Iterator[list[tuple[ParameterSpec, Tensor | None]]]:
        """Yields the parameters, as `ParameterStream.groups`; a collective."""
        specs = self.specs if specs is None else specs
        names = iter(specs)
        for group in self._stream.groups([self._raw[spec.name] for spec in specs], everywhere=everywhere):
            yield [(next(names), tensor) for _, tensor in group]

    def slices(self, specs: Sequence[ParameterSpec] | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yields this rank's part of each parameter, as `ParameterStream.slices`."""
        return self._stream.slices([self._raw[spec.name] for spec in (self.specs if specs is None else specs)])

    def part_sizes(self, specs: Sequence[ParameterSpec]) -> list[int]:
        """Returns the number of elements of this rank's part of each parameter."""
        return self._stream.part_sizes([self._raw[spec.name] for spec in specs])
