"""The export verb: `export(run, out)`, `python -m dart_train export RUN --out DIR`."""

from __future__ import annotations

from pathlib import Path


def export(
    run: str | Path,
    out: str | Path,
    *,
    checkpoint: int | str | None = None,
    adapter_only: bool = False,
    force: bool = False,
    dtype: str | None = None,
    base: str | Path | None = None,
) -> Path:
    """One folder that plain transformers loads, from a run or a checkpoint of it; proven by loading it in a fresh
    process before it gets its name.

    checkpoint: its step, `newest` or `best`; None: the best where validation judged, else the newest.
    adapter_only: a folder that plain PEFT puts on the base model. force: replace an earlier export at `out`.
    dtype: of the weights; None: what training computed in. base: where an adapter's base model is now.
    """
    from .writing import take_away

    return take_away(run, out, checkpoint, adapter_only, force, dtype, base)


__all__ = ["export"]
