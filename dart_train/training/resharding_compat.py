"""The files of DeepSpeed's checkpoints, as they are read and written where a run resumes at another ZeRO stage.

Private in DeepSpeed and used here, read in 0.19.8: `deepspeed.checkpoint.ds_to_universal.main`, which converts stages
1, 2 and 3 into a folder of universal state; the names and entries of its files, and of `*model_states.pt`; that an
engine with `checkpoint.load_universal` reads the optimizer's state and all trained weights from that folder.

`ds_to_universal` does not take stage 0, whose `mp_rank_00_model_states.pt` has everything: `module` (weights by name;
all of them, or under PEFT those that train) and `optimizer`: in float32 the `state_dict` of PyTorch's optimizer, in
bf16 that of `FP16_UnfusedOptimizer`, whose `fp32_groups` are the weights in float32."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .complete_state import MOMENTS, CompleteState, Layout, from_indexed, to_indexed

_OPTIMIZER_STATE = "optimizer_state.pt"
_WHOLE_MODEL_STATES = "mp_rank_00_model_states.pt"
_UNIVERSAL = "latest_universal"
_WEIGHT = "fp32"


def link_or_copy(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(file, target)


# Stages 1, 2 and 3 --------------------------------------------------------------------------------------------


def convert_to_universal(written: Path, folder: Path) -> None:
    """From the files of stage 1, 2 or 3."""
    from deepspeed.checkpoint.ds_to_universal import main

    options = {"keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    folders = {"input_folder": str(written), "output_folder": str(folder)}
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        main(Namespace(**folders, **workers, **options))
    _complete(folder)


def _complete(folder: Path) -> None:
    """What is only written for, or only read at, some stages: the step of Adam is in the state of all, or of each
    parameter, which stage 3 leaves flat."""
    import deepspeed

    file = folder / "zero" / _OPTIMIZER_STATE
    state = torch.load(file, weights_only=False)  # written by `convert_to_universal`
    if "optimizer_state_dict" in state:
        step = state["optimizer_state_dict"]["state"][0]["step"]
        engine = torch.load(next(folder.glob("*model_states.pt")), map_location="cpu", weights_only=False)
        for name, shape in ((name, shape) for group in engine["param_shapes"] for name, shape in group.items()):
            torch.save(step, folder / "zero" / name / "step.pt")
            for each in (_WEIGHT, *MOMENTS):
                values = torch.load(folder / "zero" / name / f"{each}.pt", weights_only=False)
                torch.save({"param": values.reshape(shape)}, folder / "zero" / name / f"{each}.pt")
        torch.save({"ds_version": deepspeed.__version__, **state}, file)
    else:
        step = torch.load(next((folder / "zero").glob("*/step.pt")), weights_only=False)
        groups = {"state": {0: {"step": step}}, "param_groups": state["param_groups"]}
        torch.save({**state, "optimizer_state_dict": groups}, file)


def read_universal(folder: Path, layout: Layout) -> CompleteState:
    """folder: made by `convert_to_universal`."""

    def read(name: str, what: str) -> Any:
        return torch.load(folder / "zero" / name / f"{what}.pt", map_location="cpu", weights_only=False)

    names = [name for group in layout for name in group]
    state: dict[str, dict[str, Any]] = {
        name: {"step": torch.as_tensor(read(name, "step"), dtype=torch.float32)}
        | {moment: read(name, moment)["param"] for moment in MOMENTS}
        for name in names
    }
    settings = torch.load(folder / "zero" / _OPTIMIZER_STATE, weights_only=False)["param_groups"]
    groups = [{key: value for key, value in group.items() if key != "params"} for group in settings]
    return CompleteState({name: read(name, _WEIGHT)["param"] for name in names}, state, groups)


def write_universal(state: CompleteState, folder: Path, layout: Layout, engine: Mapping[str, Any]) -> None:
    """engine: as `engine_state` returns it. Raises ValueError where the optimizer is not Adam."""
    import deepspeed

    step = state.step
    for name, shape in ((name, shape) for group in layout for name, shape in group.items()):
        values = state.state[name]
        if unknown := sorted({*values} - {"step", *MOMENTS}):
            raise ValueError(f"the optimizer has the state {', '.join(unknown)}, expected that of Adam in float32")
        moments = {moment: values.get(moment, torch.zeros(shape)) for moment in MOMENTS}
        (folder / "zero" / name).mkdir(parents=True)
        torch.save(step, folder / "zero" / name / "step.pt")
        for what, value in {_WEIGHT: state.weights[name], **moments}.items():
            torch.save({"param": value.float().reshape(shape)}, folder / "zero" / name / f"{what}.pt")
    groups = to_indexed(state, layout)["param_groups"]
    inner = {"state": {0: {"step": step}}, "param_groups": groups}
    common = {"ds_version": deepspeed.__version__, "param_groups": groups, "optimizer_state_dict": inner}
    torch.save(common, folder / "zero" / _OPTIMIZER_STATE)
    torch.save(dict(engine), folder / _WHOLE_MODEL_STATES)


def name_for_ranks(folder: Path, stage: int, ranks: int) -> None:
    """The files of the engine's own state have other names at stage 3, one for each rank."""
    source = next(iter(sorted(folder.glob("*model_states.pt"))))
    names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(ranks)]
    for name in names if stage == 3 else [_WHOLE_MODEL_STATES]:
        if not (folder / name).exists():
            link_or_copy(source, folder / name)


def mark_universal(checkpoint: Path, tag: str) -> None:
    (checkpoint / _UNIVERSAL).write_text(tag, encoding="utf-8")


def is_universal(checkpoint: Path) -> bool:
    return (checkpoint / _UNIVERSAL).is_file()


def restore_groups(optimizer: Any, checkpoint: Path) -> None:
    """At stage 3 DeepSpeed gives every group of parameters the settings of the first one, and one tensor as the step of
    all, which each would count up; this restores those of each. checkpoint: made by `reshard`."""
    tag = (checkpoint / _UNIVERSAL).read_text(encoding="utf-8").strip()
    saved = torch.load(checkpoint / tag / "zero" / _OPTIMIZER_STATE, weights_only=False)["param_groups"]
    for group, settings in zip(optimizer.param_groups, saved, strict=True):
        group.update({name: value for name, value in settings.items() if name != "params"})
    for state in optimizer.optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def with_universal(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of DeepSpeed for a run that resumes from a folder of universal state."""
    return {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}


# Stage 0 ------------------------------------------------------------------------------------------------------


def engine_state(written: Path | None, step: int) -> dict[str, Any]:
    """What an engine counts, without weights. written: the files of a stage; None: of another trainer."""
    import deepspeed

    counted = {"global_steps": step, "skipped_steps": 0, "dp_world_size": 1, "mp_world_size": 1}
    if written is not None:
        file = next(iter(sorted(written.glob("*model_states.pt"))))
        saved = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
        counted |= {name: saved[name] for name in (*counted, "global_samples")}
    return {**counted, "ds_version": deepspeed.__version__, "lr_scheduler": None, "module": {}, "optimizer": None}


def read_stage_zero(written: Path, layout: Layout) -> CompleteState:
    saved = torch.load(written / _WHOLE_MODEL_STATES, map_location="cpu", weights_only=False, mmap=True)
    module, optimizer = saved["module"], saved["optimizer"]
    if "fp32_groups" not in optimizer:
        return from_indexed(module, optimizer, layout)
    precise = [weight.detach() for group in optimizer["fp32_groups"] for weight in group]
    names = [name for group in layout for name in group]
    if len(names) != len(precise):
        raise ValueError(f"its optimizer has {len(precise)} parameters, expected {len(names)}")
    return from_indexed(dict(zip(names, precise, strict=True)), optimizer["optimizer_state_dict"], layout)


def write_stage_zero(
    state: CompleteState, folder: Path, layout: Layout, engine: Mapping[str, Any], model: Any, half: bool
) -> None:
    """model: of this run, not partitioned; its weights that are not trained are saved too, unless they are those of a
    base under PEFT. half: it computes in bf16."""
    optimizer = to_indexed(state, layout)
    if half:
        precise = [[state.weights[name].float() for name in group] for group in layout]
        scale = {"dynamic_loss_scale": False, "cur_scale": 1.0, "cur_iter": engine["global_steps"]}
        optimizer = {**scale, "optimizer_state_dict": optimizer, "fp32_groups": precise}
    saved = {**engine, "module": _module_state(state, model), "optimizer": optimizer}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(saved, folder / _WHOLE_MODEL_STATES)


def _module_state(state: CompleteState, model: Any) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        trained = state.weights.get(names.get(id(tensor), ""))
        if trained is not None:
            found[key] = trained.to(tensor.dtype)
        elif not hasattr(model, "peft_config"):
            found[key] = tensor.detach().cpu()
    return found
