"""What is otherwise than when the checkpoint was written: a run that goes on must be the run that began."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..recipe import Recipe
from .base_model import base_of
from .record import BASE, RECIPE, VERSIONS, versions

# What may change: none of it touches which rows are learnt from, or how.
FREE = (
    "compare", "log", "data.validation", "data.workers", "data.allow_urls", "data.on_bad_row",
    "data.max_bad_fraction", "model.path", "model.revision", "train.output_dir", "train.epochs", "train.max_steps",
    "train.per_device_eval_batch_size", "train.gradient_checkpointing", "train.save_steps", "train.save_total_limit",
    "train.eval_steps", "train.eval_budgets", "train.resume", "train.logging_steps", "train.overlay_steps",
    "train.on_nan", "train.on_save_error", "train.timeout_seconds",
)  # fmt: skip


def check_unchanged(checkpoint: Path, recipe: Recipe, force: bool) -> list[str]:
    """The differences. Raises ValueError where there are some and `force` does not say to go on."""
    found = [*_recipe(checkpoint, recipe), *_base(checkpoint, recipe), *_versions(checkpoint)]
    if found and not force:
        told = "\n".join(f"  {each}" for each in found)
        raise ValueError(
            f"{checkpoint} was written otherwise:\n{told}\nGo back to that, choose another train.output_dir, or go "
            "on with these differences: --force. Nothing was touched"
        )
    return found


def _recipe(checkpoint: Path, recipe: Recipe) -> Iterator[str]:
    # Through YAML, as it was written: a tuple is a list there.
    yield from _differences(_read(checkpoint / RECIPE), yaml.safe_load(recipe.to_yaml()), "")


def _differences(then: Any, now: Any, path: str) -> Iterator[str]:
    if path in FREE or then == now:
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*then, *now]):
            # A key that the older recipe did not know had its default then, as it has where it is not given.
            if key in then and key in now:
                yield from _differences(then[key], now[key], f"{path}.{key}" if path else str(key))
        return
    yield f"{path}: {then!r} then, {now!r} now"


def _base(checkpoint: Path, recipe: Recipe) -> Iterator[str]:
    then, now = _read(checkpoint / BASE).get("model"), base_of(recipe)["model"]
    if then is not None and then != now:
        yield f"model.path: another base model, {recipe.model.path} ({then} then, {now} now)"


def _versions(checkpoint: Path) -> Iterator[str]:
    then, now = _read(checkpoint / VERSIONS), versions()
    yield from (f"{name}: {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name])


def _read(file: Path) -> dict[str, Any]:
    """Nothing where nothing was written down."""
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
