"""The loss per supervised token of one forward, and what a gentler reduction of the same weights would have said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attach import Attached
from ..attach.intake import has_images

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
    if attached is None or not has_images(batch):
        return _full(model, attached, batch, host)
    attached.expect(host["input_ids"], host.get("attention_mask"), host["labels"])
    logits = model(**batch, use_cache=False).logits
    targets = _targets(host["labels"])[supervised(host["labels"])]
    return Told(logits[0], targets.to(logits.device, non_blocking=True))


def _full(model: Any, attached: Attached | None, batch: Mapping[str, Any], host: Mapping[str, Any]) -> Told:
    """Nothing to reduce: logits at the places that some row is supervised at, of them the supervised ones."""
    here = supervised(host["labels"])
    places = here.any(0).nonzero()[:, 0]
    asked = {name: value for name, value in batch.items() if name != "labels"}
    device = batch["input_ids"].device
    logits = _plain(model, attached, asked, places.to(device))
    rows, columns = here[:, places].nonzero(as_tuple=True)
    return Told(logits[rows.to(device), columns.to(device)], _targets(host["labels"])[here].to(device))


def _plain(model: Any, attached: Attached | None, asked: Mapping[str, Any], places: Tensor) -> Tensor:
    if attached is None:
        logits: Tensor = model(**asked, logits_to_keep=places, use_cache=False).logits
        return logits
    with attached.paused():
        return _plain(model, None, asked, places)


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
