"""What a selection meets in a prefill: one picture, the prompt behind it, random numbers everywhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..hooks.observers import attention_row
from ..reduction import Observed, Reducer, View
from ..reduction.batch_layout import Batch
from ..reduction.token_groups import TokenGroups

TEXT = 40
HEAD = 128
_TILE = 24  # a CLIP tile at 336 pixels has 24 x 24 tokens
_IMAGE_ID = 1


@dataclass(frozen=True)
class Scene:
    """`batch` rows of `tokens` visual tokens and 40 of text; states [B, L, D], keys and query [B, H, L, 128]."""

    tokens: int
    ids: Tensor
    states: Tensor
    keys: Tensor
    query: Tensor
    scale: Tensor  # [D] of the final norm
    pools: TokenGroups
    real: Tensor

    @classmethod
    def draw(
        cls, tokens: int, batch: int, width: int, device: torch.device, dtype: torch.dtype, seed: int = 0
    ) -> Scene:
        chance = torch.Generator(device).manual_seed(seed)
        length = tokens + TEXT
        ids = torch.tensor([[_IMAGE_ID] * tokens + [0] * TEXT] * batch)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=chance, device=device, dtype=dtype)

        # As a projection leaves them: the heads of a token lie next to each other.
        keys, query = (normal(batch, length, width // HEAD, HEAD).transpose(1, 2) for _ in range(2))
        return cls(
            tokens=tokens,
            ids=ids,
            states=normal(batch, length, width),
            keys=keys,
            query=query,
            scale=1 + 0.3 * normal(width).float(),
            pools=lay_out(ids).to(device),
            real=torch.ones(batch, length, dtype=torch.bool, device=device),
        )

    def view(self, reducer: Reducer) -> View:
        """Nothing in it is computed yet, but the row of attention for the methods that look at it."""
        attention = None
        if "attention" in reducer.required():
            pools = self.pools
            attention = attention_row(self.query, self.keys, pools.row_of, pools.last, self.real, None)
        seen = Observed(self.keys, None, attention)
        grids = [tiles(self.tokens)] * len(self.pools.sizes)
        return View(self.pools, self.states, self.scale, seen, reducer.budgets(self.pools), grids)


def lay_out(ids: Tensor) -> TokenGroups:
    pools = TokenGroups.of(Batch.of(ids, [_IMAGE_ID]), "sample")
    assert pools is not None
    return pools


def tiles(tokens: int) -> list[tuple[int, int]]:
    """Squares of a CLIP tile where it works out, or else one grid."""
    if tokens % _TILE**2 == 0:
        return [(_TILE, _TILE)] * (tokens // _TILE**2)
    rows = next(r for r in range(math.isqrt(tokens), 0, -1) if tokens % r == 0)
    return [(rows, tokens // rows)]
