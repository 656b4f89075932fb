"""The objective of a step: logits at supervised positions, the loss, distillation, and the budget of each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import Recipe
from ..data.supervision import LOSS_WEIGHTS
from ..hooks import Attached
from ..hooks.batch_plan import has_images
from ..reduction import Reducer
from ..reduction.batch_layout import IGNORED
from ..reduction.budget import Keep
from ..reduction.packed_rows import ROW_LENGTHS
from ..reduction.schedule import budget_at_step, teacher_keep, tower_keep_at_step
from ..reduction.teacher_stage import teacher_stage

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class SupervisedLogits:
    """Output of a forward at its supervised positions: logits [M, V], targets [M] and their weights in the loss [M]
    (None: all 1), in the order of rows."""

    logits: Tensor
    targets: Tensor
    weights: Tensor | None = None

    def loss(self) -> Tensor:
        """The weighted sum over targets; 0, with a gradient of zero, where there are none."""
        if not self.targets.numel():
            return self.logits.sum() * 0.0
        if self.weights is None:
            return F.cross_entropy(self.logits.float(), self.targets, reduction="sum")
        return self.weights @ F.cross_entropy(self.logits.float(), self.targets, reduction="none")

    def divergence(self, teacher: Tensor, temperature: float) -> Tensor:
        """The weighted sum over targets of KL(teacher || student) at a temperature; teacher: logits [M, V]."""
        student_log_probs = F.log_softmax(self.logits.float() / temperature, dim=-1)
        teacher_log_probs = F.log_softmax(teacher.float() / temperature, dim=-1)
        if self.weights is None:
            return F.kl_div(student_log_probs, teacher_log_probs, reduction="sum", log_target=True)
        return self.weights @ F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True).sum(-1)

    def total_weight(self) -> float:
        """What a mean over targets divides by."""
        return float(self.targets.numel() if self.weights is None else self.weights.sum())

    @torch.no_grad()
    def correct(self) -> int:
        """The number of targets that have the highest logit."""
        return int((self.logits.argmax(-1) == self.targets).sum())


def forward_supervised(model: Any, attached: Attached | None, batch: Batch, host: Batch) -> SupervisedLogits:
    """One forward. `batch` is on the device; `host` is the same batch on the CPU, as it was collated: reading lengths
    and labels from it does not wait for the device."""
    return _with_targets(_logits(model, attached, batch, host)[0], host)


def forward_with_teacher(
    model: Any, attached: Attached, batch: Batch, host: Batch, teacher_at: Sequence[Keep | Reducer]
) -> tuple[SupervisedLogits, Tensor]:
    """One forward at two budgets: the model's output at its own, and the logits [M, V], without gradient, of a teacher
    (`Attached.with_teacher` takes the same). Vision tower and layers < K run once for both, so dropout before layer K
    is the student's; from layer K on the teacher has no dropout."""
    with attached.with_teacher(*teacher_at):
        student, teacher = _logits(model, attached, batch, host)
    return _with_targets(student, host), teacher.detach()


def _with_targets(logits: Tensor, host: Batch) -> SupervisedLogits:
    return SupervisedLogits(logits, targets_of(host, logits.device), weights_of(host, logits.device))


def forward_teacher_separately(
    model: Any, attached: Attached, batch: Batch, host: Batch, keep: Sequence[Keep]
) -> tuple[SupervisedLogits, Tensor]:
    """The same in two forwards that share nothing: the reference for `forward_with_teacher`, in tests and bench."""
    before = [reducer.keep for reducer in attached.reducers]
    attached.set_keep(*keep)
    model.eval()
    try:
        with torch.no_grad():
            teacher = forward_supervised(model, attached, batch, host).logits
    finally:
        model.train()
        attached.set_keep(*before)
    return forward_supervised(model, attached, batch, host), teacher


def _logits(model: Any, attached: Attached | None, batch: Batch, host: Batch) -> Tensor:
    """[1 or 2, M, V]: logits at supervised positions, the teacher's second."""
    batch, host = ({name: t for name, t in each.items() if name != LOSS_WEIGHTS} for each in (batch, host))
    if attached is None or not has_images(batch):
        return _unreduced_logits(model, attached, batch, host)
    attached.prefetch_batch(**host)
    with attached.skip_model_loss():
        logits: Tensor = model(**batch, use_cache=False).logits
    return logits


def _unreduced_logits(model: Any, attached: Attached | None, batch: Batch, host: Batch) -> Tensor:
    """For a batch with nothing to reduce. `logits_to_keep` takes one set of columns for all rows: the model computes
    the columns in which any row is supervised, and the supervised positions are selected from them."""
    is_supervised = supervised(host["labels"])
    columns = is_supervised.any(0).nonzero()[:, 0]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    device = batch["input_ids"].device
    if attached is None:
        logits = model(**inputs, logits_to_keep=columns.to(device), use_cache=False).logits
    else:
        with attached.paused():
            logits = model(**inputs, logits_to_keep=columns.to(device), use_cache=False).logits
    rows, places = is_supervised[:, columns].nonzero(as_tuple=True)
    selected: Tensor = logits.unflatten(0, (-1, len(is_supervised)))[:, rows.to(device), places.to(device)]
    return selected


def targets_of(host: Batch, device: torch.device) -> Tensor:
    """[M], in the order of rows."""
    labels = host["labels"]
    return labels[:, 1:][supervised(labels)].to(device, non_blocking=True)


def weights_of(host: Batch, device: torch.device) -> Tensor | None:
    """[M] the weights of the targets in the loss; None: all 1."""
    if LOSS_WEIGHTS not in host:
        return None
    found: Tensor = host[LOSS_WEIGHTS][:, 1:][supervised(host["labels"])]
    return found.to(device, non_blocking=True)


def supervised(labels: Tensor) -> Tensor:
    """[B, L] -> [B, L - 1] bool: positions whose next token is a target."""
    return labels[:, 1:] != IGNORED


def count_targets(host: Batch) -> int:
    return int(supervised(host["labels"]).sum())


def target_weight(host: Batch) -> float:
    """The sum of the weights of all targets: without weights, their number."""
    weights = weights_of(host, torch.device("cpu"))
    return float(count_targets(host) if weights is None else weights.double().sum())


class StepBudgets:
    """Sets the budget of each optimizer step on the model. `steps`: optimizer steps of the run. `served`: the budgets
    of the stages after training; `current`: those of this step."""

    def __init__(self, recipe: Recipe, attached: Attached | None, steps: int, visual_ids: Sequence[int] = ()) -> None:
        self.recipe, self.attached, self.steps, self.visual_ids = recipe, attached, steps, visual_ids
        self.served = [reducer.keep for reducer in recipe.reduction.reducers()]
        self.current: list[Keep] = list(self.served)
        tower = recipe.reduction.tower_stage()
        self.served_tower = None if tower is None else tower.keep  # None: there is no ratio to move
        self.current_tower = self.served_tower

    def start_step(self, step: int) -> None:
        """Collective under ZeRO-3, where the final norm's weight is gathered."""
        if self.attached is None:
            return
        schedule, seed = self.recipe.reduction.schedule, self.recipe.train.seed
        self.current = [budget_at_step(schedule, served, step, self.steps, seed) for served in self.served]
        self.attached.set_keep(*self.current)
        if self.served_tower is not None:
            self.current_tower = tower_keep_at_step(schedule, self.served_tower, step, self.steps, seed)
            self.attached.set_tower_keep(self.current_tower)
        self.attached.seed = seed + step
        self.attached.refresh()

    @contextmanager
    def temporarily(self, *keep: Keep) -> Iterator[None]:
        """Other budgets inside this context, with the tower as it is served."""
        if self.attached is None:
            yield
            return
        before = [reducer.keep for reducer in self.attached.reducers]
        self.attached.set_keep(*keep)
        if self.served_tower is not None:
            self.attached.set_tower_keep(self.served_tower)
        try:
            yield
        finally:
            self.attached.set_keep(*before)
            if self.current_tower is not None:
                self.attached.set_tower_keep(self.current_tower)

    def teacher(self, step: int, host: Batch) -> Sequence[Keep | Reducer]:
        """What `Attached.with_teacher` takes for this batch."""
        if self.recipe.distill.teacher == "reduction":
            return [teacher_stage(self.recipe.distill, self.current[-1])]
        visual = torch.isin(host["input_ids"], torch.tensor(list(self.visual_ids)))
        lengths = host.get(ROW_LENGTHS)  # of packed rows
        rows = visual.split(1) if lengths is None else visual.split(lengths, 1)
        most = max(int(row.sum()) for row in rows)  # the row with the most visual tokens decides
        return [teacher_keep(self.recipe.distill, keep, most, step, self.steps) for keep in self.current]

    def metrics(self) -> dict[str, float]:
        """Each a ratio, or a number of tokens."""
        names = ["keep"] if len(self.current) == 1 else [f"keep_{i}" for i in range(len(self.current))]
        tower = {} if self.current_tower is None else {"keep_tower": self.current_tower}
        return {name: float(keep) for name, keep in zip(names, self.current, strict=True)} | tower
