"""The reduction of one image (or video): its embeddings, which of them stay, and where they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..reduction.base import Reducer
from ..reduction.batch_layout import BatchLayout
from ..reduction.context import Observed, SelectionContext
from ..reduction.kept_tokens import average_merged
from ..reduction.token_groups import TokenGroups

Scorer = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def reduce_image(
    reducer: Reducer,
    embeddings: Tensor,
    scale: Tensor | None,
    tiles: Sequence[tuple[int, int]] | None = None,
    scorer: Scorer | None = None,
) -> tuple[Tensor, Tensor]:
    """embeddings [N, D] -> (those of the kept tokens [S, D], their places among the N [S] long, in order).

    scale [D]: the weight of the decoder's final norm. tiles: (rows, columns) of each tile or frame, for methods that
    look at the grid. The image is a sample of its own, without any text: that is what the selection may look at.
    """
    number = embeddings.shape[0]
    if count_kept(reducer, number) == number:
        return embeddings, torch.arange(number, device=embeddings.device)
    layout = BatchLayout.of(torch.zeros(1, number, dtype=torch.long), visual_ids=(0,)).with_images([number])
    groups = TokenGroups.of(layout, "image")
    assert groups is not None
    groups = groups.to(embeddings.device)
    states = embeddings[None]
    context = SelectionContext(
        groups,
        states,
        scale,
        Observed(),
        reducer.budgets(groups),
        None if tiles is None else [tiles],
        scorer=scorer,
    )
    keep = reducer.select(context)
    targets = reducer.merge_targets(context, keep)
    if targets is not None:
        states = average_merged(states, targets, groups.valid)
    # The number is known beforehand, so that nothing waits for the device.
    kept = torch.argsort(keep[0].logical_not().to(torch.uint8), stable=True)[: reducer.counts(groups)[0]]
    return states[0, kept], kept


def count_kept(reducer: Reducer, number: int) -> int:
    """How many of an image's `number` tokens stay."""
    return reducer.kept_tokens([number])
