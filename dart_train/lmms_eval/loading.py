"""From --model_args to a loaded model: the arguments of `dart_train.load`, written as key=value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ..checkpoints import Loaded, load, resolve
from ..models.prompts import prompt_problems
from ..reduction.budget import Keep, check_keep

# Passed to `load` unchanged.
_LOAD_OPTIONS = ("attn_implementation", "checkpoint", "base", "revision", "trust_remote_code")
# Options of a reducer that are a single word. With any of them, a new reducer is made instead of the trained one.
_REDUCER_OPTIONS = ("layer", "per", "merge", "positions", "image_pivots", "text_pivots", "pivot", "rule", "seed")
MODEL_ARGS = ("pretrained", "reducer", "keep", "dtype", "device", *_LOAD_OPTIONS, *_REDUCER_OPTIONS)


def open_model(model_args: Mapping[str, Any], device: str | None) -> Loaded:
    """Raises one ValueError with everything that is wrong, before any weight is read. device: overrides that of the
    model_args."""
    options = {name: value for name, value in model_args.items() if value is not None}
    problems = [_unknown(name) for name in options if name not in MODEL_ARGS]
    if "pretrained" not in options:
        problems.append("pretrained: missing; give the folder or hub id of the model")
    if "keep" in options and (problem := check_keep(options["keep"])):
        problems.append(problem)
    reducer = "trained" if problems else _reducer(options, problems)
    load_options = {name: options[name] for name in _LOAD_OPTIONS if name in options}
    keep: Keep | None = options.get("keep")
    if not problems:
        found = resolve(options["pretrained"], reducer, keep=keep, **load_options)
        problems += prompt_problems(found.processor)
    if problems:
        raise ValueError("model_args: " + "; ".join(problems))
    dtype = options.get("dtype")
    return load(
        options["pretrained"],
        reducer,
        keep=keep,
        dtype=None if dtype in (None, "auto") else str(dtype),
        device=device or options.get("device"),
        **load_options,
    )


def _reducer(options: Mapping[str, Any], problems: list[str]) -> Any:
    """The `reducer` argument of `load`."""
    given = {name: options[name] for name in _REDUCER_OPTIONS if name in options}
    name = options.get("reducer", "trained")
    if name == "none":
        return None
    if not given:
        return name
    if name == "trained":
        problems.append(f"{', '.join(given)}: options of which reducer? give reducer=, such as reducer=dart")
    return {"method": name, **given}


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, MODEL_ARGS, n=1)
    return f"{name}: unknown, " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(MODEL_ARGS)}")
