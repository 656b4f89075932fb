"""Small batches without a model. A row is written as a string: `v` a visual token, `t` text, `a` an answer,
`_` a masked token. The numbers of a row do not depend on its padding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from dart_train.reduction import Observed, Reducer, SelectionContext
from dart_train.reduction.batch_layout import BatchLayout
from dart_train.reduction.token_groups import TokenGroups

IMAGE, PADDING, WIDTH, HEADS = 1, 0, 24, 3
LOUD = 1e3  # the value at padding: reading it changes the result


@dataclass(frozen=True)
class Scene:
    rows: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    side: Literal["left", "right"] = "left"
    dtype: torch.dtype = field(default=torch.float32)

    def alone(self, row: int) -> Scene:
        return Scene((self.rows[row],), (self._seed(row),), self.side, self.dtype)

    def _seed(self, row: int) -> int:
        return self.seeds[row] if self.seeds else row

    def start(self, row: int) -> int:
        return self.length - len(self.rows[row]) if self.side == "left" else 0

    @property
    def length(self) -> int:
        return max(map(len, self.rows))

    def drawn(self, row: int, *shape: int, stream: int = 0) -> Tensor:
        """[len(row), *shape] of a row's own numbers."""
        chance = torch.Generator().manual_seed(self._seed(row) * 100 + stream)
        return torch.randn(len(self.rows[row]), *shape, generator=chance).to(self.dtype)

    def _stacked(self, *shape: int, stream: int) -> Tensor:
        out = torch.full((len(self.rows), self.length, *shape), LOUD, dtype=self.dtype)
        for row, text in enumerate(self.rows):
            out[row, self.start(row) :][: len(text)] = self.drawn(row, *shape, stream=stream)
        return out

    def _marked(self, kinds: str) -> Tensor:
        """[B, L] bool: where the rows have one of these letters."""
        out = torch.zeros(len(self.rows), self.length, dtype=torch.bool)
        for row, text in enumerate(self.rows):
            out[row, self.start(row) :][: len(text)] = torch.tensor([kind in kinds for kind in text])
        return out

    @cached_property
    def ids(self) -> Tensor:
        words = 10 + (self._stacked(stream=1).float().abs() * 1000).long()
        return words.masked_fill(self._marked("v"), IMAGE).masked_fill(~self.mask, PADDING)

    @cached_property
    def mask(self) -> Tensor:
        return self._marked("vta")

    @property
    def labels(self) -> Tensor:
        return self.ids.masked_fill(~self._marked("a"), -100)

    def batch(self) -> BatchLayout:
        return BatchLayout.of(self.ids, [IMAGE], self.mask.long(), self.labels)

    @cached_property
    def states(self) -> Tensor:
        return self._stacked(WIDTH, stream=2)

    @cached_property
    def scale(self) -> Tensor:
        """[D]: a final norm's weight far from ones."""
        return torch.rand(WIDTH, generator=torch.Generator().manual_seed(7)) * 2 + 0.1

    def heads(self, stream: int) -> Tensor:
        """[B, H, L, d]: keys (stream 3) or values (stream 4)."""
        return self._stacked(HEADS, 4, stream=stream).transpose(1, 2)

    def attention(self, groups: TokenGroups) -> Tensor:
        return self._stacked(stream=5).float().abs()[groups.rows]

    def context(self, reducer: Reducer) -> SelectionContext:
        """Contains only what the reducer requires."""
        groups = TokenGroups.of(self.batch(), reducer.per)
        assert groups is not None
        needs = reducer.required_inputs()
        observed = Observed(
            self.heads(3) if "keys" in needs else None,
            self.heads(4) if "values" in needs else None,
            self.attention(groups) if "attention" in needs else None,
        )
        shapes = [[shape(size)] for size in groups.sizes] if "grid" in needs else None
        return SelectionContext(
            groups, self.states, self.scale, observed, reducer.budgets(groups), shapes, scorer=scorer_of(reducer)
        )

    def choice(self, reducer: Reducer) -> list[set[int]]:
        """Kept visual tokens of each row, counted from the row's own start."""
        context = self.context(reducer)
        mask = context.groups.keep_mask(torch.zeros_like(self.mask), reducer.select(context))
        return [{int(place) - self.start(row) for place in kept.nonzero()} for row, kept in enumerate(mask)]


def scorer_of(reducer: Reducer) -> Any:
    return reducer.make_scorer(WIDTH) if "scorer" in reducer.required_inputs() else None


def shape(size: int) -> tuple[int, int]:
    """(rows, columns) of a grid of `size` tokens, as square as can be."""
    rows = next(rows for rows in range(math.isqrt(size), 0, -1) if size % rows == 0)
    return rows, size // rows


def visual(row: str) -> list[int]:
    return [place for place, kind in enumerate(row) if kind == "v"]


def prompt(row: str) -> list[int]:
    """The prompt of the row's only image: after it, before the answer."""
    end = row.index("a") if "a" in row else len(row)
    text = [place for place in range(end) if row[place] == "t"]
    image = visual(row)
    after_last = [place for place in text if place > image[-1]]
    return after_last or [place for place in text if place > image[0]] or text
