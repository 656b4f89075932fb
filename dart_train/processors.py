"""The former path of `dart_train.models.processors`, kept until the next release."""

import warnings

from .models.processors import NoVideo, load_processor

warnings.warn(
    "dart_train.processors is now dart_train.models.processors; use dart_train.load_processor",
    DeprecationWarning,
    stacklevel=2,
)

__all__ = ["NoVideo", "load_processor"]
