"""What a selection of tokens receives in a prefill: one image, a prompt after it, random states and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..hooks.observers import attention_row
from ..reduction import Observed, Reducer, SelectionContext
from ..reduction.batch_layout import BatchLayout
from ..reduction.token_groups import TokenGroups

TEXT = 40  # tokens of the prompt
HEAD = 128
_TILE = 24  # a CLIP tile at 336 pixels has 24 x 24 tokens
_IMAGE_ID = 1


@dataclass(frozen=True)
class SelectionScene:
    """`batch` rows of `tokens` visual tokens and TEXT others; L = tokens + TEXT."""

    tokens: int
    ids: Tensor  # [B, L], on the host
    states: Tensor  # [B, L, D]
    keys: Tensor  # [B, KV heads, L, d]
    query: Tensor  # [B, heads, L, d]
    scale: Tensor  # [D], of the final norm
    groups: TokenGroups
    real: Tensor  # [B, L] bool, all true

    @classmethod
    def draw(
        cls,
        tokens: int,
        batch: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        head: int = HEAD,
    ) -> SelectionScene:
        """heads: of the query, by default as many as make `width`; kv_heads: of the keys, by default as many."""
        random = torch.Generator(device).manual_seed(0)
        length, heads = tokens + TEXT, heads or width // head

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device, dtype=dtype)

        # [B, L, H, d] transposed, as a projection leaves them: the heads of a token are adjacent in memory.
        keys = normal(batch, length, kv_heads or heads, head).transpose(1, 2)
        query = normal(batch, length, heads, head).transpose(1, 2)
        ids = torch.tensor([[_IMAGE_ID] * tokens + [0] * TEXT] * batch)
        return cls(
            tokens=tokens,
            ids=ids,
            states=normal(batch, length, width),
            keys=keys,
            query=query,
            scale=1 + 0.3 * normal(width).float(),
            groups=find_groups(ids).to(device),
            real=torch.ones(batch, length, dtype=torch.bool, device=device),
        )

    def context(self, reducer: Reducer) -> SelectionContext:
        """The context of the selection. Only the attention row is computed ahead, for the methods that require it."""
        attention = None
        if reducer.required_inputs() & {"attention", "own_attention"}:
            groups = self.groups
            attention = attention_row(
                self.query, self.keys, groups.row_of, groups.last, groups.seen_by(self.real), None
            )
        observed = Observed(self.keys, None, attention)
        grids = [tile_grids(self.tokens)] * len(self.groups.sizes)
        scorer = None
        if "scorer" in reducer.required_inputs():
            scorer = reducer.make_scorer(self.states.shape[2]).to(self.states.device, self.states.dtype)
        budgets = reducer.budgets(self.groups)
        return SelectionContext(self.groups, self.states, self.scale, observed, budgets, grids, scorer=scorer)

    def keep_mask(self, keep: Tensor) -> Tensor:
        """[B, L] bool: what stays after a selection, text included."""
        return self.groups.keep_mask(self.real & (self.ids.to(self.real.device) != _IMAGE_ID), keep)


def find_groups(ids: Tensor) -> TokenGroups:
    """The host work before any selection: where the visual tokens are."""
    groups = TokenGroups.of(BatchLayout.of(ids, [_IMAGE_ID]), "sample")
    assert groups is not None
    return groups


def tile_grids(tokens: int) -> list[tuple[int, int]]:
    """Square CLIP tiles if the number of tokens allows it, else one grid."""
    if tokens % _TILE**2 == 0:
        return [(_TILE, _TILE)] * (tokens // _TILE**2)
    rows = next(r for r in range(math.isqrt(tokens), 0, -1) if tokens % r == 0)
    return [(rows, tokens // rows)]
