"""The plug-in of lmms-eval, found by it through the entry-point group `lmms_eval.models`:

    lmms-eval --model dart_train --model_args pretrained=DIR,reducer=dart,keep=64 --tasks mme,textvqa_val

Tasks that generate are asked through the chat template; with --force_simple also those that weigh given answers.
"""

from __future__ import annotations

from typing import Any

NAME = "dart_train"


def manifest() -> Any:
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id=NAME,
        simple_class_path=f"{__name__}.model.Simple",
        chat_class_path=f"{__name__}.model.Chat",
    )


__all__ = ["NAME", "manifest"]
