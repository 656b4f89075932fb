"""One sample through the model's own processor: token ids, labels, and the image features of the model family."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets.fingerprint import Hasher
from PIL import Image

from ..models.processors import video_problem
from ..models.prompts import special_tokens
from .chat_template import ChatTemplate, Span
from .issues import BadRowError, RowIssue
from .sample import Sample, VideoRef
from .supervision import IGNORED, LOSS_WEIGHTS, SampleTokens, make_tokens
from .truncation import POLICIES, TooLongError, shorten_to_fit
from .videos import Clip, MediaShape, VideoShape

MediaShapes = tuple[MediaShape, ...]  # of each image and video of a conversation: (width, height), or a `VideoShape`
_CACHE_SIZE = 1 << 16  # entries; the text of a large image is up to 250 kB, and compressed below 1 kB


class ImageTokenCounter:
    """The placeholder text that the processor writes for images and videos of given shapes. It depends on the shapes
    alone, so a blank image of the same size is enough. Results are cached, because the image processor takes most of
    the time. `visual` are the ids that the model replaces by image features."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.visual = visual_token_ids(processor)
        self._tokens = processor.tokenizer.convert_ids_to_tokens(sorted(self.visual))
        self._compressed = functools.lru_cache(maxsize=_CACHE_SIZE)(self._compressed_texts)

    def __getstate__(self) -> dict[str, Any]:  # the cache is not sent to worker processes
        return {"processor": self.processor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["processor"])  # type: ignore[misc]

    def counts(self, shapes: MediaShapes) -> list[int]:
        """The number of visual tokens of each image and video of one conversation."""
        return [sum(text.count(token) for token in self._tokens) for text in self.texts(shapes)]

    def texts(self, shapes: MediaShapes) -> list[str]:
        """The placeholder text of each image and video of one conversation."""
        return [zlib.decompress(text).decode() for text in self._compressed(shapes)] if shapes else []

    def _compressed_texts(self, shapes: MediaShapes) -> list[bytes]:
        blanks = [_blank(shape) for shape in shapes]
        marks = {Image.Image: self.processor.image_token, Clip: getattr(self.processor, "video_token", None)}
        text = " ".join(marks[type(blank)] for blank in blanks)
        output = self.processor(text=[text], **media_inputs(blanks), return_text_replacement_offsets=True)
        replacements = (image["replacement"] for image in output["text_replacement_offsets"][0])
        return [zlib.compress(text.encode(), 1) for text in replacements]


def _blank(shape: MediaShape) -> Image.Image | Clip:
    if isinstance(shape, VideoShape):
        return Clip(shape, [Image.new("RGB", shape.size)] * len(shape.indices))
    return Image.new("RGB", shape)


def media_inputs(media: Sequence[Image.Image | Clip]) -> dict[str, Any]:
    """The images and videos of one conversation as the processor takes them."""
    images = [each for each in media if not isinstance(each, Clip)]
    clips = [each for each in media if isinstance(each, Clip)]
    inputs: dict[str, Any] = {"images": [images]} if images else {}
    if clips:
        inputs["videos"] = [[clip.frames for clip in clips]]
        inputs["video_metadata"] = [clip.shape.metadata() for clip in clips]
        inputs["do_sample_frames"] = False
    return inputs


def visual_token_ids(processor: Any) -> frozenset[int]:
    """The ids that are replaced by image features. `image_token_ids` of a processor may also contain the markers
    around them, and `image_token_id` may be the marker in the text instead (Gemma). The placeholder is the id that
    both name, or the list if they share none."""
    ids = [number for number in processor.image_token_ids if number is not None]
    single = processor.image_token_id
    if not ids:
        raise ValueError(f"{type(processor).__name__} has no image token; a processor of a vision model is needed")
    found = {single} if single in ids else set(ids)
    return frozenset(found if video_problem(processor) else found | {processor.video_token_id})


@dataclass(frozen=True)
class Encoded:
    """`features` are tensors for a batch of one, `labels` among them."""

    features: dict[str, torch.Tensor]
    notes: tuple[RowIssue, ...] = ()

    @property
    def length(self) -> int:
        return self.features["input_ids"].shape[1]


@dataclass(frozen=True)
class RowLength:
    """The tokens of a row: all of them, those that are used (0: the row is dropped), and for each image its visual
    tokens, the start of the next answer, and the prompt tokens after it (see `count_kept_by_stage`)."""

    total: int
    used: int
    visual: tuple[int, ...]
    answer_starts: tuple[int, ...] = ()
    prompt_tokens_after: tuple[int, ...] = ()
    note: RowIssue | None = None  # what the length limit does to the row


class Encoder:
    """Built once for a run. Raises ValueError for a processor whose chat template does not mark answers."""

    def __init__(self, processor: Any, max_length: int | None = None, on_too_long: str = "drop") -> None:
        if on_too_long not in POLICIES:
            raise ValueError(f"on_too_long: got {on_too_long!r}, expected one of {', '.join(POLICIES)}")
        self.processor, self.max_length, self.on_too_long = processor, max_length, on_too_long
        self.template = ChatTemplate(processor)
        self.image_tokens = ImageTokenCounter(processor)
        self._video_problem = video_problem(processor)

    def encode(self, sample: Sample, media: Sequence[Image.Image | Clip]) -> Encoded:
        """media: the images and videos of the sample, in its order. Raises `BadRowError`; `TooLongError` under
        on_too_long: error."""
        features, tokens, found = self._process(sample, media)
        shorter, end = self._fit(sample, tokens, [image["replacement"] for image in found])
        before = len(tokens.ids)
        if end == before:
            return Encoded(_require_supervision(features))
        if shorter is not sample:
            features, _, _ = self._process(shorter, media)
        note = RowIssue("truncated_text", f"{before - end} of {before} tokens cut")
        return Encoded(_require_supervision(_cut(features, end)), (note,))

    def measure(self, sample: Sample, shapes: MediaShapes) -> RowLength:
        """The lengths that `encode` would give, from the shapes of images and videos alone. Raises `BadRowError` too,
        but not for a row that is too long."""
        self._refuse_control_tokens(sample)
        replacements = self._replacements(shapes)
        tokens = self._tokenise(sample, replacements)
        total, visual = len(tokens.ids), self.image_tokens.visual
        counts = tuple(self.image_tokens.counts(shapes))
        length = RowLength(total, total, counts, tokens.answer_starts(), tokens.prompt_tokens_after(visual))
        try:
            _, used = self._fit(sample, tokens, replacements)
        except BadRowError as bad:
            return replace(length, used=0, note=bad.issue)
        except TooLongError as error:
            return replace(length, used=0, note=RowIssue("over_limit", str(error)))
        note = None if used == total else RowIssue("truncated_text", f"{total - used} of {total} tokens cut")
        return replace(length, used=used, note=note)

    def count_targets(self, sample: Sample) -> int:
        """Supervised tokens of a sample that is not cut; no answer contains image placeholders."""
        text, answers = self.answers(sample)
        output = self.processor.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        return len(make_tokens(output["input_ids"], output["offset_mapping"], text, answers, []).supervised)

    def key(self) -> str:
        """Equal for encoders that measure equally."""
        parts = (self.template.source, self.processor.to_json_string(), self.processor.tokenizer.get_vocab())
        return Hasher.hash((parts, self.max_length, self.on_too_long))

    def _fit(self, sample: Sample, tokens: SampleTokens, replacements: list[str]) -> tuple[Sample, int]:
        if self.max_length is None or len(tokens.ids) <= self.max_length:
            return sample, len(tokens.ids)

        def tokenise(shorter: Sample) -> SampleTokens:
            return self._tokenise(shorter, replacements)

        tokenizer = self.processor.tokenizer
        return shorten_to_fit(sample, tokens, self.max_length, self.on_too_long, tokenise, tokenizer)

    def _replacements(self, shapes: MediaShapes) -> list[str]:
        try:
            return self.image_tokens.texts(shapes)
        except Exception as error:
            raise BadRowError("template_failed", f"the processor refuses the images: {error}") from error

    def _tokenise(self, sample: Sample, replacements: list[str]) -> SampleTokens:
        text, answers = self.answers(sample)
        by_kind: dict[bool, list[str]] = {False: [], True: []}
        for ref, replacement in zip(sample.media, replacements, strict=True):
            by_kind[isinstance(ref, VideoRef)].append(replacement)
        texts, found = self.processor.get_text_with_replacements([text], by_kind[False], by_kind[True])
        output = self.processor.tokenizer(texts[0], return_offsets_mapping=True, **special_tokens(self.processor, text))
        return make_tokens(output["input_ids"], output["offset_mapping"], text, answers, found[0] if found else [])

    def _process(
        self, sample: Sample, media: Sequence[Image.Image | Clip]
    ) -> tuple[dict[str, torch.Tensor], SampleTokens, list[dict[str, Any]]]:
        self._refuse_control_tokens(sample)
        text, answers = self.answers(sample)
        try:
            output = self.processor(
                text=[text],
                **media_inputs(media),
                return_offsets_mapping=True,
                return_text_replacement_offsets=True,
                **special_tokens(self.processor, text),
            )
        except Exception as error:  # a processor may refuse an image's shape, a number of images, ...
            raise BadRowError("template_failed", f"the processor refuses the row: {error}") from error
        offsets, found = output.pop("offset_mapping")[0], (output.pop("text_replacement_offsets", None) or [[]])[0]
        tokens = make_tokens(output["input_ids"][0], offsets, text, answers, found)
        output.pop("video_metadata", None)
        features = dict(output.convert_to_tensors("pt"))
        features["labels"] = torch.from_numpy(tokens.labels)[None]
        if not np.isin(tokens.weights, (0, 1)).all():
            features[LOSS_WEIGHTS] = torch.from_numpy(tokens.weights)[None]
        return features, tokens, found

    def answers(self, sample: Sample) -> tuple[str, list[tuple[Span, float]]]:
        """The text, and the spans of the answers with their weights."""
        text, spans = self.template.answers(sample.messages(), json.loads(sample.tools) if sample.tools else None)
        if len(spans) != len(sample.weights):  # the template decides what an answer is; only equal weights fit any
            if len(set(sample.weights)) > 1:
                what = f"it marks {len(spans)} answers in a conversation of {len(sample.weights)}"
                raise BadRowError("template_failed", f"the chat template cannot weigh answers: {what}")
            return text, [(span, sample.weights[0]) for span in spans]
        return text, list(zip(spans, sample.weights, strict=True))

    def _refuse_control_tokens(self, sample: Sample) -> None:
        if sample.videos and self._video_problem is not None:
            raise BadRowError("unsupported_media", f"the row has a video, and {self._video_problem}")
        for turn in sample.turns:
            for text in (*turn.texts, turn.fields):
                if token := self.template.find_control_token(text):
                    raise BadRowError("control_token", f"{token!r} in a {turn.role} turn")
        if token := self.template.find_control_token(sample.tools):
            raise BadRowError("control_token", f"{token!r} in the tools of the row")


def _cut(features: dict[str, torch.Tensor], end: int) -> dict[str, torch.Tensor]:
    """The first `end` positions of every tensor that has one entry for each token."""
    shape = features["input_ids"].shape
    return {name: value[:, :end] if value.shape == shape else value for name, value in features.items()}


def _require_supervision(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not (features["labels"] != IGNORED).any():
        raise BadRowError("nothing_supervised")
    return features
