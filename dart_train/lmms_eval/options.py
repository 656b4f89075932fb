"""What stands behind --model_args: everything that `dart_train.load` takes, as words of a command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ..checkpoints import Loaded, ResolvedModel, load, resolve
from ..models.prompts import prompt_problems
from ..reduction.budget import Keep, check_keep

# Handed to `load` as they are.
_LOADING = ("attn_implementation", "checkpoint", "base", "revision", "trust_remote_code")
# Fields of a reducer that can be said in one word; they make a new one of the method, nothing is as trained then.
_OF_REDUCER = ("layer", "per", "merge", "image_pivots", "text_pivots", "pivot", "rule", "seed")
KNOWN = ("pretrained", "reducer", "keep", "dtype", "device", *_LOADING, *_OF_REDUCER)


def open_model(given: Mapping[str, Any], device: str | None) -> Loaded:
    """Everything wrong is told in one message, before a weight is read."""
    options = {name: value for name, value in given.items() if value is not None}
    wrong = [_unknown(name) for name in options if name not in KNOWN]
    if "pretrained" not in options:
        wrong.append("pretrained: missing; give the folder or hub id of the model")
    if "keep" in options and (problem := check_keep(options["keep"])):
        wrong.append(problem)
    reducer = "trained" if wrong else _reducer(options, wrong)
    how = {name: options[name] for name in _LOADING if name in options}
    keep: Keep | None = options.get("keep")
    if not wrong:
        wrong += prompt_problems(_found(options["pretrained"], reducer, keep, how).processor)
    if wrong:
        raise ValueError("model_args: " + "; ".join(wrong))
    where = device or options.get("device")
    return load(options["pretrained"], reducer, keep=keep, dtype=_dtype(options), device=where, **how)


def _found(path: str, reducer: Any, keep: Keep | None, how: Mapping[str, Any]) -> ResolvedModel:
    return resolve(path, reducer, keep=keep, **how)


def _reducer(options: Mapping[str, Any], wrong: list[str]) -> Any:
    """The `reducer` argument of `load`."""
    fields = {name: options[name] for name in _OF_REDUCER if name in options}
    name = options.get("reducer", "trained")
    if not fields or name == "none":
        return None if name == "none" else name
    if name == "trained":
        wrong.append(f"{', '.join(fields)}: of which reduction? give reducer=, such as dart")
    return {"method": name, **fields}


def _dtype(options: Mapping[str, Any]) -> str | None:
    dtype = options.get("dtype")
    return None if dtype in (None, "auto") else str(dtype)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, KNOWN, n=1)
    return f"{name}: unknown, " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(KNOWN)}")
