"""The answers of one checkpoint, cell after cell, written down batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import StoppingCriteria

from ..checkpoints import Found, load
from ..config import Recipe
from ..hooks import Attached, attach
from ..models.interpolate_positions import interpolated_positions
from ..models.resize import fewer_pixels
from ..models.resize.families import Square, shrink_of
from ..profiling.timing import clock, synchronize
from ..reduction import FewerPixels
from .answer_store import AnswerStore, Key, Line, ranges
from .comparison_grid import Cell
from .prompts import Prompts
from .questions import Question

# When each token of an answer was there, noted while it is written.


class TokenTimestamps(StoppingCriteria):
    """Asked by `generate` behind every token whether to stop, which it never wants. `generate` itself waits for the
    device there, so that waiting here costs nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        synchronize(input_ids.device)
        self.times.append(clock.read())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def apart(self) -> float:
        """Seconds from one token to the next, the mean over all behind the first."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)


# A checkpoint that is asked: loaded once, its reductions put on and taken off again.


@dataclass
class Asked:
    """A subject as one cell asks it."""

    model: Any
    prompts: Prompts
    attached: Attached | None

    def generate(
        self, batch: Mapping[str, Any], most: int, least: int = 0, ticks: TokenTimestamps | None = None
    ) -> Tensor:
        """[B, new] what the model writes, greedily. ticks: notes when each token came."""
        made = self.model.generate(
            **batch,
            stopping_criteria=None if ticks is None else [ticks],
            max_new_tokens=most,
            min_new_tokens=least or None,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=_pad(self.prompts.processor, self.model),
        )
        written: Tensor = made[:, batch["input_ids"].shape[1] :]
        return written


class Subject:
    def __init__(self, recipe: Recipe, path: str, device: torch.device) -> None:
        say = recipe.model
        loaded = load(
            path,
            reducer=None,
            dtype=None if say.dtype == "auto" else getattr(torch, say.dtype),
            attn_implementation=say.attn_implementation,
            device=device,
            revision=say.revision if path == say.path else None,
            trust_remote_code=say.trust_remote_code,
        )
        self.model, self.processor, self.device = loaded.model, loaded.processor, device
        self.prompts = Prompts(self.processor)

    @contextmanager
    def at(self, cell: Cell) -> Iterator[Asked]:
        reducer = cell.reducer
        if not cell.stages:
            yield Asked(self.model, self.prompts, None)
            return
        with ExitStack() as stack:
            if isinstance(reducer, FewerPixels):
                if isinstance(shrink_of(self.processor), Square):
                    stack.enter_context(interpolated_positions(self.model))
                yield Asked(self.model, Prompts(fewer_pixels(self.processor, reducer.keep)), None)
                return
            attached = stack.enter_context(attach(self.model, cell.stages))
            yield Asked(self.model, self.prompts, attached)

    def moved(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """To the device, pictures in the dtype of the weights."""
        dtype = self.model.dtype
        return {
            name: value.to(self.device, dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in batch.items()
        }


def _pad(processor: Any, model: Any) -> int | None:
    tokenizer = processor.tokenizer
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, model.generation_config.eos_token_id)
    number = next((each for each in known if each is not None), None)
    return number[0] if isinstance(number, list) else number


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


def ask(subject: Subject, todo: Todo, recipe: Recipe, journal: AnswerStore, bar: tqdm[Any]) -> None:
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
