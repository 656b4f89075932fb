"""`reducer.json`: how the model was trained to see less, beside its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..reducers import Reducer, from_config

NAME = "reducer.json"
FORMAT = 1  # raise it when the file changes in a way that older readers would misread


def write_reducers(folder: Path, reducers: Sequence[Reducer]) -> None:
    """No stage: the model was trained without a reduction."""
    content = {"format": FORMAT, "stages": [reducer.to_dict() for reducer in reducers]}
    (folder / NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_reducers(folder: Path) -> list[Reducer] | None:
    """What the checkpoint was trained with; None where nothing is written."""
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        given = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{file}: format {given!r}, expected {FORMAT}; update dart_train to read it")
    try:
        return [from_config(stage) for stage in content["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: {error}; is it of a newer version, or its method of a package that is not here?"
        ) from error
