"""One sample through the model's own processor: token ids, labels, and whatever the family feeds its model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets.fingerprint import Hasher
from PIL import Image

from ..models.prompts import special_tokens
from .chat_template import ChatTemplate
from .issues import BadRowError, Finding
from .sample import Sample
from .truncation import IGNORED, POLICIES, Tokens, TooLongError, fit, make_tokens

# What the processor writes for a picture of a given size, without reading the picture.

Sizes = tuple[tuple[int, int], ...]
_REMEMBERED = 256  # the text of one large picture may be a quarter of a megabyte


class ImageTokenCounter:
    """The placeholders of pictures depend on their sizes alone, so a blank of the same size tells; every size is
    asked for once. `visual` are the ids that the model replaces by image features."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.visual = visual_token_ids(processor)
        self._marks = processor.tokenizer.convert_ids_to_tokens(sorted(self.visual))
        self.texts = functools.lru_cache(maxsize=_REMEMBERED)(self._texts)

    def __getstate__(self) -> dict[str, Any]:  # a cache does not travel to workers
        return {"processor": self.processor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["processor"])  # type: ignore[misc]

    def counts(self, sizes: Sizes) -> list[int]:
        """Visual tokens of each picture of one conversation, from their (width, height)."""
        return [sum(text.count(mark) for mark in self._marks) for text in self.texts(sizes)]

    def _texts(self, sizes: Sizes) -> list[str]:
        if not sizes:
            return []
        blanks = [Image.new("RGB", size) for size in sizes]
        text = " ".join([self.processor.image_token] * len(sizes))
        output = self.processor(text=[text], images=[blanks], return_text_replacement_offsets=True)
        return [picture["replacement"] for picture in output["text_replacement_offsets"][0]]


def visual_token_ids(processor: Any) -> frozenset[int]:
    """The ids that stand for image features. A processor may count the marks round them in as well, or name the
    mark in the text instead (Gemma); what is in both lists, or else in the list, is the placeholder."""
    ids = [number for number in processor.image_token_ids if number is not None]
    alone = processor.image_token_id
    if not ids:
        raise ValueError(f"{type(processor).__name__} has no image token; a processor of a vision model is needed")
    return frozenset([alone] if alone in ids else ids)


@dataclass(frozen=True)
class Encoded:
    """`features` are tensors for a batch of one, `labels` among them."""

    features: dict[str, torch.Tensor]
    notes: tuple[Finding, ...] = ()

    @property
    def length(self) -> int:
        return self.features["input_ids"].shape[1]


@dataclass(frozen=True)
class Length:
    """What a row costs: all its tokens, those that are used (0: dropped), and of each picture the visual ones, the
    turn that it is in, and the tokens of text behind it (see `count_kept_by_stage`)."""

    total: int
    used: int
    visual: tuple[int, ...]
    turns: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    note: Finding | None = None  # what the length limit does to the row


class Encoder:
    """Built once for a run: refuses a processor whose chat template cannot be trained with."""

    def __init__(self, processor: Any, max_length: int | None = None, on_too_long: str = "drop") -> None:
        if on_too_long not in POLICIES:
            raise ValueError(f"on_too_long: got {on_too_long!r}, expected one of {', '.join(POLICIES)}")
        self.processor, self.max_length, self.on_too_long = processor, max_length, on_too_long
        self.template = ChatTemplate(processor)
        self.expander = ImageTokenCounter(processor)

    def encode(self, sample: Sample, images: Sequence[Image.Image]) -> Encoded:
        """Raises `BadRowError`; `TooLongError` under on_too_long: error."""
        features, tokens, pictures = self._process(sample, images)
        shorter, end = self._fit(sample, tokens, [picture["replacement"] for picture in pictures])
        before = len(tokens.ids)
        if end == before:
            return Encoded(_checked(features))
        if shorter is not sample:
            features, _, _ = self._process(shorter, images)
        note = Finding("truncated_text", f"{before - end} of {before} tokens cut")
        return Encoded(_checked(_cut(features, end)), (note,))

    def measure(self, sample: Sample, sizes: Sizes) -> Length:
        """What `encode` would give, from the (width, height) of the pictures alone. Raises `BadRowError` too, but not
        for a row that is too long."""
        self._refuse_forged(sample)
        expansions = self._expansions(sizes)
        tokens = self._tokens(sample, expansions)
        whole = len(tokens.ids)
        length = Length(whole, whole, tuple(self.expander.counts(sizes)), tokens.turns(),
                        tokens.behind(self.expander.visual))  # fmt: skip
        try:
            _, used = self._fit(sample, tokens, expansions)
        except BadRowError as bad:
            return replace(length, used=0, note=bad.finding)
        except TooLongError as error:
            return replace(length, used=0, note=Finding("over_limit", str(error)))
        note = None if used == whole else Finding("truncated_text", f"{whole - used} of {whole} tokens cut")
        return replace(length, used=used, note=note)

    def _fit(self, sample: Sample, tokens: Tokens, expansions: list[str]) -> tuple[Sample, int]:
        if self.max_length is None or len(tokens.ids) <= self.max_length:
            return sample, len(tokens.ids)

        def tokenise(shorter: Sample) -> Tokens:
            return self._tokens(shorter, expansions)

        return fit(sample, tokens, self.max_length, self.on_too_long, tokenise, self.processor.tokenizer)

    def key(self) -> str:
        """Equal for encoders that measure equally."""
        parts = (self.template.source, self.processor.to_json_string(), self.processor.tokenizer.get_vocab())
        return Hasher.hash((parts, self.max_length, self.on_too_long))

    def _expansions(self, sizes: Sizes) -> list[str]:
        try:
            return self.expander.texts(sizes)
        except Exception as error:
            raise BadRowError("template_failed", f"the processor refuses the images: {error}") from error

    def _tokens(self, sample: Sample, expansions: list[str]) -> Tokens:
        text, answers = self.template.answers(sample.messages())
        texts, pictures = self.processor.get_text_with_replacements([text], list(expansions))
        output = self.processor.tokenizer(texts[0], return_offsets_mapping=True, **special_tokens(self.processor, text))
        found = pictures[0] if pictures else []
        return make_tokens(output["input_ids"], output["offset_mapping"], text, answers, found)

    def _process(
        self, sample: Sample, images: Sequence[Image.Image]
    ) -> tuple[dict[str, torch.Tensor], Tokens, list[dict[str, Any]]]:
        self._refuse_forged(sample)
        text, answers = self.template.answers(sample.messages())
        try:
            output = self.processor(
                text=[text],
                images=[list(images)] if images else None,
                return_offsets_mapping=True,
                return_text_replacement_offsets=True,
                **special_tokens(self.processor, text),
            )
        except Exception as error:  # a processor may refuse a picture's shape, a number of images, ...
            raise BadRowError("template_failed", f"the processor refuses the row: {error}") from error
        offsets, pictures = output.pop("offset_mapping")[0], (output.pop("text_replacement_offsets", None) or [[]])[0]
        tokens = make_tokens(output["input_ids"][0], offsets, text, answers, pictures)
        features = dict(output.convert_to_tensors("pt"))
        return {**features, "labels": torch.from_numpy(tokens.labels)[None]}, tokens, pictures

    def _refuse_forged(self, sample: Sample) -> None:
        for turn in sample.turns:
            for text in turn.texts:
                if token := self.template.find_control_token(text):
                    raise BadRowError("control_token", f"{token!r} in a {turn.role} turn")


def _cut(features: dict[str, torch.Tensor], end: int) -> dict[str, torch.Tensor]:
    """The first `end` places of everything that has one entry for each token."""
    shape = features["input_ids"].shape
    return {name: value[:, :end] if value.shape == shape else value for name, value in features.items()}


def _checked(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not (features["labels"] != IGNORED).any():
        raise BadRowError("nothing_supervised")
    return features


__all__ = ["Encoded", "Encoder", "Length", "TooLongError"]
