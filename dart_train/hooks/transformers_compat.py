"""Names of transformers that differ between the releases this package supports, each found where it is called.

Read in 5.23.0 and 5.24.0: the cache is the argument `past_key_values` of models, layers and attention until 5.23, and
`cache` from 5.24 on (the old name works until 5.40, with a FutureWarning). The same holds for the mask builders and for
the field of a model's output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transformers.masking_utils import create_causal_mask

CACHE_NAMES = ("cache", "past_key_values")  # the newest first


def cache_argument(function: Callable[..., Any]) -> str:
    """The name under which `function` takes a cache. One that takes only **kwargs gets the name of this release."""
    parameters = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in parameters), _default_name())


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a call, or None."""
    return next((inputs[name] for name in CACHE_NAMES if inputs.get(name) is not None), None)


def cache_in_output(output: Any) -> Any:
    """The cache that a model's output carries, or None."""
    return next((getattr(output, name) for name in CACHE_NAMES if getattr(output, name, None) is not None), None)


def _default_name() -> str:
    return next(name for name in CACHE_NAMES if name in inspect.signature(create_causal_mask).parameters)
