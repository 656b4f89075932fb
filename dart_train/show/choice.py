"""What one method chose in one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..attach import Kept


@dataclass(frozen=True)
class Choice:
    """kept, pivots [N] bool over the sample's visual tokens, in the order of the prompt; pivots is None where a method
    has none. words: text tokens that were pivots."""

    kept: Sequence[bool]
    pivots: Sequence[bool] | None = None
    words: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        return sum(map(bool, self.kept))


def chosen(kept: Kept, row: int = 0, ids: Tensor | None = None, tokenizer: Any = None) -> Choice:
    """Row `row` of a forward. With its ids [L] and the tokenizer the pivots among the text are told as words."""
    visual = kept.visual[row].cpu()
    mine = kept.kept_visual[row].cpu()[visual].tolist()
    if kept.pivots is None:
        return Choice(mine)
    pivots = kept.pivots[row].cpu()
    words: tuple[str, ...] = ()
    if ids is not None and tokenizer is not None:
        words = tuple(tokenizer.decode([token]).strip() or "␣" for token in ids.cpu()[pivots & ~visual].tolist())
    return Choice(mine, pivots[visual].tolist(), words)


def everything(number: int) -> Choice:
    """All tokens, as with no reduction."""
    return Choice([True] * number)
