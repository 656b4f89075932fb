"""The budget of each step put on the model, and for a moment the teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import Recipe
from ..hooks import Attached
from ..hooks.batch_plan import has_images
from ..reduction.budget import Keep
from ..reduction.schedule import budget_at_step, teacher_keep

# The loss per supervised token of one forward, and what a gentler reduction of the same weights would have said.

IGNORED = -100


@dataclass(frozen=True)
class Told:
    """What a forward says at its supervised positions: logits [M, V], targets [M], in the order of rows."""

    logits: Tensor
    targets: Tensor

    def loss(self) -> Tensor:
        """The sum over targets; 0, with a gradient of zero, where there are none."""
        if not self.targets.numel():
            return self.logits.sum() * 0.0
        return F.cross_entropy(self.logits.float(), self.targets, reduction="sum")

    def divergence(self, teacher: Tensor, temperature: float) -> Tensor:
        """Sum over targets of KL(teacher || student), both softened; teacher [M, V]."""
        ours = F.log_softmax(self.logits.float() / temperature, dim=-1)
        theirs = F.log_softmax(teacher.float() / temperature, dim=-1)
        return F.kl_div(ours, theirs, reduction="sum", log_target=True)


def tell(model: Any, attached: Attached | None, batch: Mapping[str, Any], host: Mapping[str, Any]) -> Told:
    """One forward. `batch` on the device; `host`, the same batch, still where it was collated."""
    return Told(_logits(model, attached, batch, host)[0], targets_of(host, batch["input_ids"].device))


def forward_with_teacher(
    model: Any, attached: Attached, batch: Mapping[str, Any], host: Mapping[str, Any], keep: Sequence[Keep]
) -> tuple[Told, Tensor]:
    """One forward at two budgets: what is told at that of the model, and, without gradient, the logits [M, V] of a
    teacher that keeps `keep`. Vision tower and layers < K run once for both, so that dropout before layer K is the
    student's; from there on the teacher drops nothing."""
    with attached.with_teacher(*keep):
        student, teacher = _logits(model, attached, batch, host)
    return Told(student, targets_of(host, student.device)), teacher.detach()


def forward_teacher_separately(
    model: Any, attached: Attached, batch: Mapping[str, Any], host: Mapping[str, Any], keep: Sequence[Keep]
) -> tuple[Told, Tensor]:
    """The same in two forwards, which share nothing: what `forward_with_teacher` is held against."""
    before = [reducer.keep for reducer in attached.reducers]
    attached.set_keep(*keep)
    model.eval()
    try:
        with torch.no_grad():
            teacher = tell(model, attached, batch, host).logits
    finally:
        model.train()
        attached.set_keep(*before)
    return tell(model, attached, batch, host), teacher


def _logits(model: Any, attached: Attached | None, batch: Mapping[str, Any], host: Mapping[str, Any]) -> Tensor:
    """[1 or 2, M, V]: at supervised positions; the second is a companion's."""
    if attached is None or not has_images(batch):
        return _full(model, attached, batch, host)
    attached.prefetch_batch(**host)
    with attached.skip_model_loss():
        logits: Tensor = model(**batch, use_cache=False).logits
    return logits


def _full(model: Any, attached: Attached | None, batch: Mapping[str, Any], host: Mapping[str, Any]) -> Tensor:
    """Nothing to reduce: logits at the places that some row is supervised at, of them the supervised ones."""
    here = supervised(host["labels"])
    places = here.any(0).nonzero()[:, 0]
    asked = {name: value for name, value in batch.items() if name != "labels"}
    device = batch["input_ids"].device
    logits = _plain(model, attached, asked, places.to(device))
    rows, columns = here[:, places].nonzero(as_tuple=True)
    return logits.unflatten(0, (-1, len(here)))[:, rows.to(device), columns.to(device)]


def _plain(model: Any, attached: Attached | None, asked: Mapping[str, Any], places: Tensor) -> Tensor:
    if attached is None:
        logits: Tensor = model(**asked, logits_to_keep=places, use_cache=False).logits
        return logits
    with attached.paused():
        return _plain(model, None, asked, places)


def targets_of(host: Mapping[str, Any], device: torch.device) -> Tensor:
    """[M], in the order of rows."""
    return _targets(host["labels"])[supervised(host["labels"])].to(device, non_blocking=True)


def supervised(labels: Tensor) -> Tensor:
    """[B, L] -> [B, L - 1] bool: places whose next token is to be learnt."""
    return _targets(labels) != IGNORED


def _targets(labels: Tensor) -> Tensor:
    return labels[:, 1:]


def number(host: Mapping[str, Any]) -> int:
    return int(supervised(host["labels"]).sum())


@torch.no_grad()
def accuracy(told: Told) -> int:
    """Targets that the highest logit names."""
    return int((told.logits.argmax(-1) == told.targets).sum())


class Budgets:
    """`steps`: optimizer steps of the whole run."""

    def __init__(self, recipe: Recipe, attached: Attached | None, steps: int, visual_ids: Sequence[int] = ()) -> None:
        self.recipe, self.attached, self.steps, self.visual_ids = recipe, attached, steps, visual_ids
        self.served = [reducer.keep for reducer in recipe.reduction.reducers()]
        self.drawn: list[Keep] = list(self.served)

    def begin(self, step: int) -> None:
        """Collective under ZeRO-3, where the final norm's weight is gathered."""
        if self.attached is None:
            return
        schedule, seed = self.recipe.reduction.schedule, self.recipe.train.seed
        self.drawn = [budget_at_step(schedule, served, step, self.steps, seed) for served in self.served]
        self.attached.set_keep(*self.drawn)
        self.attached.seed = seed + step
        self.attached.refresh()

    @contextmanager
    def set_to(self, *keep: Keep) -> Iterator[None]:
        """Other budgets for a while."""
        if self.attached is None:
            yield
            return
        before = [reducer.keep for reducer in self.attached.reducers]
        self.attached.set_keep(*keep)
        try:
            yield
        finally:
            self.attached.set_keep(*before)

    def teaching(self, step: int, batch: Mapping[str, Any]) -> list[Keep]:
        """What the teacher of this batch keeps, stage by stage."""
        visual = self._visual(batch)
        return [teacher_keep(self.recipe.distill, keep, visual, step, self.steps) for keep in self.drawn]

    def _visual(self, batch: Mapping[str, Any]) -> int:
        """Visual tokens of the sample that has most, asked of the host."""
        ids = batch["input_ids"]
        return int(torch.isin(ids, torch.tensor(list(self.visual_ids))).sum(1).max())

    def told(self) -> dict[str, float]:
        """For the line of metrics: a ratio, or a number of tokens."""
        names = ["keep"] if len(self.drawn) == 1 else [f"keep_{i}" for i in range(len(self.drawn))]
        return {name: float(keep) for name, keep in zip(names, self.drawn, strict=True)}
