"""The answers of one checkpoint, cell by cell: loaded once, each reduction attached for its cell only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import StoppingCriteria

from ..checkpoints import ResolvedModel, load
from ..config import Recipe
from ..data.images import ImageStore
from ..data.videos import Clip
from ..hooks import Attached, attach
from ..hooks.transformers_compat import cache_argument, cache_in_output
from ..models.prompts import to_device
from ..models.resize import accept_smaller_images, fewer_pixels, resizer_for
from ..profiling.timing import clock, synchronize
from ..reduction import FewerPixels
from .answer_store import AnswerKey, AnswerRecord, AnswerStore, to_ranges
from .comparison_grid import ComparisonCell
from .prompts import QuestionEncoder
from .questions import Question
from .second_turn import check_continues, first_turn

FORMAT = 1  # raise it when answers of the same settings may change
_WEIGHT_FILES = ("*.safetensors", "*.bin")


class TokenTimestamps(StoppingCriteria):
    """Records when each token is generated; it never stops the generation. `generate` itself waits for the device at
    this point, so waiting here costs nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        synchronize(input_ids.device)
        self.times.append(clock.read())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def seconds_per_token(self) -> float:
        """The mean over all tokens after the first."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)


@dataclass
class GenerationContext:
    """A checkpoint while the reduction of one cell is active."""

    model: Any
    encoder: QuestionEncoder
    attached: Attached | None

    def generate(
        self,
        batch: Mapping[str, Any],
        max_new_tokens: int,
        min_new_tokens: int = 0,
        timestamps: TokenTimestamps | None = None,
    ) -> Tensor:
        """[B, new] the generated tokens, greedy."""
        output = self._generate(batch, max_new_tokens, min_new_tokens, timestamps)
        generated: Tensor = output.sequences[:, batch["input_ids"].shape[1] :]
        return generated

    def prefill(self, batch: Mapping[str, Any]) -> Any:
        """The cache of the batch's prompts."""
        return cache_in_output(self._generate(batch, max_new_tokens=1))

    def _generate(
        self,
        batch: Mapping[str, Any],
        max_new_tokens: int,
        min_new_tokens: int = 0,
        timestamps: TokenTimestamps | None = None,
    ) -> Any:
        return self.model.generate(
            **batch,
            return_dict_in_generate=True,
            stopping_criteria=None if timestamps is None else [timestamps],
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens or None,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=_pad_token_id(self.encoder.processor, self.model),
        )

    def kept_tokens(self, visual: Sequence[int]) -> list[list[int]] | None:
        """Of each row, the numbers of the visual tokens kept in the last forward; None if all are kept.
        visual: the number of visual tokens of each row."""
        last = None if self.attached is None or not any(visual) else self.attached.last
        return None if last is None else _numbers(last.kept_visual, last.visual)

    def scored_tokens(self, visual: Sequence[int]) -> list[list[int]] | None:
        """Of these, the ones that a trained scorer decided on; None where there is no scorer."""
        last = None if self.attached is None or not any(visual) else self.attached.last
        return None if last is None or last.scored is None else _numbers(last.scored, last.visual)


def _numbers(chosen: Tensor, visual: Tensor) -> list[list[int]]:
    """Both [B, L] bool: which of a row's visual tokens are chosen, counted from 0."""
    rows = zip(chosen.cpu(), visual.cpu(), strict=True)
    return [mine[is_visual].nonzero().flatten().tolist() for mine, is_visual in rows]


class LoadedCheckpoint:
    """A model of the comparison, on its device, without a reduction."""

    def __init__(self, recipe: Recipe, path: str, device: torch.device) -> None:
        model = recipe.model
        loaded = load(
            path,
            reducer=None,
            dtype=None if model.dtype == "auto" else getattr(torch, model.dtype),
            attn_implementation=model.attn_implementation,
            device=device,
            revision=model.revision if path == model.path else None,
            trust_remote_code=model.trust_remote_code,
        )
        self.model, self.processor, self.device = loaded.model, loaded.processor, device
        ImageStore.from_config(recipe.data).leave_limits_to(self.processor)
        self.encoder = QuestionEncoder(self.processor)

    @contextmanager
    def reduced(self, cell: ComparisonCell) -> Iterator[GenerationContext]:
        """The cell's reduction is active inside the context."""
        if not cell.stages:
            yield GenerationContext(self.model, self.encoder, None)
        elif isinstance(cell.reducer, FewerPixels):
            with accept_smaller_images(self.model):
                encoder = QuestionEncoder(fewer_pixels(self.processor, cell.reducer.keep))
                yield GenerationContext(self.model, encoder, None)
        else:
            with attach(self.model, cell.all_stages) as attached:
                yield GenerationContext(self.model, self.encoder, attached)

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return to_device(batch, self.model)


def _pad_token_id(processor: Any, model: Any) -> int | None:
    tokenizer = processor.tokenizer
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, model.generation_config.eos_token_id)
    number = next((each for each in known if each is not None), None)
    return number[0] if isinstance(number, list) else number


def fingerprint(recipe: Recipe, cell: ComparisonCell, found: ResolvedModel) -> str:
    """Equal for cells whose answers may be mixed: same weights, same method, same generation settings."""
    places = [found.location.folder, Path(found.source.path)]
    files = [file for place in places if place.is_dir() for glob in _WEIGHT_FILES for file in sorted(place.glob(glob))]
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    configs = [stage.to_dict() for stage in cell.all_stages]
    config = configs if len(configs) > 1 else next(iter(configs), None)
    settings = (recipe.compare.max_new_tokens, recipe.model.dtype, found.attn_implementation, found.source.revision)
    text = json.dumps([FORMAT, found.source.path, stamps, cell.checkpoint, cell.method, config, settings])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class CellQuestions:
    """The questions of one cell that are not answered yet."""

    cell: ComparisonCell
    fingerprint: str
    questions: list[Question]


def key_for(cell_fingerprint: str, question: Question) -> AnswerKey:
    return (cell_fingerprint, question.set, question.id, question.key)


def answer_cells(
    checkpoint: LoadedCheckpoint, work: Sequence[CellQuestions], recipe: Recipe, store: AnswerStore, bar: tqdm[Any]
) -> None:
    """Generates the missing answers and stores them batch by batch."""
    for each in work:
        if not each.questions:
            continue
        bar.set_postfix_str(each.cell.name)
        with checkpoint.reduced(each.cell) as context:
            for batch in _batches(context.encoder, each.questions, recipe.compare.batch_size):
                store.append(answer_batch(checkpoint, context, each, batch, recipe.compare.max_new_tokens))
                bar.update(len(batch))


def _batches(encoder: QuestionEncoder, questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    yield from _length_batches([question for question in questions if not question.prefilled], size)
    continued = [question for question in questions if question.prefilled]
    yield from _equal_length_batches(encoder, continued, size)


def _equal_length_batches(
    encoder: QuestionEncoder, questions: Sequence[Question], size: int
) -> Iterator[list[Question]]:
    """Questions with as many tokens after the first turn: all padding is then before it, and none is between turns."""
    of_length: dict[int, list[Question]] = {}
    for question in questions:
        first, both = (encoder.features(each)["input_ids"].shape[1] for each in (first_turn(question), question))
        of_length.setdefault(both - first, []).append(question)
    for group in of_length.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _length_batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Questions of similar length together: padding costs compute too."""
    order = sorted(questions, key=lambda question: question.cost_order)
    return (order[start : start + size] for start in range(0, len(order), size))


@torch.inference_mode()
def answer_batch(
    checkpoint: LoadedCheckpoint,
    context: GenerationContext,
    work: CellQuestions,
    questions: Sequence[Question],
    max_new_tokens: int,
) -> list[AnswerRecord]:
    """The lines of results.jsonl for one batch of the cell's questions."""
    batch = context.encoder.batch(questions)
    visual = context.encoder.visual_tokens(batch["input_ids"])
    if questions[0].prefilled:
        first = context.encoder.batch([first_turn(question) for question in questions])
        check_continues(first["input_ids"], batch["input_ids"], questions[0])
        cache = context.prefill(checkpoint.to_device(first))
        kept, scored = context.kept_tokens(visual), context.scored_tokens(visual)
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}  # images are in the cache
        continued = {**checkpoint.to_device(text), cache_argument(checkpoint.model.generate): cache}
        generated = context.generate(continued, max_new_tokens)
    else:
        generated = context.generate(checkpoint.to_device(batch), max_new_tokens)
        kept, scored = context.kept_tokens(visual), context.scored_tokens(visual)
    texts = context.encoder.processor.batch_decode(generated, skip_special_tokens=True)
    before = visual
    if isinstance(work.cell.reducer, FewerPixels):
        before = [_full_visual_tokens(checkpoint.processor, question) for question in questions]
    return [
        {
            "cell": work.fingerprint,
            "checkpoint": work.cell.checkpoint,
            "method": work.cell.method,
            "budget": work.cell.budget,
            "set": question.set,
            "id": question.id,
            "kind": question.kind,
            "question": question.text,
            "answers": list(question.answers),
            "prediction": texts[row].strip(),
            "visual_tokens": before[row],
            "kept": visual[row] if kept is None else len(kept[row]),
            "kept_tokens": None if kept is None or not visual[row] else to_ranges(kept[row]),
            **({} if scored is None or not visual[row] else {"scored_tokens": to_ranges(scored[row])}),
            "key": question.key,
        }
        for row, question in enumerate(questions)
    ]


def _full_visual_tokens(processor: Any, question: Question) -> int:
    """The number of visual tokens without `fewer_pixels`, which no question with a video is asked with."""
    resizer, images = resizer_for(processor), question.media(processor)
    return sum(resizer.full(each.height, each.width).tokens for each in images if not isinstance(each, Clip))
