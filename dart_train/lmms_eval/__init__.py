"""The lmms-eval plug-in. lmms-eval finds it through the entry-point group `lmms_eval.models`:

    lmms-eval --model dart_train --model_args pretrained=DIR,reducer=dart,keep=64 --tasks mme,textvqa_val

Tasks that generate use the chat template. With --force_simple, tasks that score given answers work too.
"""

from __future__ import annotations

from typing import Any

NAME = "dart_train"


def manifest() -> Any:
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id=NAME,
        simple_class_path=f"{__name__}.model.SimpleModel",
        chat_class_path=f"{__name__}.model.ChatModel",
    )


__all__ = ["NAME", "manifest"]
