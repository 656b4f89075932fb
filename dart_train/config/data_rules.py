"""Rules of the section `data`, and of batches without padding."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .errors import ConfigIssue
from .schema import Data, Recipe


def check_data(recipe: Recipe) -> Iterator[ConfigIssue]:
    data = recipe.data
    if data.min_pixels and data.max_pixels and data.min_pixels > data.max_pixels:
        what = f"{data.min_pixels} is above data.max_pixels {data.max_pixels}"
        yield ConfigIssue("data.min_pixels", what, "expected min_pixels <= max_pixels")
    problem = _template_problem(data)
    if problem is not None:
        yield ConfigIssue("data.template", problem, "give a Jinja file, or its text")
    streamed = any(source.streaming for source in data.train)
    if streamed and data.group_by_length:
        yield ConfigIssue(
            "data.group_by_length",
            "needs all lengths in advance, which a streaming source does not have",
            "set it to false",
        )
    if streamed and data.turns == "apart":
        what = "apart, but the answers of streamed rows cannot be counted in advance"
        yield ConfigIssue("data.turns", what, "choose together, or write one row for each answer")
    if streamed and recipe.train.max_steps is None:
        yield ConfigIssue("train.max_steps", "missing", "a streaming source has no length to count epochs by")


def _template_problem(data: Data) -> str | None:
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        source = data.template_text()
    except ValueError as error:
        return str(error)
    if source is None:
        return None
    # {% generation %} is a block of transformers' own, which checks its ends when the template is compiled
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
    try:
        ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(plain)
    except TemplateSyntaxError as error:
        return f"not a Jinja template: {error.message}, line {error.lineno}"
    return None


def check_packing(recipe: Recipe) -> Iterator[ConfigIssue]:
    train, data = recipe.train, recipe.data
    if train.padding_free and data.pad_to_multiple_of:
        what = f"{data.pad_to_multiple_of}, but train.padding_free leaves nothing to pad"
        yield ConfigIssue("data.pad_to_multiple_of", what, "leave one of them out")
    if train.tokens_per_batch is None:
        return
    path = "train.tokens_per_batch"
    if not train.padding_free:
        yield ConfigIssue("train.padding_free", f"false, but {path} needs it", "set it to true")
    if train.per_device_batch_size != 1:
        what = f"given {train.per_device_batch_size}, together with {path}"
        yield ConfigIssue("train.per_device_batch_size", what, "leave one of them out")
    if any(source.streaming for source in data.train):
        what = "needs all lengths in advance, which a streaming source does not have"
        yield ConfigIssue(path, what, "use train.per_device_batch_size, or read the source from disk")
    elif data.allow_urls and not data.group_by_length:
        what = "needs all lengths in advance, and the size of an image that is fetched is a download"
        yield ConfigIssue(path, what, "store the images on disk, or accept it with data.group_by_length true")
