"""DART inside the vision tower: duplicates leave before they are encoded.

A unit is the patch, or the 2 x 2 patches, that become one visual token. Only representatives run through the rest of
the tower; after it, each dropped unit takes the features of its representative. What comes later (the projector,
placeholders, positions, the reduction in the language model) sees as many tokens as ever.

- `tolerance`: before block 0, by pixels. A unit is dropped if it repeats one that is kept: exactly, or with a root mean
  square difference of at most `tolerance`. In a video it may also repeat the same place of the frame before. How many
  are dropped depends on the image.
- `keep`: before block `layer`, by states. A ratio of each image (of each frame of a video) is kept: pivots, and the
  units least similar to them, as DART does in the language model; the similarity is that of the states, since a tower
  has no prompt and no final norm to share.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .base import check_int_at_least, topk_indices_stable
from .budget import tokens_to_keep
from .context import per_group_tensor
from .methods.dart import take_least_similar
from .token_groups import upload


@dataclass(frozen=True, kw_only=True)
class TowerDART:
    """A stage before all others: `attach(model, [TowerDART(keep=0.5, layer=4), DART(keep=64)])`.

    layer: the first block of the tower that runs on representatives only.
    keep: the ratio of units that is kept of each image.
    tolerance: the largest difference of pixels, as the processor writes them, between a unit and its representative;
        only at layer 0, in place of keep. Neither given: tolerance=0.0, exact duplicates.
    pivots: units that the choice starts from, those of largest L1 norm; of `keep` only.
    """

    name: ClassVar[str] = "tower_dart"

    layer: int = 0
    keep: float | None = None
    tolerance: float | None = None
    pivots: int = 4

    def __post_init__(self) -> None:
        if self.keep is None and self.tolerance is None:
            object.__setattr__(self, "tolerance", 0.0)
        problems = [problem for problem in self.problems() if problem]
        if problems:
            raise ValueError("TowerDART: " + "; ".join(problems))

    def problems(self) -> list[str | None]:
        """Everything that is wrong with the configuration."""
        number = (int, float)
        wrong_keep = self.keep is not None and not (isinstance(self.keep, float) and 0 < self.keep <= 1)
        wrong_tolerance = self.tolerance is not None and not (
            isinstance(self.tolerance, number) and not isinstance(self.tolerance, bool) and self.tolerance >= 0
        )
        both = self.keep is not None and self.tolerance is not None
        late = self.tolerance is not None and self.layer != 0
        return [
            check_int_at_least("layer", self.layer, 0),
            check_int_at_least("pivots", self.pivots, 1),
            f"keep={self.keep!r}: expected a ratio (a float in (0, 1])" if wrong_keep else None,
            f"tolerance={self.tolerance!r}: expected a number >= 0" if wrong_tolerance else None,
            "keep and tolerance were both given: expected one of them" if both else None,
            f"tolerance with layer={self.layer}: pixels are compared before block 0; use layer=0, or keep"
            if late and not both
            else None,
        ]

    @property
    def by_pixels(self) -> bool:
        return self.keep is None

    def to_dict(self) -> dict[str, Any]:
        """What `tower_from_config` makes this stage of."""
        options = {key: value for key, value in asdict(self).items() if value is not None}
        return options if self.keep is not None else {key: options[key] for key in ("layer", "tolerance")}


def tower_from_config(config: Mapping[str, Any]) -> TowerDART:
    """{"layer": 0, "keep": 0.5} -> TowerDART(layer=0, keep=0.5); everything wrong is named at once."""
    known = [field.name for field in fields(TowerDART)]
    problems = [f"unknown option {key!r}, expected one of {', '.join(known)}" for key in config if key not in known]
    try:
        stage = TowerDART(**{key: value for key, value in config.items() if key in known})
    except ValueError as error:
        problems.append(str(error).removeprefix("TowerDART: "))
    if problems:
        raise ValueError("tower: " + "; ".join(problems))
    return stage


@dataclass(frozen=True)
class Representatives:
    """of [U] long: the unit that stands for each unit, itself where it is kept; kept [M] long: the kept units in order;
    counts: how many are kept of each group, on the host."""

    of: Tensor
    kept: Tensor
    counts: tuple[int, ...]

    @property
    def drops_nothing(self) -> bool:
        return len(self.kept) == len(self.of)

    @classmethod
    def on_host(cls, of: np.ndarray, sizes: Sequence[int]) -> Representatives:
        is_kept = of == np.arange(len(of))
        counts = tuple(int(part.sum()) for part in np.split(is_kept, np.cumsum(sizes)[:-1]))
        return cls(torch.from_numpy(of), torch.from_numpy(np.flatnonzero(is_kept)), counts)

    def to(self, device: torch.device) -> Representatives:
        if self.of.device == device:
            return self
        return Representatives(upload(self.of, device), upload(self.kept, device), self.counts)

    def reordered(self, order: Tensor) -> Representatives:
        """The same for units that stand in another order: slot i holds unit order[i]. `order` moves units inside their
        group only."""
        slot_of = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        of = slot_of[self.of[order]]
        kept = torch.sort(slot_of[self.kept]).values
        return Representatives(of, kept, self.counts)

    def slots(self) -> Tensor:
        """[U] long: where the representative of each unit is among the kept ones."""
        rank = torch.zeros_like(self.of).scatter_(0, self.kept, torch.arange(len(self.kept), device=self.of.device))
        return rank[self.of]


def match_pixels(
    pixels: Tensor, sizes: Sequence[int], tolerance: float, follows: Sequence[bool] | None = None
) -> Representatives:
    """By pixels: a unit that repeats a kept one is dropped.

    pixels [U, d], on the host; sizes: units of each image, or of each frame of a video; follows: whether a group is the
    frame after the group before it.
    """
    starts = np.cumsum([0, *sizes])
    of = np.arange(starts[-1])
    table = pixels.detach().contiguous()
    keys = _row_keys(table) if tolerance == 0 else None
    for g, (start, stop) in enumerate(itertools.pairwise(starts)):
        size = int(stop - start)
        before = np.full(size, -1)
        if follows is not None and follows[g] and g and sizes[g - 1] == size:
            same = _equal_rows(table[start:stop], table[start - size : start], tolerance)
            before[same] = of[start - size : start][same]
        if keys is not None:
            within = _first_equal(table[start:stop], keys[start:stop])
        else:
            within = _first_near(table[start:stop].float(), tolerance, free=before < 0)
        of[start:stop] = start + within
        found = before >= 0
        of[start:stop][found] = before[found]
    # A representative may itself have been found in the frame before; frames come in order, so one step is enough.
    return Representatives.on_host(of[of], sizes)


def _row_keys(table: Tensor) -> np.ndarray:
    """[U] uint64: equal rows have equal keys; different rows nearly never do."""
    raw = table.view(torch.uint8) if table.dtype != torch.bool else table
    rows = raw.reshape(len(table), -1).numpy()
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8))).view(np.uint64)
    odd = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = (rows ^ (rows >> np.uint64(29))) * odd
    return np.asarray((mixed ^ (mixed >> np.uint64(32))).sum(1, dtype=np.uint64))


def _first_equal(table: Tensor, keys: np.ndarray) -> np.ndarray:
    """The first row that equals each row."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found = first[inverse.reshape(-1)]
    differs = ~_equal_rows(table, table[torch.from_numpy(found)], 0.0)
    found[differs] = np.flatnonzero(differs)  # two rows with one key: each stays
    return np.asarray(found)


def _first_near(table: Tensor, tolerance: float, free: np.ndarray) -> np.ndarray:
    """The first kept row within the tolerance of each row: rows in order, each kept unless one before it is near."""
    squared = table.square().sum(1)
    distance = (squared[:, None] + squared[None] - 2 * table @ table.T).clamp_min(0) / table.shape[1]
    near = (distance <= tolerance**2).numpy()
    of = np.full(len(table), -1)
    for row in range(len(table)):
        if of[row] < 0:
            of[row] = row
            if free[row]:
                of[near[row] & free & (of < 0)] = row
    return of


def _equal_rows(a: Tensor, b: Tensor, tolerance: float) -> np.ndarray:
    if tolerance == 0:
        return np.asarray((a.view(torch.uint8) == b.view(torch.uint8)).reshape(len(a), -1).all(1))
    return np.asarray((a.float() - b.float()).square().mean(1) <= tolerance**2)


@torch.no_grad()
def choose_by_states(states: Tensor, sizes: Sequence[int], keep: float, pivots: int) -> Representatives:
    """By states [U, D]: of each group its pivots and the units least similar to them. A dropped unit is represented by
    the kept one that is most similar to it. Nothing is read back from the device."""
    counts = tuple(tokens_to_keep(keep, size) for size in sizes)
    columns, total = max(sizes), sum(sizes)
    starts = np.cumsum([0, *sizes])[:-1]
    is_unit = np.arange(columns) < np.asarray(sizes)[:, None]
    at_host = np.where(is_unit, starts[:, None] + np.arange(columns), starts[:, None])
    places = upload(torch.from_numpy(at_host), states.device)  # [R, N]
    valid = upload(torch.from_numpy(is_unit), states.device)
    cells = upload(torch.from_numpy(np.flatnonzero(is_unit)), states.device)  # of the R x N those that are units
    direction = F.normalize(states.detach().float(), dim=-1)[places]  # [R, N, D]

    own = [min(pivots, count) for count in counts]
    first = topk_indices_stable(states.detach().float().abs().sum(-1)[places], valid, max(own))  # [R, P]
    is_pivot = torch.arange(first.shape[1], device=states.device) < per_group_tensor(own, states)[:, None]
    chosen = torch.zeros_like(valid).scatter(1, first, is_pivot)
    quotas = [
        [(count - mine) // mine + (p < (count - mine) % mine) if p < mine else 0 for p in range(first.shape[1])]
        for count, mine in zip(counts, own, strict=True)
    ]
    chosen = take_least_similar(_take(direction, first) @ direction.mT, chosen, valid, quotas)

    kept = torch.argsort(chosen.logical_not().to(torch.uint8), dim=1, stable=True)[:, : max(counts)]
    closeness = direction @ _take(direction, kept).mT  # [R, N, most kept]
    nearest = kept.gather(1, closeness.masked_fill(~chosen.gather(1, kept)[:, None], -torch.inf).argmax(-1))
    itself = torch.arange(columns, device=states.device).expand_as(nearest)
    of = torch.empty(total, dtype=torch.long, device=states.device)
    of[places.flatten()[cells]] = places.gather(1, torch.where(chosen, itself, nearest)).flatten()[cells]
    dropped = of != torch.arange(total, device=states.device)
    return Representatives(of, torch.argsort(dropped.to(torch.uint8), stable=True)[: sum(counts)], counts)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x [R, N, D], index [R, M] -> [R, M, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
