"""What a decoder layer costs and saves, counted on fake tensors, and the FLOPs of a training step or a prefill.

Fake tensors have shapes and no memory: a 7B layer is counted in a second, on any machine. What autograd saves depends
on the attention kernel, so it is counted with the kernel of the device that is planned for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from ..models.structure import RECURRENT, PartName, find_parts, part_of, unwrap_model
from .op_count import tensors_in

LayerCall = tuple[Any, Tensor, tuple[Any, ...], dict[str, Any]]  # (layer, hidden states, other arguments, keywords)

# QuadraticCost.fit: which terms are used (call, token, pair); the richest form without a negative term wins.
_FORMS = ((0, 1, 2), (1, 2), (0, 1), (1,))
_LENGTHS = (64, 128)  # at which a layer's FLOPs are counted; two determine a token and a pair term
_MULTIPLY_ADD = 2
_PASSES = {"frozen": 1, "lora": 2, "full": 3}  # forward; gradient of the input; gradient of the weight
_PRODUCTS = (nn.Linear, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class QuadraticCost:
    """Cost of a decoder layer: call + token * rows * length + pair * rows * length ** 2."""

    call: float = 0.0
    token: float = 0.0
    pair: float = 0.0

    def __call__(self, rows: Any, length: Any) -> Any:
        """rows, length: numbers, or arrays of one shape; no tokens cost nothing."""
        tokens = np.asarray(rows, dtype=float) * length
        return np.where(tokens > 0, self.call, 0.0) + tokens * (self.token + self.pair * np.asarray(length))

    def __add__(self, other: QuadraticCost) -> QuadraticCost:
        return QuadraticCost(self.call + other.call, self.token + other.token, self.pair + other.pair)

    def scaled(self, token: float, pair: float = 1.0) -> QuadraticCost:
        return QuadraticCost(self.call, self.token * token, self.pair * pair)

    def times(self, share: float) -> QuadraticCost:
        return QuadraticCost(self.call * share, self.token * share, self.pair * share)

    @classmethod
    def fit(cls, points: Sequence[tuple[int, int, float]], pairs: bool = True) -> QuadraticCost:
        """points: (rows, length, cost). Least squares of the relative errors, no term negative."""
        rows, length, cost = np.array(points, dtype=float).T
        terms = np.stack([np.ones(len(points)), rows * length, rows * length**2], 1) / cost[:, None]
        for form in _FORMS:
            if len(form) > len(points) or (2 in form and not pairs):
                continue
            columns = terms[:, form]
            size = np.linalg.norm(columns, axis=0)  # tokens and their squares differ by orders of magnitude
            found = np.zeros(3)
            found[list(form)] = np.linalg.lstsq(columns / size, np.ones(len(points)), rcond=None)[0] / size
            if (found >= 0).all():
                break
        return cls(*found.tolist())


def layer_kinds(config: Any) -> list[tuple[int, float]]:
    """(a layer, the share of layers like it), with full attention first: layers with a recurrent state cost other than
    those, which all cost the same."""
    types = getattr(config.get_text_config(), "layer_types", None) or [""]
    kinds = [[n for n, kind in enumerate(types) if (kind in RECURRENT) == recurrent] for recurrent in (False, True)]
    return [(layers[0], len(layers) / len(types)) for layers in kinds if layers]


def one_layer_config(config: Any, layer: int | None = None) -> Any:
    """The same model with a single decoder layer, by default the first with attention; the vision tower and the head
    keep their size."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    layer = layer_kinds(config)[0][0] if layer is None else layer
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[layer]]
    return short


class FakeLayer:
    """The decoder layer of a model as it would run on a device, on fake tensors.

    model: with one decoder layer, on `meta`. dtype: of the computation. autocast: weights may have another dtype.
    """

    def __init__(self, model: Any, device: str, dtype: torch.dtype, autocast: bool = False) -> None:
        self.device, self.dtype, self.autocast = device, dtype, autocast
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            self.text = unwrap_model(model.to_empty(device=device)).get_decoder()
        self.saved_bytes = cache(self._saved_bytes)

    def _saved_bytes(self, rows: int, length: int, padded: bool = False) -> int:
        """What autograd keeps for the backward, without the weights and what all layers share."""
        with self.mode, self._computing():
            layer, hidden, args, kwargs = self._call(rows, length, padded)
            saved = SavedActivations([*layer.parameters(), *tensors_in(kwargs)])
            with saved.recording():
                layer(hidden, *args, **kwargs)
            return saved.size

    def flops(self, rows: int, length: int) -> tuple[int, int]:
        """(forward, backward)."""
        forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with self.mode, self._computing():
            layer, hidden, args, kwargs = self._call(rows, length, padded=False)
            with forward:
                output = hidden_states(layer(hidden, *args, **kwargs))
            with backward:
                output.backward(torch.ones_like(output))
        return forward.get_total_flops(), backward.get_total_flops()

    def _computing(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, self.dtype, enabled=self.autocast)

    def _call(self, rows: int, length: int, padded: bool) -> LayerCall:
        layer, hidden, args, kwargs = capture_layer_call(self.text, rows, length, padded, self.dtype, self.device)
        if not padded:
            # With real tensors the decoder finds that nothing is masked and passes None; it cannot read fake ones.
            kwargs = {**kwargs, "attention_mask": None}
        return layer, hidden, args, kwargs


class SavedActivations:
    """Storages that autograd saves while recording, each once. excluded: allocated anyway, such as weights."""

    def __init__(self, excluded: Sequence[Tensor]) -> None:
        self.excluded = {_storage_id(tensor) for tensor in excluded}
        self.tensors: dict[int, Tensor] = {}

    def recording(self) -> AbstractContextManager[Any]:
        return saved_tensors_hooks(self._record, lambda tensor: tensor)

    def _record(self, tensor: Tensor) -> Tensor:
        if _storage_id(tensor) not in self.excluded:
            self.tensors[_storage_id(tensor)] = tensor
        return tensor

    @property
    def size(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


def _storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Captured(Exception):
    """The decoder has reached its first layer."""


def capture_layer_call(
    text: Any, rows: int, length: int, padded: bool, dtype: torch.dtype, device: torch.device | str
) -> LayerCall:
    """How the decoder itself calls its first layer: (layer, hidden states [B, L, D], other arguments, keywords)."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def capture(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise _Captured

    hidden = torch.randn(rows, length, text.config.hidden_size, dtype=dtype, device=device)
    mask = torch.ones(rows, length, dtype=torch.long, device=device)
    if padded:
        mask[0, -1] = 0
    handle = text.layers[0].register_forward_pre_hook(capture, with_kwargs=True)
    with torch.no_grad(), suppress(_Captured):
        text(inputs_embeds=hidden, attention_mask=mask, use_cache=False)
    handle.remove()
    args, kwargs = calls[0]
    return text.layers[0], args[0].detach().requires_grad_(), args[1:], kwargs


def hidden_states(output: Any) -> Tensor:
    """The hidden states that a decoder layer returned, as a tensor or in a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def layer_flops(model: Any) -> tuple[QuadraticCost, QuadraticCost]:
    """(forward, backward) FLOPs of a decoder layer.

    model: with one decoder layer, on `meta`, with eager attention, which shows every product. All pairs of tokens
    count, though a causal kernel may skip half of them. Its weights become float32; FLOPs do not depend on that.
    """
    layer = FakeLayer(model.float(), "cpu", torch.float32)
    counts = [layer.flops(1, length) for length in _LENGTHS]
    forward, backward = (
        QuadraticCost.fit([(1, length, count[part]) for length, count in zip(_LENGTHS, counts, strict=True)])
        for part in (0, 1)
    )
    return forward, backward


@dataclass(frozen=True)
class FlopRates:
    """layer: of a decoder layer in training, recomputation included; forward: of its forward alone; both by rows and
    length. head: of a target, in training. tower: of a visual token, vision tower and projector together; projector: of
    that the projector."""

    layer: QuadraticCost
    forward: QuadraticCost
    head: float
    tower: float
    projector: float = 0.0


def flop_rates(
    model: Any,
    modes: Mapping[str, str],
    gradient_checkpointing: bool,
    patches_per_token: float,
    build_one_layer: Callable[[int], Any] | None = None,
) -> FlopRates:
    """model: any copy of it, on `meta` too. modes: part (vision, projector, language) -> frozen, lora or full.
    patches_per_token: vision patches that make one visual token. build_one_layer: given the number of a layer, the
    model with it alone as it trains, adapters included, as `layer_flops` takes it; without it, one without adapters.
    Where layers differ, the rates are those of the mean layer.

    Attention within the vision tower and the selection of tokens are not counted; both are small next to the layers.
    """
    config = find_parts(model).top.config
    forward, backward = QuadraticCost(), QuadraticCost()
    for layer, share in layer_kinds(config):
        one_layer = build_one_layer(layer) if build_one_layer is not None else _one_layer_on_meta(config, layer)
        ahead, back = layer_flops(one_layer)
        forward, backward = forward + ahead.times(share), backward + back.times(share)
    weights = multiplied_weights(model)
    used = {"vision": weights["vision"] * patches_per_token, "projector": float(weights["projector"])}
    passes = {part: _PASSES[modes[part]] for part in used}
    if modes["vision"] != "frozen":
        passes["projector"] = max(2, passes["projector"])  # the gradient passes through it
    recomputed = gradient_checkpointing and modes["vision"] != "frozen"
    tower = {part: _MULTIPLY_ADD * number * (passes[part] + recomputed) for part, number in used.items()}
    text = config.get_text_config()
    return FlopRates(
        layer=forward + backward + (forward if gradient_checkpointing else QuadraticCost()),
        forward=forward,
        head=float(_MULTIPLY_ADD * text.hidden_size * text.vocab_size * (3 if modes["language"] == "full" else 2)),
        tower=sum(tower.values()),
        projector=tower["projector"],
    )


def _one_layer_on_meta(config: Any, layer: int) -> Any:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(one_layer_config(config, layer), attn_implementation="eager")


def multiplied_weights(model: Any) -> dict[PartName, int]:
    """Weights of linear and convolutional layers, by part. Scorers belong to the selection, which is not counted."""
    part = part_of(model)
    found: dict[PartName, int] = {"vision": 0, "projector": 0, "language": 0}
    for name, module in model.named_modules():
        owner = part(name)
        if isinstance(module, _PRODUCTS) and owner in found and ".original_module" not in name:  # PEFT's copy
            found[owner] += module.weight.numel()
    return found


def patches_in(pixels: Tensor, config: Any) -> int:
    """How many patches of the vision tower are in the `pixel_values` of a processor."""
    vision = config.vision_config
    size = vision.patch_size if isinstance(vision.patch_size, list | tuple) else [vision.patch_size] * 2
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", 3)
    return pixels.numel() // (channels * size[0] * size[1] * getattr(vision, "temporal_patch_size", 1))
