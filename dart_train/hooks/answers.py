"""Where the answers of a batch begin: no answer may influence which visual tokens are kept.

What is supervised and what is an answer differ: a loss over the whole sequence supervises the prompt too, and a trainer
may take the labels away before it calls the model. The first of these that applies to a forward decides:

1. what `prefetch_batch` was given: `answer_mask`, `prompt_lengths` or labels
2. `answer_mask` [B, L] or `prompt_lengths` [B] among the model's inputs (`Attached.collate` adds the first)
3. the prompt that `generate` was called with
4. labels, in rows where they supervise less than all text
5. an integer `logits_to_keep` > 1 without labels: the logits of a completion, and one before it
6. marks of the chat template: what it writes between a question and the answer
7. nothing: one warning in training, or an error with `attach(..., strict=True)`

All is decided on the host, from what the one transfer of a forward brings there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.hub import offline
from ..reduction.batch_layout import IGNORED, answers_after

INPUTS = ("answer_mask", "prompt_lengths")  # of this package: the model itself does not know them
QUESTIONS = ("Where?", "name it", "7", "Two.")  # of different ends, so that what follows all of them is the template's
ANSWERS = ("here", "5", "No.")

REMEDY = (
    "Wrap the trainer's collator: data_collator=attached.collate(collator), where it knows labels of the answers alone "
    "(completion_mask, assistant_masks); or add `prompt_lengths` [batch] to the batch (tokens of each row before its "
    "first answer, padding not counted); or give attach(..., processor=processor), whose chat template marks answers."
)
NO_LABELS = (
    "the model was called without labels in training (train mode, or gradients are recorded: infer in eval mode under "
    "torch.no_grad()), so that answers may influence which visual tokens are kept, which they cannot do in generation. "
    "A trainer takes labels away with label_smoothing_factor or compute_loss_func, as does a loss outside the model. "
)
ALL_SUPERVISED = (
    "labels supervise the text right after an image, as a loss over the whole sequence does (the default of TRL's "
    "SFTTrainer on `messages`), so that it is not known where the question ends and the answer begins: the question "
    "does not influence which visual tokens are kept, as it does in generation. Set completion_only_loss or "
    "assistant_only_loss, or keep the loss: "
)


@dataclass(frozen=True)
class CallInputs:
    """What the outer model was called with that the inner one does not get."""

    labels: Tensor | None = None
    logits_to_keep: int = 0
    answer_mask: Tensor | None = None
    prompt_lengths: Tensor | None = None

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> CallInputs:
        wanted = kwargs.get("logits_to_keep")
        number = wanted if isinstance(wanted, int) else 0
        return cls(kwargs.get("labels"), number, *(kwargs.get(name) for name in INPUTS))


@dataclass(frozen=True)
class AnswerMarks:
    """What a chat template writes: `opening`, the ids between a question and its answer; `closing`, the id that ends an
    answer, None where the template writes none."""

    opening: tuple[int, ...]
    closing: int | None

    @classmethod
    def of(cls, processor: Any) -> AnswerMarks | None:
        """None for a processor without a chat template."""
        tokenizer = getattr(processor, "tokenizer", processor)
        source = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        if not source:
            return None

        def ids(question: str, answer: str | None = None) -> list[int]:
            turns = [("user", question)] + ([] if answer is None else [("assistant", answer)])
            messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
            text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
            found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return found

        opening = _common_end([ids(question) for question in QUESTIONS])
        closing = _common_end([ids(QUESTIONS[0], answer) for answer in ANSWERS])
        return cls(opening, closing[0] if closing else None) if opening else None

    def answers(self, ids: Tensor, begin: int) -> Tensor | None:
        """ids [L] -> [L] bool: the answers after position `begin`; None where no opening mark is there."""
        mark = torch.tensor(self.opening)
        if len(ids) < len(mark):
            return None
        starts = (ids.unfold(0, len(mark), 1) == mark).all(1).nonzero().flatten() + len(mark)
        starts = starts[starts >= begin + len(mark)]
        if not len(starts):
            return None
        found = torch.zeros(len(ids), dtype=torch.bool)
        for start in starts.tolist():
            ends = [] if self.closing is None else (ids[start:] == self.closing).nonzero().flatten().tolist()
            found[start : start + ends[0] + 1 if ends else len(ids)] = True
        return found


def _common_end(rows: list[list[int]]) -> tuple[int, ...]:
    number = 0
    while number < min(map(len, rows)) and len({row[-1 - number] for row in rows}) == 1:
        number += 1
    return tuple(rows[0][len(rows[0]) - number :])


class AnswerLocator:
    """Finds the answers of each forward. name: where the model was loaded from, for its processor."""

    def __init__(self, visual_ids: tuple[int, ...], processor: Any, name: str, strict: bool) -> None:
        self.visual_ids, self.processor, self.name, self.strict = visual_ids, processor, name, strict
        self._marks: tuple[AnswerMarks | None] | None = None
        self._warned = set[str]()

    def locate(
        self, host: Mapping[str, Any], call: CallInputs, trusted: bool = False, training: Callable[[], bool] = bool
    ) -> Tensor | None:
        """[B, L] bool on the host, or None: the answers are what is supervised.

        host: ids, mask, labels and this package's own inputs; trusted: labels came from `prefetch_batch`.
        """
        ids, labels = host["ids"], host.get("labels")
        real = torch.ones_like(ids, dtype=torch.bool) if host.get("mask") is None else host["mask"].bool()
        if host.get("answer_mask") is not None:
            _check_shape("answer_mask", host["answer_mask"], tuple(ids.shape))
            return host["answer_mask"].bool() & real
        if host.get("prompt_lengths") is not None:
            _check_shape("prompt_lengths", host["prompt_lengths"], (len(ids),))
            return answers_after(host["prompt_lengths"], real)
        visual = torch.isin(ids, torch.tensor(self.visual_ids)) & real
        supervised = torch.zeros_like(real) if labels is None else (labels != IGNORED) & real
        unknown: list[int] = visual.any(1).nonzero().flatten().tolist()
        if labels is not None:
            if trusted:
                return None
            unknown = [row for row in unknown if _whole_sequence(real[row], visual[row], supervised[row])]
        elif 1 < call.logits_to_keep <= ids.shape[1]:
            answers = torch.zeros_like(real)
            answers[:, 1 - call.logits_to_keep :] = True
            return answers & real
        if not unknown or (labels is None and not training()):
            return None
        return self._from_marks(ids, real, visual, supervised, unknown, NO_LABELS if labels is None else ALL_SUPERVISED)

    def _from_marks(
        self, ids: Tensor, real: Tensor, visual: Tensor, supervised: Tensor, unknown: list[int], problem: str
    ) -> Tensor:
        answers, marks = supervised.clone(), self._answer_marks()
        for row in unknown:
            found = None if marks is None else marks.answers(ids[row], int(visual[row].nonzero()[0]))
            if found is None:
                self._report(problem)
            else:
                answers[row] = found & real[row]
        return answers

    def _answer_marks(self) -> AnswerMarks | None:
        if self._marks is None:
            processor = self.processor if self.processor is not None else _processor_of(self.name)
            self._marks = (None if processor is None else AnswerMarks.of(processor),)
        return self._marks[0]

    def _report(self, problem: str) -> None:
        message = f"{problem}{REMEDY}"
        if self.strict:
            raise ValueError(message)
        if problem not in self._warned:
            self._warned.add(problem)
            warnings.warn(message, stacklevel=2)


def _check_shape(name: str, given: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(given.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, but the batch needs {expected}")


def _whole_sequence(real: Tensor, visual: Tensor, supervised: Tensor) -> bool:
    """All [L]. Whether labels do not separate a prompt from its answer: the beginning of the row is supervised (in
    answers alone it never is; some collators leave out special tokens, so look at three), or the text right after the
    first image is."""
    text = real & ~visual
    first = int(visual.nonzero()[0])
    before, after = text[:first].nonzero().flatten()[:3], text[first:].nonzero().flatten()[:1] + first
    return bool(supervised[before].any()) or bool(supervised[after].any())


def _processor_of(name: str) -> Any:
    """The processor of the folder or hub name that the model was loaded from, where it is on this machine."""
    if not name:
        return None
    from transformers import AutoProcessor

    try:
        with offline():
            return AutoProcessor.from_pretrained(name, local_files_only=True)
    except Exception:  # not found, or saved in a way that only the model can read: then there are no marks
        return None


class AnswerCollator:
    """A collator that adds `answer_mask` to the batches of another. Can be pickled, for workers of a data loader."""

    def __init__(self, collator: Callable[..., Any], visual_ids: tuple[int, ...]) -> None:
        self.collator, self.visual_ids = collator, visual_ids

    def __call__(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.collator(rows, *args, **kwargs)
        answers = self._answers(batch)
        if answers is not None:
            batch["answer_mask"] = answers.long()
        return batch

    def _answers(self, batch: Any) -> Tensor | None:
        """[B, L] bool, from the first of: masks of the completion or the assistant, labels. None where labels do not
        separate prompts from answers in every row, or the batch has its answers already."""
        if any(name in batch for name in INPUTS):
            return None
        for name in ("completion_mask", "assistant_masks"):
            if isinstance(batch.get(name), Tensor) and batch[name].shape == batch["input_ids"].shape:
                found: Tensor = batch[name].bool()
                return found
        if batch.get("labels") is None or batch["labels"].shape != batch["input_ids"].shape:
            return None
        mask = batch.get("attention_mask")
        real = torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()
        visual = torch.isin(batch["input_ids"], torch.tensor(self.visual_ids)) & real
        supervised = (batch["labels"] != IGNORED) & real
        rows = visual.any(1).nonzero().flatten().tolist()
        unclear = any(_whole_sequence(real[row], visual[row], supervised[row]) for row in rows)
        return None if unclear else supervised
