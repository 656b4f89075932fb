"""What is private in transformers, or named differently in the releases that this package supports.

Read in 5.23.0 and 5.24.0: the cache is the argument `past_key_values` of models, layers and attention until 5.23, and
`cache` from 5.24 on (the old name works until 5.40, with a FutureWarning). The same holds for the mask builders and for
the field of a model's output. The private names below are the same in both.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

CACHE_NAMES = ("cache", "past_key_values")  # the newest first
LOSS_FUNCTION = "_loss_function"  # attribute of a PreTrainedModel that its `loss_function` property returns
ROUTER_LOSS = "load_balancing_loss_func"  # function of the modeling files of mixture-of-experts models
SHARED_KEYS = "shared_kv_states"  # argument of Gemma 4's layers: where some leave keys for later ones
DEEPSTACK = "_deepstack_process"  # method of Qwen3-VL's decoder


FIRST_POSITION = {"paligemma": 1}  # by model type, where a model does not count its positions from 0


def cache_argument(function: Callable[..., Any]) -> str:
    """The name under which `function` takes a cache. One that takes only **kwargs gets the name of this release."""
    parameters = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in parameters), _default_name())


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a call, or None."""
    return next((inputs[name] for name in CACHE_NAMES if inputs.get(name) is not None), None)


def cache_in_output(output: Any) -> Any:
    """The cache that a model's output carries, or None."""
    # Only the field that the output has: its former names are properties that warn.
    fields = getattr(type(output), "__dataclass_fields__", {})
    return next((getattr(output, name) for name in CACHE_NAMES if name in fields), None)


def shorten_kept_prefill(cache: Any, layer: int, full: int, short: int) -> None:
    """A cache layer that never drops its prefill gets the prefill's length from `generate` (UnlimitedOCR); that of a
    layer on kept tokens is shorter, or the first answer tokens would pass for prompt."""
    layers = getattr(cache, "layers", ())
    if layer < len(layers) and getattr(layers[layer], "prefill_length", None) == full:
        layers[layer].prefill_length = short


def is_static(cache: Any) -> bool:
    """Whether the layers of a cache have a fixed size, of which the first slots are filled."""
    return cache is not None and bool(getattr(cache, "is_compileable", False))


def check_static_cache(cache: Any, kernel: str) -> None:
    """Refuses a static cache whose short layers could not be masked. kernel: the name of the attention function."""
    if not is_static(cache):
        return
    name, remedy = type(cache).__name__, "Use the dynamic cache: generate(cache_implementation='dynamic')."
    if kernel not in ("sdpa", "eager"):
        raise NotImplementedError(
            f"{name} with attention {kernel!r}: layers >= K fill fewer slots than the others, and only sdpa and eager "
            f"take a mask that hides the empty ones. {remedy}"
        )
    sizes = [layer.max_cache_len for layer in cache.layers if hasattr(layer, "max_cache_len")]
    windows = [size for size in sizes if size < max(sizes)]
    if windows:
        raise NotImplementedError(
            f"{name} with layers of {min(windows)} slots for a sliding window: the window counts positions, and in "
            f"layers >= K the slots are those of the kept tokens alone. {remedy}"
        )


def static_length(cache: Any, layer: int) -> int:
    """The slots of a static cache's layer."""
    return int(cache.layers[layer].max_cache_len)


def needs_positions(layer: nn.Module, config: Any) -> bool:
    """Whether a layer that is given rotary embeddings computes with its position ids as well (Ministral 3 scales its
    queries by them). Flash kernels take position ids that are passed on to them for packed sequences: there they are
    left out."""
    attention = getattr(layer, "self_attn", None)
    kind: Any = type(attention)
    return attention is not None and _takes_positions(kind, "flash" in str(config._attn_implementation))


@functools.cache
def _takes_positions(attention: type[nn.Module], flash: bool) -> bool:
    if "position_ids" not in inspect.signature(attention.forward).parameters:
        return False
    return not flash or "position_ids=position_ids" not in inspect.getsource(attention.forward)


@functools.cache
def has_two_way_attention(model: type[nn.Module]) -> bool:
    """Whether the modeling file of a class makes masks in which blocks of tokens see each other in both directions:
    the mask builders take these as `block_sequence_ids` or as an `or_mask_function`."""
    source = inspect.getsource(sys.modules[model.__module__])
    return "block_sequence_ids" in source or "or_mask_function" in source


def cached_keys(cache: Any, layer: int) -> Tensor | None:
    """[B, H, P, d] that the cache of this layer holds; None where it holds none yet."""
    layers = getattr(cache, "layers", ())
    keys = getattr(layers[layer], "keys", None) if layer < len(layers) else None
    return keys if isinstance(keys, Tensor) and keys.numel() else None


def dispatches_attention(attention: Any) -> bool:
    """Whether a module calls its kernel through transformers' attention functions, as its modeling file shows: only
    there can its queries and keys be recorded."""
    return hasattr(sys.modules[type(attention).__module__], "ALL_ATTENTION_FUNCTIONS") and hasattr(attention, "config")


def attention_kernel(module: nn.Module, config: Any) -> Callable[..., Any]:
    """The attention function that the model is configured with; eager ones are defined in each modeling file."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    kernel: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)
    return kernel


def router_type(decoder: nn.Module) -> type[nn.Module] | None:
    """The class of the modules whose output a decoder returns as `router_logits`; None where it returns none."""
    recorded = (getattr(decoder, "_can_record_outputs", None) or {}).get("router_logits")
    found = getattr(recorded, "target_class", recorded)
    return found if isinstance(found, type) else None


def _default_name() -> str:
    return next(name for name in CACHE_NAMES if name in inspect.signature(create_causal_mask).parameters)
