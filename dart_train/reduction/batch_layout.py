"""Where the visual tokens of a batch are, and which text may choose among them: built once, on the host.

A *pool* is a set of visual tokens that share a budget: those of a sample, or of one image. What a pool may
see is what a prefill would have seen: its pivots come from its own image and from the text behind it, up to
the next answer. Training therefore chooses as inference will, and no answer can choose its own evidence.
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
ImageSpans = tuple[Span, ...]  # several where text stands between an image's tiles, or a video's frames
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
    """What tells the images of a sample apart: its ids [L], and each run of visual tokens among them."""

    ids: Tensor
    runs: tuple[Span, ...]

    def tokens(self) -> int:
        return sum(stop - start for start, stop in self.runs)


@dataclass(frozen=True)
class BatchLayout:
    """What the host knows of a batch, all [B, L] on the CPU."""

    ids: Tensor
    visual: Tensor
    real: Tensor
    supervised: Tensor
    fingerprint: Tensor  # [B] a number that the prompt alone decides: the seed of random choices
    images: tuple[tuple[ImageSpans, ...], ...]  # of each row in order; each run is taken for one until `with_images`
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
    ) -> BatchLayout:
        """ids, mask, labels [B, L], moved to the host here, together: the one synchronisation of a reduction."""
        mask = torch.ones_like(ids) if mask is None else mask
        labels = torch.full_like(ids, IGNORED) if labels is None else labels
        ids, mask, labels = torch.stack([x.to(ids.device, torch.long) for x in (ids, mask, labels)]).cpu()
        real = mask.bool()
        visual = torch.isin(ids, torch.tensor(list(visual_ids))) & real
        supervised = (labels != IGNORED) & real
        end = ids.shape[1] if prompt_length is None else prompt_length
        visual[:, end:] = False  # a model may well generate an image token
        images = tuple(tuple((run,) for run in _runs(row)) for row in visual)
        prompt = real & (supervised.cumsum(1) == 0)
        prompt[:, end:] = False
        return cls(ids, visual, real, supervised, _fingerprint(ids, prompt), images, prompt_length)

    def rows(self) -> list[SampleLayout]:
        return [SampleLayout(ids, _runs(visual)) for ids, visual in zip(self.ids, self.visual, strict=True)]

    def with_images(self, sizes: Sequence[int]) -> BatchLayout:
        """Images told apart where nothing stands between them, and whole where text stands within them; sizes in
        tokens, in batch order."""
        remaining = iter(sizes)
        return replace(self, images=tuple(_images_of_row(row.runs, remaining) for row in self.rows()))

    def left_padded(self) -> bool:
        return not bool(self.real[:, 0].all())

    def groups(self, per: Per) -> list[TokenGroup]:
        return [pool for row, images in enumerate(self.images) for pool in self._row_pools(row, images, per)]

    def _row_pools(self, row: int, images: Sequence[ImageSpans], per: Per) -> list[TokenGroup]:
        """One pool per image, or one per turn: images after an answer do not choose for those before it."""
        by_end: dict[int, list[ImageSpans]] = {}
        for image in images:
            by_end.setdefault(self._prompt_end(row, image[-1][1]), []).append(image)
        if per == "image":
            return [TokenGroup(row, image, end) for end, group in by_end.items() for image in group]
        return [TokenGroup(row, _merge_touching(group), end) for end, group in by_end.items()]

    def _prompt_end(self, row: int, after: int) -> int:
        """Where the first answer behind position `after` begins, or where the given prompt ends."""
        length = self.visual.shape[1] if self.prompt_length is None else self.prompt_length
        answers = self.supervised[row, after:].nonzero()
        return min(length, after + int(answers[0])) if len(answers) else max(length, after)

    def prompt_of(self, pool: TokenGroup) -> Tensor:
        """[L] bool: the text that may serve this pool's choice (after the image, real, before the answer)."""
        text = self.real[pool.row] & ~self.visual[pool.row] & ~self.supervised[pool.row]
        text[pool.end :] = False
        behind_last, behind_first = text.clone(), text.clone()
        behind_last[: pool.spans[-1][1]] = False
        behind_first[: pool.spans[0][1]] = False
        return next((t for t in (behind_last, behind_first) if bool(t.any())), text)

    def last_of(self, pool: TokenGroup) -> int:
        """The last prompt token of a pool: the row of attention that attention-based methods look at."""
        seen = self.real[pool.row, : pool.end].nonzero()
        return int(seen[-1])


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
        raise ValueError(f"an image lacks {missing} of its visual tokens in its row; expected whole images in each")
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
