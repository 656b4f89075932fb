"""Where the visual tokens of a batch are, and which text may choose among them: built once, on the host.

A *pool* is a set of visual tokens that share a budget: those of a sample, or of one image. What a pool may
see is what a prefill would have seen: its pivots come from its own image and from the text behind it, up to
the next answer. Training therefore chooses as inference will, and no answer can choose its own evidence.
The released EPIC code draws text pivots from everything after the image, answers and padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Per = Literal["sample", "image"]
IGNORED = -100  # labels of what is not supervised


@dataclass(frozen=True)
class Pool:
    """Some visual tokens of row `row`: `spans` of (start, stop), and `end`, where its prompt ends."""

    row: int
    spans: tuple[tuple[int, int], ...]
    end: int

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    def positions(self) -> Tensor:
        return torch.cat([torch.arange(start, stop) for start, stop in self.spans])


@dataclass(frozen=True)
class Batch:
    """What the host knows of a batch, all [B, L] on the CPU."""

    visual: Tensor
    real: Tensor
    supervised: Tensor
    fingerprint: Tensor  # [B] a number that the prompt alone decides: the seed of random choices
    images: tuple[tuple[tuple[int, int], ...], ...]  # per row, the (start, stop) of each image in order
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
    ) -> Batch:
        """ids, mask, labels [B, L], moved to the host here, together: the one synchronisation of a reduction."""
        mask = torch.ones_like(ids) if mask is None else mask
        labels = torch.full_like(ids, IGNORED) if labels is None else labels
        ids, mask, labels = torch.stack([x.to(ids.device, torch.long) for x in (ids, mask, labels)]).cpu()
        real = mask.bool()
        visual = torch.isin(ids, torch.tensor(list(visual_ids))) & real
        supervised = (labels != IGNORED) & real
        end = ids.shape[1] if prompt_length is None else prompt_length
        visual[:, end:] = False  # a model may well generate an image token
        images = tuple(_runs(row) for row in visual)
        prompt = real & (supervised.cumsum(1) == 0)
        prompt[:, end:] = False
        return cls(visual, real, supervised, _fingerprint(ids, prompt), images, prompt_length)

    def with_images(self, sizes: Sequence[int]) -> Batch:
        """Images told apart even where nothing stands between them; sizes in tokens, in batch order."""
        return replace(self, images=_cut(self.images, sizes))

    def left_padded(self) -> bool:
        return not bool(self.real[:, 0].all())

    def pools(self, per: Per) -> list[Pool]:
        return [pool for row, images in enumerate(self.images) for pool in self._row_pools(row, images, per)]

    def _row_pools(self, row: int, images: Sequence[tuple[int, int]], per: Per) -> list[Pool]:
        """One pool per image, or one per turn: images after an answer do not choose for those before it."""
        by_end: dict[int, list[tuple[int, int]]] = {}
        for image in images:
            by_end.setdefault(self._prompt_end(row, image[1]), []).append(image)
        if per == "image":
            return [Pool(row, (image,), end) for end, group in by_end.items() for image in group]
        return [Pool(row, tuple(group), end) for end, group in by_end.items()]

    def _prompt_end(self, row: int, after: int) -> int:
        """Where the first answer behind position `after` begins, or where the given prompt ends."""
        length = self.visual.shape[1] if self.prompt_length is None else self.prompt_length
        answers = self.supervised[row, after:].nonzero()
        return min(length, after + int(answers[0])) if len(answers) else max(length, after)

    def prompt_of(self, pool: Pool) -> Tensor:
        """[L] bool: the text that may serve this pool's choice (after the image, real, before the answer)."""
        text = self.real[pool.row] & ~self.visual[pool.row] & ~self.supervised[pool.row]
        text[pool.end :] = False
        behind_last, behind_first = text.clone(), text.clone()
        behind_last[: pool.spans[-1][1]] = False
        behind_first[: pool.spans[0][1]] = False
        return next((t for t in (behind_last, behind_first) if bool(t.any())), text)

    def last_of(self, pool: Pool) -> int:
        """The last prompt token of a pool: the row of attention that attention-based methods look at."""
        seen = self.real[pool.row, : pool.end].nonzero()
        return int(seen[-1])


def _runs(row: Tensor) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each run of True in row [L]."""
    edge = torch.diff(row.to(torch.int8), prepend=torch.zeros(1, dtype=torch.int8))
    starts, stops = (edge == 1).nonzero().flatten().tolist(), (edge == -1).nonzero().flatten().tolist()
    return tuple(zip(starts, [*stops, len(row)][: len(starts)], strict=True))


def _cut(runs: Sequence[tuple[tuple[int, int], ...]], sizes: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Cut runs where one image ends and the next begins with nothing between; sizes in batch order."""
    remaining = list(sizes)
    rows = []
    for row in runs:
        pieces: list[tuple[int, int]] = []
        for start, stop in row:
            while start < stop:
                size = remaining.pop(0) if remaining else stop - start
                if size > stop - start:  # one image over several runs (tiles, frames): each run stays its own
                    remaining.insert(0, size - (stop - start))
                    size = stop - start
                pieces.append((start, start + size))
                start += size
        rows.append(tuple(pieces))
    return tuple(rows)


def _fingerprint(ids: Tensor, prompt: Tensor) -> Tensor:
    """[B] a hash of each row's prompt tokens, the same wherever padding puts them."""
    place = (prompt.cumsum(1) * prompt).long()
    mixed = (ids.long() + 1) * (place * 2654435761 % 2147483647 + 1)
    return (mixed * prompt).sum(1) % 2147483647
