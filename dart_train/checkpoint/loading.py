"""`load(path)`: a model, its processor, and its reduction attached as it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..attach import Attached, attach
from ..attach.engine import Output
from ..budget import Keep
from .choice import Choice, warn_if_untrained
from .find import find
from .known import Provenance
from .place import Which
from .weights import read_model


@dataclass
class Loaded:
    """`attached` is None where nothing is reduced. `provenance`: what is known of how the model came to be."""

    model: Any
    processor: Any
    attached: Attached | None
    provenance: Provenance


def load(
    path: str | Path,
    reducer: Choice = ...,
    *,
    keep: Keep | Sequence[Keep] | None = None,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str = "auto",
    device: str | torch.device | None = None,
    output: Output = "expand",
    checkpoint: Which = None,
    base: str | Path | None = None,
    merge: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """A model ready to answer, its reduction attached as it was trained.

    path: an exported folder, a run, one of its checkpoints, the folder of any model, or a hub id.
    reducer: another reduction: a reducer, stages of them, their configuration, or the name of a method; None: none.
    keep: another budget for it. A budget that the model was not trained at gives a warning, `UntrainedBudget`.
    dtype: None: what training computed in, or as saved. device: None: the GPU where there is one.
    checkpoint: of a run, its step, `newest` or `best`; None: the best where validation judged, else the newest.
    base: where an adapter's base model is now, if not where it was. merge: False leaves the adapter inside PEFT.
    Raises a ValueError with everything that is wrong, before any weight is read.
    """
    found = find(
        path,
        reducer,
        keep=keep,
        attn_implementation=attn_implementation,
        checkpoint=checkpoint,
        base=base,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    warn_if_untrained(found.reducers, found.provenance.budgets)
    model = read_model(found.source, dtype or found.dtype, found.kernel, merge)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    attached = attach(model, found.reducers, output=output) if found.reducers else None
    return Loaded(model, found.processor, attached, found.provenance)
