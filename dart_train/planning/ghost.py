"""One decoder layer without memory and without arithmetic: fake tensors tell what it would multiply and keep.

What autograd saves depends on the kernels, so it is counted for those of the device that is planned for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..models.structure import find_parts
from .quadratic import Quadratic
from .setup import Setup, one_layer

Call = tuple[Any, Tensor, tuple[Any, ...], dict[str, Any]]


class FakeLayer:
    """The decoder layer of a model as it would run on a device."""

    def __init__(self, config: Any, setup: Setup, device: str, kernel: str | None = None) -> None:
        self.setup, self.device = setup, device
        model = setup.build(one_layer(config), "meta", kernel)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            self.text = find_parts(model.to_empty(device=device)).text
        self.saved = cache(self._saved)

    def _saved(self, rows: int, length: int, padded: bool = False) -> int:
        """Bytes that autograd keeps for the backward, weights apart."""
        with self.mode, self.setup.computing(self.device):
            layer, hidden, args, kwargs = self._call(rows, length, padded)
            kept = Kept([*layer.parameters(), *_tensors(kwargs)])
            with kept.watching():
                layer(hidden, *args, **kwargs)
            return kept.size

    def flops(self, rows: int, length: int) -> tuple[int, int]:
        """Forward, backward."""
        forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with self.mode, self.setup.computing(self.device):
            layer, hidden, args, kwargs = self._call(rows, length, padded=False)
            with forward:
                output = first(layer(hidden, *args, **kwargs))
            with backward:
                output.backward(torch.ones_like(output))
        return forward.get_total_flops(), backward.get_total_flops()

    def _call(self, rows: int, length: int, padded: bool) -> Call:
        layer, hidden, args, kwargs = capture_layer_call(self.text, rows, length, padded, self.setup.dtype, self.device)
        if not padded:
            kwargs = {**kwargs, "attention_mask": None}  # what the decoder decides where it can look at its mask
        return layer, hidden, args, kwargs


class Kept:
    """Storages that autograd saves, each once; `apart` are there anyhow."""

    def __init__(self, apart: list[Tensor]) -> None:
        self.apart = {_storage(tensor) for tensor in apart}
        self.tensors: dict[int, Tensor] = {}

    def watching(self) -> AbstractContextManager[Any]:
        return saved_tensors_hooks(self._see, lambda tensor: tensor)

    def _see(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self.apart:
            self.tensors[_storage(tensor)] = tensor
        return tensor

    @property
    def size(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


def layer_flops(config: Any, setup: Setup) -> tuple[Quadratic, Quadratic]:
    """(forward, backward) FLOPs of a decoder layer. Counted with eager attention, which shows every product; all
    pairs of tokens count, though a causal kernel may leave out those that look ahead."""
    ghost, lengths = FakeLayer(config, setup, "cpu", "eager"), (64, 128)
    counts = [ghost.flops(1, length) for length in lengths]
    forward, backward = (
        Quadratic.fit([(1, length, count[way]) for length, count in zip(lengths, counts, strict=True)])
        for way in (0, 1)
    )
    return forward, backward


class _Seen(Exception):
    """The decoder has come as far as its first layer."""


def capture_layer_call(text: Any, rows: int, length: int, padded: bool, dtype: torch.dtype, device: Any) -> Call:
    """(first layer, its input, other arguments, keywords), as the decoder itself would call it."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Seen

    hidden = torch.randn(rows, length, text.config.hidden_size, dtype=dtype, device=device)
    mask = torch.ones(rows, length, dtype=torch.long, device=device)
    if padded:
        mask[0, -1] = 0
    handle = text.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad(), suppress(_Seen):
        text(inputs_embeds=hidden, attention_mask=mask, use_cache=False)
    handle.remove()
    args, kwargs = seen[0]
    return text.layers[0], args[0].detach().requires_grad_(), args[1:], kwargs


def first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> list[Tensor]:
    """Those in the arguments of a call, which all layers share."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for each in inner for tensor in _tensors(each)]
