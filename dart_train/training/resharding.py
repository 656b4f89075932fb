"""Resuming on another number of ranks, or at another ZeRO stage: the first rank converts the optimizer's state with
DeepSpeed's universal checkpoints, into a folder next to the checkpoint that is removed once it has been read.

Private in DeepSpeed 0.19 and used here: `deepspeed.checkpoint.ds_to_universal.main`, the names of its files, and
`checkpoint.load_universal` of the configuration."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from ..common.distributed import RankInfo, gather_objects
from .fully_sharded import SHARDED

Sharding = Mapping[str, int | str | None]  # as `optimizer_sharding` returns it
_FOLDER = ".resharded"
_OPTIMIZER_STATE = "optimizer_state.pt"
_ZERO_STAGES = (1, 2, 3)


def needs_conversion(then: Sharding, now: Sharding) -> bool:
    """Whether the state is partitioned differently. Under DDP every rank has all of it, and with FSDP2 the
    checkpoint has."""
    if then["stage"] == now["stage"] and now["stage"] in (None, SHARDED):
        return False
    return dict(then) != dict(now)


def can_convert(then: Sharding, now: Sharding) -> bool:
    return then["stage"] in _ZERO_STAGES and now["stage"] in _ZERO_STAGES


def reshard(checkpoint: Path, run: Path, now: Sharding, ranks: RankInfo) -> Path:
    """The checkpoint in a form that `now` can be resumed from, below the folder of the run. Collective. Raises
    ValueError on every rank."""
    error, target = None, run / _FOLDER / checkpoint.name
    if ranks.rank == 0:
        remove_resharded(run)
        try:
            _convert(checkpoint, target, now)
        except Exception as found:  # DeepSpeed raises many types; the other ranks are waiting
            error = f"{type(found).__name__}: {found}"
    error = next(filter(None, gather_objects(error)), None)
    if error is not None:
        raise ValueError(f"the optimizer's state of {checkpoint} cannot be converted: {error}. Nothing was changed")
    return target


def remove_resharded(run: Path) -> None:
    """What a resume left."""
    shutil.rmtree(run / _FOLDER, ignore_errors=True)


def _convert(checkpoint: Path, target: Path, now: Sharding) -> None:
    from deepspeed.checkpoint.ds_to_universal import main

    tag = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    target.mkdir(parents=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name != "latest":
            _link(file, target / file.name)
    options = {"keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    folders = {"input_folder": str(checkpoint / tag), "output_folder": str(target / tag)}
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        main(Namespace(**folders, **workers, **options))
    _complete(target / tag, now)


def _complete(folder: Path, now: Sharding) -> None:
    """What is only written for, or only read at, some stages: the files of the engine's own state have other names at
    stage 3, one for each rank; the step of Adam is in the state of all, or of each parameter."""
    import deepspeed

    file = folder / "zero" / _OPTIMIZER_STATE
    state = torch.load(file, weights_only=False)  # written by `_convert`
    if "optimizer_state_dict" in state:
        step = state["optimizer_state_dict"]["state"][0]["step"]
        engine = torch.load(next(folder.glob("*model_states.pt")), map_location="cpu", weights_only=False)
        for name, shape in ((name, shape) for group in engine["param_shapes"] for name, shape in group.items()):
            torch.save(step, folder / "zero" / name / "step.pt")
            for each in ("fp32", "exp_avg", "exp_avg_sq"):
                values = torch.load(folder / "zero" / name / f"{each}.pt", weights_only=False)
                torch.save({"param": values.reshape(shape)}, folder / "zero" / name / f"{each}.pt")
        torch.save({"ds_version": deepspeed.__version__, **state}, file)
    else:
        step = torch.load(next((folder / "zero").glob("*/step.pt")), weights_only=False)
        groups = {"state": {0: {"step": step}}, "param_groups": state["param_groups"]}
        torch.save({**state, "optimizer_state_dict": groups}, file)
    source = next(iter(sorted(folder.glob("*model_states.pt"))))
    names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(int(now["ranks"] or 1))]
    for name in names if now["stage"] == 3 else ["mp_rank_00_model_states.pt"]:
        if not (folder / name).exists():
            _link(source, folder / name)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(file, target)


def restore_groups(optimizer: Any, checkpoint: Path) -> None:
    """At stage 3 DeepSpeed gives every group of parameters the settings of the first one, and one tensor as the step of
    all, which each would count up; this restores those of each. checkpoint: made by `reshard`."""
    tag = (checkpoint / "latest_universal").read_text(encoding="utf-8").strip()
    saved = torch.load(checkpoint / tag / "zero" / _OPTIMIZER_STATE, weights_only=False)["param_groups"]
    for group, settings in zip(optimizer.param_groups, saved, strict=True):
        group.update({name: value for name, value in settings.items() if name != "params"})
    for state in optimizer.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def with_universal(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of DeepSpeed for a run that resumes from `reshard`."""
    return {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}
