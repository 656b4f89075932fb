"""The answers of one checkpoint, cell after cell, written down batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import Found
from ..pixels.families import shrink_of
from ..recipe import Recipe
from ..reducers import FewerPixels
from .cells import Cell
from .journal import Journal, Key, Line, ranges
from .questions import Question
from .subject import Asked, Subject

FORMAT = 1  # raise it when answers of the same settings may come out differently
_WEIGHTS = ("*.safetensors", "*.bin")


def fingerprint(recipe: Recipe, cell: Cell, found: Found) -> str:
    """Equal for cells whose answers may stand side by side: same weights, same method, same way of asking."""
    places = [found.place.folder, Path(found.source.path)]
    files = [file for place in places if place.is_dir() for glob in _WEIGHTS for file in sorted(place.glob(glob))]
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    configs = [stage.to_dict() for stage in cell.stages]
    config = configs if len(configs) > 1 else next(iter(configs), None)
    say = (recipe.compare.max_new_tokens, recipe.model.dtype, found.kernel, found.source.revision)
    text = json.dumps([FORMAT, found.source.path, stamps, cell.checkpoint, cell.method, config, say])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def key_for(cell: str, question: Question) -> Key:
    return (cell, question.set, question.id, question.key)


Todo = list[tuple[Cell, str, list[Question]]]  # cell, its fingerprint, what is still to be asked


def ask(subject: Subject, todo: Todo, recipe: Recipe, journal: Journal, bar: tqdm[Any]) -> None:
    size, most = recipe.compare.batch_size, recipe.compare.max_new_tokens
    for cell, mark, questions in todo:
        if not questions:
            continue
        bar.set_postfix_str(cell.name)
        with subject.at(cell) as asked:
            for some in batches(questions, size):
                journal.add(_answered(subject, asked, cell, mark, some, most))
                bar.update(len(some))


def batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Of like length together: padding is computed too."""
    order = sorted(questions, key=lambda question: (len(question.refs), len(question.text)))
    return (order[start : start + size] for start in range(0, len(order), size))


@torch.inference_mode()
def _answered(
    subject: Subject, asked: Asked, cell: Cell, mark: str, questions: Sequence[Question], most: int
) -> list[Line]:
    batch = asked.prompts.batch(questions)
    visual = asked.prompts.visual_tokens(batch["input_ids"])
    written = asked.generate(subject.moved(batch), most)
    said = asked.prompts.processor.batch_decode(written, skip_special_tokens=True)
    kept = _kept(asked, visual)
    before = visual
    if isinstance(cell.reducer, FewerPixels):
        before = [_unshrunk(subject.processor, question) for question in questions]
    return [
        {
            "cell": mark,
            "checkpoint": cell.checkpoint,
            "method": cell.method,
            "budget": cell.budget,
            "set": question.set,
            "id": question.id,
            "kind": question.kind,
            "question": question.text,
            "answers": list(question.answers),
            "prediction": said[row].strip(),
            "visual_tokens": before[row],
            "kept": visual[row] if kept is None else len(kept[row]),
            "kept_tokens": None if kept is None or not visual[row] else ranges(kept[row]),
            "key": question.key,
        }
        for row, question in enumerate(questions)
    ]


def _kept(asked: Asked, visual: Sequence[int]) -> list[list[int]] | None:
    """Of each row, which of its visual tokens; None where all are."""
    last = None if asked.attached is None or not any(visual) else asked.attached.last
    if last is None:
        return None
    return [_places(kept, shown) for kept, shown in zip(last.kept_visual.cpu(), last.visual.cpu(), strict=True)]


def _places(kept: Tensor, shown: Tensor) -> list[int]:
    """kept, shown [L] -> numbers of the kept ones among those shown."""
    return [int(number) for number in kept[shown].nonzero().flatten()]


def _unshrunk(processor: Any, question: Question) -> int:
    """What the processor would have made of the pictures unasked."""
    shrink, store = shrink_of(processor), question.store
    sizes = [image.size for image in question.images()] if store else []
    return sum(shrink.full(height, width).tokens for width, height in sizes)
