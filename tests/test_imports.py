"""Every module can be imported."""

from __future__ import annotations

import importlib
import pkgutil

import dart_train

PLUGINS = ("dart_train.lmms_eval.", "dart_train.vllm_plugin.")  # import a program that is not a dependency


def test_every_module_can_be_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(dart_train.__path__, "dart_train.")]
    for name in names:
        if not name.startswith(PLUGINS) and not name.endswith("__main__"):
            importlib.import_module(name)
    assert len(names) > 50
