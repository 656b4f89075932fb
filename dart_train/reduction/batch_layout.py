"""Where the visual tokens of a batch are, and which text a selection may use: built once, on the host.

A *group* is a set of visual tokens that share a budget: those of a sample, or of one image. A group sees what a
prefill would have contained: its pivots come from its own image and from the text after it, up to the next answer.
Training therefore selects as inference will, and answers never influence which tokens are kept.
The released EPIC code draws text pivots from everything after the image, answers and padding included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Per = Literal["sample", "image"]
Span = tuple[int, int]  # start, stop
ImageSpans = tuple[Span, ...]  # several where there is text between an image's tiles, or a video's frames
IGNORED = -100  # labels of what is not supervised


@dataclass(frozen=True)
class TokenGroup:
    """Some visual tokens of row `row`: `spans` of (start, stop), and `end`, where its prompt ends."""

    row: int
    spans: ImageSpans
    end: int

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    def positions(self) -> Tensor:
        return torch.cat([torch.arange(start, stop) for start, stop in self.spans])


@dataclass(frozen=True)
class SampleLayout:
    """What the images of a sample are found by: its ids [L], and each run of visual tokens among them."""

    ids: Tensor
    runs: tuple[Span, ...]

    def tokens(self) -> int:
        return sum(stop - start for start, stop in self.runs)


@dataclass(frozen=True)
class BatchLayout:
    """What the host knows of a batch, all [B, L] on the CPU.

    supervised: what has a loss; answers: what no selection may look at. They are the same where labels cover only
    the answers.
    """

    ids: Tensor
    visual: Tensor
    real: Tensor
    supervised: Tensor
    answers: Tensor
    fingerprint: Tensor  # [B] a number that the prompt alone decides: the seed of random choices
    images: tuple[tuple[ImageSpans, ...], ...]  # of each row in order; until `with_images`, each run counts as one
    prompt_length: int | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.visual.shape[0], self.visual.shape[1]

    @classmethod
    def of(
        cls,
        ids: Tensor,
        visual_ids: Sequence[int],
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_length: int | None = None,
        answers: Tensor | None = None,
    ) -> BatchLayout:
        """ids, mask, labels [B, L], moved to the host here together: the only synchronisation of a reduction.
        prompt_length: of the prompt that is generated from. answers: [B, L] bool on the host, where they are not what
        is supervised."""
        mask = torch.ones_like(ids) if mask is None else mask
        labels = torch.full_like(ids, IGNORED) if labels is None else labels
        ids, mask, labels = torch.stack([x.to(ids.device, torch.long) for x in (ids, mask, labels)]).cpu()
        real = mask.bool()
        visual = torch.isin(ids, torch.tensor(list(visual_ids))) & real
        supervised = (labels != IGNORED) & real
        answers = supervised if answers is None else answers & real
        end = ids.shape[1] if prompt_length is None else prompt_length
        visual[:, end:] = False  # a model may well generate an image token
        images = tuple(tuple((run,) for run in _runs(row)) for row in visual)
        prompt = real & (answers.cumsum(1) == 0)
        prompt[:, end:] = False
        return cls(ids, visual, real, supervised, answers, _fingerprint(ids, prompt), images, prompt_length)

    def rows(self) -> list[SampleLayout]:
        return [SampleLayout(ids, _runs(visual)) for ids, visual in zip(self.ids, self.visual, strict=True)]

    def with_images(self, sizes: Sequence[int]) -> BatchLayout:
        """Adjacent images separated, and images with text within them joined; sizes in tokens, in batch order."""
        remaining = iter(sizes)
        return replace(self, images=tuple(_images_of_row(row.runs, remaining) for row in self.rows()))

    def left_padded(self) -> bool:
        return not bool(self.real[:, 0].all())

    def groups(self, per: Per) -> list[TokenGroup]:
        return [group for row, images in enumerate(self.images) for group in self._groups_of_row(row, images, per)]

    def _groups_of_row(self, row: int, images: Sequence[ImageSpans], per: Per) -> list[TokenGroup]:
        """One group per image, or one per turn: images after an answer do not influence those before it."""
        by_end: dict[int, list[ImageSpans]] = {}
        for image in images:
            by_end.setdefault(self._prompt_end(row, image[-1][1]), []).append(image)
        if per == "image":
            return [TokenGroup(row, image, end) for end, turn in by_end.items() for image in turn]
        return [TokenGroup(row, _merge_touching(turn), end) for end, turn in by_end.items()]

    def _prompt_end(self, row: int, after: int) -> int:
        """Where the first answer after position `after` begins, or where the given prompt ends."""
        length = self.visual.shape[1] if self.prompt_length is None else self.prompt_length
        answers = self.answers[row, after:].nonzero()
        return min(length, after + int(answers[0])) if len(answers) else max(length, after)

    def prompt_of(self, group: TokenGroup) -> Tensor:
        """[L] bool: the text that this group's selection may use: after its last image and before the answer.
        Where there is none, that after the first image; else all text of the prompt."""
        text = self.real[group.row] & ~self.visual[group.row] & ~self.answers[group.row]
        text[group.end :] = False
        after_last, after_first = text.clone(), text.clone()
        after_last[: group.spans[-1][1]] = False
        after_first[: group.spans[0][1]] = False
        return next((t for t in (after_last, after_first) if bool(t.any())), text)

    def last_of(self, group: TokenGroup) -> int:
        """The last prompt token of a group: the row of attention that attention-based methods look at."""
        return int(self.real[group.row, : group.end].nonzero()[-1])


def _runs(row: Tensor) -> tuple[Span, ...]:
    """(start, stop) of each run of True in row [L]."""
    edge = torch.diff(row.to(torch.int8), prepend=torch.zeros(1, dtype=torch.int8))
    starts, stops = (edge == 1).nonzero().flatten().tolist(), (edge == -1).nonzero().flatten().tolist()
    return tuple(zip(starts, [*stops, len(row)][: len(starts)], strict=True))


def _images_of_row(runs: Sequence[Span], sizes: Iterator[int]) -> tuple[ImageSpans, ...]:
    """The images of a row, from its runs of visual tokens and the number of tokens of each."""
    images: list[ImageSpans] = []
    spans: list[Span] = []
    missing = 0
    for start, stop in runs:
        while start < stop:
            missing = missing or next(sizes, stop - start)
            end = min(stop, start + missing)
            spans.append((start, end))
            missing -= end - start
            start = end
            if not missing:
                images.append(tuple(spans))
                spans = []
    if missing:
        raise ValueError(f"an image lacks {missing} of its visual tokens in its row; expected complete images")
    return tuple(images)


def _merge_touching(images: Sequence[ImageSpans]) -> ImageSpans:
    """The spans of several images as one; those with nothing between become one span."""
    joined: list[Span] = []
    for start, stop in (span for image in images for span in image):
        touches = joined and joined[-1][1] == start
        joined.append((joined.pop()[0], stop) if touches else (start, stop))
    return tuple(joined)


def _fingerprint(ids: Tensor, prompt: Tensor) -> Tensor:
    """[B] a hash of each row's prompt tokens, the same wherever padding puts them."""
    place = (prompt.cumsum(1) * prompt).long()
    mixed = (ids.long() + 1) * (place * 2654435761 % 2147483647 + 1)
    return (mixed * prompt).sum(1) % 2147483647


def answers_after(prompt_lengths: Tensor, real: Tensor) -> Tensor:
    """prompt_lengths [B]: tokens of each row before its first answer, padding not counted; real [B, L] -> [B, L] bool,
    everything from that answer on."""
    return real & (real.long().cumsum(1) > prompt_lengths[:, None])


def to_cpu_in_one_copy(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs with the tensors of a device copied to the CPU in one transfer, the only synchronisation of a
    reduction."""
    remote = {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.device.type != "cpu"}
    if not remote:
        return dict(inputs)
    device = next(iter(remote.values())).device
    together = torch.cat([x.flatten().to(device, torch.long) for x in remote.values()]).cpu()
    parts = together.split([x.numel() for x in remote.values()])
    return {**inputs, **{name: part.view(x.shape) for (name, x), part in zip(remote.items(), parts, strict=True)}}
