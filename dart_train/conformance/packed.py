"""The law of rows without padding, on the user's own model: laid end to end, they are the padded batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hooks import attach
from ..hooks.packing import why_not_packed
from ..models.structure import find_parts
from ..reduction import Reducer
from ..reduction.batch_layout import IGNORED
from ..reduction.packed_rows import ROW_LENGTHS
from .measures import (
    SUPERVISED,
    LawResult,
    ModelUnderTest,
    largest,
    last_tokens,
    only_few_trained,
    relative_difference,
)


def packed_rows(tested: ModelUnderTest, reducer: Reducer) -> LawResult:
    """Logits, the share of tokens that are selected differently, and gradients of the weights of three layers."""
    law, model, real = f"{reducer.name}: rows without padding = padded", tested.model, tested.real
    reason = why_not_packed(find_parts(model))
    if reason is not None:
        return LawResult(law, "not checked", note=f"train.padding_free is refused: {reason}")
    labels = tested.inputs["input_ids"].masked_fill(~last_tokens(real, SUPERVISED), IGNORED)
    batches = [{**tested.inputs, "labels": labels}]
    batches.append(without_padding(batches[0]))
    logits, chosen, gradients = list[Tensor](), list[Tensor](), list[list[Tensor]]()
    with torch.enable_grad(), only_few_trained(model, reducer.layer) as few, attach(model, reducer) as attached:
        for batch, where in zip(batches, (real, torch.ones_like(real[real])[None]), strict=True):
            output = model(**batch, use_cache=False)
            chosen.append(where[where] if attached.last is None else attached.last.mask[where])
            logits.append(output.logits.detach()[where])
            gradients.append([output.loss.detach(), *torch.autograd.grad(output.loss, list(few.values()))])
    padded, packed = gradients
    differences = [
        relative_difference(logits[1], logits[0], chosen[0]),
        float((chosen[0] != chosen[1]).float().mean()),
        *(relative_difference(one, other) for one, other in zip(packed, padded, strict=True)),
    ]
    note = f"{int(chosen[0].sum())} of {len(chosen[0])} tokens kept, and gradients of {', '.join(few)}"
    return LawResult.of(law, largest(differences), tested.tolerance, note)


def without_padding(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What is [batch, length] becomes [1, real tokens], in row order; images stay as they are."""
    real = batch["attention_mask"].bool()
    joined = {
        name: value[real][None] if isinstance(value, Tensor) and value.shape == real.shape else value
        for name, value in batch.items()
        if name != "attention_mask"
    }
    return {**joined, ROW_LENGTHS: real.sum(1).tolist()}
