"""Resuming on another number of ranks, at another ZeRO stage, or with another backend: the first rank converts the
optimizer's state into a folder next to the checkpoint, which is removed once it has been read. Between ZeRO stages 1,
2 and 3 this is DeepSpeed's universal checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..checkpoints import step_of
from ..common.distributed import RankInfo, gather_objects
from .complete_state import STATE_FILE, CompleteState, Layout, read_state_file, write_state_file
from .fully_sharded import SHARDED
from .resharding_compat import (
    convert_to_universal,
    engine_state,
    link_or_copy,
    mark_universal,
    name_for_ranks,
    read_stage_zero,
    read_universal,
    write_stage_zero,
    write_universal,
)
from .saved_weights import read_saved

Sharding = Mapping[str, int | str | None]  # as `optimizer_sharding` returns it
_FOLDER = ".resharded"
_PARTITIONED = (1, 2, 3)  # ZeRO stages


class ResumingTrainer(Protocol):
    """What the conversion needs of the trainer. `layout`: of its optimizer."""

    model: Any
    args: Any

    def layout(self) -> Layout: ...


def needs_conversion(then: Sharding, now: Sharding) -> bool:
    """Whether the state is partitioned differently. At stage 0 and under DDP every rank has all of it, and with FSDP2
    the checkpoint has."""
    return then["stage"] != now["stage"] or (then["ranks"] != now["ranks"] and now["stage"] in _PARTITIONED)


def why_not_converted(then: Sharding, now: Sharding, precision: str) -> str | None:
    """None: it is."""
    if precision == "fp16" and not {then["stage"], now["stage"]} <= set(_PARTITIONED):
        return "in fp16 the scale of the loss is converted between ZeRO stages 1, 2 and 3 only"
    return None


def loads_universal(then: Sharding, now: Sharding) -> bool:
    """Whether DeepSpeed reads the converted state as a universal checkpoint."""
    return needs_conversion(then, now) and now["stage"] in _PARTITIONED


def reshard(
    checkpoint: Path, run: Path, then: Sharding, now: Sharding, ranks: RankInfo, trainer: ResumingTrainer
) -> Path:
    """The checkpoint in a form that `now` can be resumed from, below the folder of the run. Collective. Raises
    ValueError on every rank."""
    error, target = None, run / _FOLDER / checkpoint.name
    if ranks.rank == 0:
        remove_resharded(run)
        try:
            _convert(checkpoint, target, then, now, trainer)
        except Exception as found:  # DeepSpeed raises many types; the other ranks are waiting
            error = f"{type(found).__name__}: {found}"
    error = next(filter(None, gather_objects(error)), None)
    if error is not None:
        raise ValueError(f"the optimizer's state of {checkpoint} cannot be converted: {error}. Nothing was changed")
    return target


def remove_resharded(run: Path) -> None:
    """What a resume left."""
    shutil.rmtree(run / _FOLDER, ignore_errors=True)


def _convert(checkpoint: Path, target: Path, then: Sharding, now: Sharding, trainer: ResumingTrainer) -> None:
    target.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in ("latest", STATE_FILE):
            link_or_copy(file, target / file.name)
    step, tag = step_of(checkpoint), f"global_step{step_of(checkpoint)}"
    by_deepspeed = then["stage"] not in (None, SHARDED)
    written = checkpoint / (checkpoint / "latest").read_text().strip() if by_deepspeed else None
    if then["stage"] in _PARTITIONED and now["stage"] in _PARTITIONED:
        assert written is not None
        convert_to_universal(written, target / tag)
    else:
        _write(_read(checkpoint, written, target, then, trainer), written, target, tag, step, now, trainer)
    if now["stage"] in _PARTITIONED:
        name_for_ranks(target / tag, int(now["stage"] or 0), int(now["ranks"] or 1))
        mark_universal(target, tag)


def _read(
    checkpoint: Path, written: Path | None, target: Path, then: Sharding, trainer: ResumingTrainer
) -> CompleteState:
    """written: the files of DeepSpeed."""
    layout = trainer.layout()
    if written is None:
        with_file = then["stage"] == SHARDED
        return read_state_file(checkpoint, layout) if with_file else read_saved(checkpoint, layout, trainer.model)
    if then["stage"] == 0:
        return read_stage_zero(written, layout)
    scratch = target.parent / "universal"  # next to it, DeepSpeed writes a mark
    convert_to_universal(written, scratch / "state")
    try:
        return read_universal(scratch / "state", layout)
    finally:
        shutil.rmtree(scratch)


def _write(
    state: CompleteState,
    written: Path | None,
    target: Path,
    tag: str,
    step: int,
    now: Sharding,
    trainer: ResumingTrainer,
) -> None:
    layout = trainer.layout()
    if now["stage"] in (None, SHARDED):
        write_state_file(state, target, layout)
        return
    engine = engine_state(written, step)
    if now["stage"] == 0:
        write_stage_zero(state, target / tag, layout, engine, trainer.model, trainer.args.bf16)
        (target / "latest").write_text(tag, encoding="utf-8")
    else:
        write_universal(state, target / tag, layout, engine)
