"""An image for batches without one, so that every rank runs the vision tower in every step.

Where one rank's batch is text only, ZeRO (and DDP) wait for gathers and gradients that this rank never starts.
Likewise where rows have videos: the tower then runs once for the images of a batch and once for its videos. The dummy
goes through tower and projector where a real image would, between embedding and decoder, so that the ranks
gather in the same order; its features are added times zero: loss and gradients stay what they are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.deepspeed_compat import is_partitioned
from ..common.distributed import is_sharded
from ..models.structure import unwrap_model
from .batch_plan import has_images
from .transformers_compat import cache_of


class DummyImage:
    """Handle of `attach_dummy_image`: `remove()` leaves the model as it was. Also a context manager."""

    def __init__(self, inner: Any, decoder: Any, inputs: Mapping[str, Any], videos: bool = False) -> None:
        self.inner, self.inputs, self.missing, self.videos = inner, dict(inputs), 0, videos
        self._hooks = [
            inner.register_forward_pre_hook(self._look, with_kwargs=True),
            decoder.register_forward_pre_hook(self._add, with_kwargs=True),
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> DummyImage:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _look(self, inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """In evaluation an image is only needed where weights are partitioned over the ranks, and only at prefill."""
        cache = cache_of(kwargs)
        wanted = inner.training or (_partitioned(inner) and (cache is None or cache.get_seq_length() == 0))
        if self.videos:
            runs = sum(kwargs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
            self.missing = (2 - runs) if wanted else 0
        else:
            self.missing = int(wanted and not has_images(kwargs))

    def _add(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the decoder and after the embedding is through with all its hooks: were this a hook of the
        embedding, its weight would be gathered before the tower's in the backward, and with an image after them."""
        if not self.missing:
            return None
        runs, self.missing, embedded = self.missing, 0, kwargs["inputs_embeds"]
        inputs = {name: _like(value, embedded) for name, value in self.inputs.items()}
        result = embedded
        for _ in range(runs):
            features = self.inner.get_image_features(**inputs, return_dict=True)
            # Each tensor times zero before it is summed: a sum in half precision may overflow, and inf times 0 is nan.
            result = result + sum((tensor * 0).sum().to(embedded.dtype) for tensor in _tensors(_used(features)))
        return args, {**kwargs, "inputs_embeds": result}


def attach_dummy_image(model: Any, dummy_inputs: Mapping[str, Any], videos: bool = False) -> DummyImage:
    """`dummy_inputs`: what the model's processor makes of one small image (`dart_train.data.dummy_inputs`). videos:
    batches may have videos (Qwen-VL: the same tower, once more). Attach before DeepSpeed wraps the model, so that its
    own hooks come after."""
    inner = getattr(unwrap_model(model), "model", None)
    if inner is None or not hasattr(inner, "get_image_features"):
        raise NotImplementedError(
            f"{type(unwrap_model(model)).__name__} has no `.model.get_image_features`; text-only batches cannot get "
            "a dummy image. Give every batch of every rank an image, or train without ZeRO and DDP."
        )
    accepted = inspect.signature(inner.get_image_features).parameters
    inputs = {name: value for name, value in dummy_inputs.items() if name in accepted}
    if "pixel_values" not in inputs:
        raise ValueError(f"dummy_inputs: got {sorted(dummy_inputs)}; expected pixel_values among them")
    return DummyImage(inner, unwrap_model(model).get_decoder(), inputs, videos)


def _like(value: Any, embedded: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(embedded.device, embedded.dtype if value.is_floating_point() else None)


def _used(features: Any) -> Any:
    """What a forward with an image uses of the output. The tower's other states (its last layer, where an earlier
    one is selected) get no gradient there, so they must get none here."""
    if not hasattr(features, "pooler_output"):
        return features
    return features.pooler_output, getattr(features, "deepstack_features", ())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every float tensor, however nested."""
    if isinstance(value, Tensor):
        if torch.is_floating_point(value):
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


def _partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 or FSDP2 holds the weights."""
    return any(is_partitioned(parameter) or is_sharded(parameter) for parameter in module.parameters())
