"""Exporting: `export(run, out)`, `python -m dart_train export RUN --out DIR`."""

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
    for_engine: str | None = None,
    convert: bool = False,
) -> Path:
    """Writes one folder that plain transformers loads, from a run or one of its checkpoints. The folder gets its name
    after a fresh process, without dart_train, has loaded it and computed the logits of the run.

    checkpoint: its step, `newest` or `best`; None: the best if the run was validated, else the newest.
    adapter_only: write a folder that plain PEFT loads onto the base model. force: replace an earlier export at `out`.
    dtype: of the weights; None: what training computed in. base: where an adapter's base model is now, if it was moved.
    for_engine: `vllm` refuses a reduction that it cannot apply. convert: write the nearest one that it can.
    """
    from .writing import export_model

    return export_model(run, out, checkpoint, adapter_only, force, dtype, base, for_engine, convert)


__all__ = ["export"]
