"""From a recipe with `train.method: dpo` or `grpo` to a finished run: its folder, checkpoints and exit codes are those
of any other training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from ...checkpoints import latest_complete, prune, step_of
from ...common.distributed import RankInfo, destroy_process_group
from ...common.trackers import TrackedRun, make_trackers
from ...config import Recipe
from ...models.processors import load_processor
from ...models.structure import find_parts
from ..arguments import reset_deepspeed_state
from ..callbacks import MetricsFile
from ..checkpointing import CheckpointWriter
from ..deepspeed_config import uses_deepspeed
from ..early_stopping import has_stopped_early, make_early_stopping
from ..liveness import RankMonitor, StopRequest
from ..objective import StepBudgets
from ..optional_packages import find_missing_packages
from ..resharding import remove_resharded
from ..resume import check_same_rows, choose_checkpoint, folder_to_load, reads_universal, with_grouping
from ..run import TrainResult
from ..run_lock import RunLock
from ..run_record import write_run_record
from ..scorer_training import check_initial_scorers, place_initial_scorers
from ..trainable import count_parameters, freeze_parameters, load_model, trainable_meta_model, upcast_trainable_to_fp32
from .rewards import load_rewards
from .rows import PreferenceRows, open_rows


class StepControl(TrainerCallback):
    """Sets the budget of each step, and ends the run on all ranks after the step in which one was requested to stop."""

    def __init__(self, trainer: Any, recipe: Recipe, stop: StopRequest) -> None:
        self.trainer, self.recipe, self.stop = trainer, recipe, stop
        self.budgets: StepBudgets | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        visual_ids = find_parts(self.trainer.model).visual_ids
        self.budgets = StepBudgets(self.recipe, self.trainer.attached, state.max_steps, visual_ids)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.budgets is not None
        self.budgets.start_step(state.global_step)
        for other in self.trainer.others:
            other.set_keep(*self.budgets.current)
            other.refresh()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        import torch

        wanted = torch.tensor([int(self.stop.reason is not None)], device=args.device)
        if int(self.trainer.accelerator.reduce(wanted, "sum")):
            self.stop.agreed = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False


class PreferenceProgress(TrainerCallback):
    """Prints the line of metrics."""

    SHOWN = ("loss", "reward", "rewards/margins", "rewards/accuracies", "kl", "grad_norm", "rows_with_another_choice")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not (logs and state.is_world_process_zero):
            return
        prefix = "eval_" if "eval_loss" in logs else ""
        shown = [
            f"{name} {logs[prefix + name]:.4g}"
            for name in self.SHOWN
            if isinstance(logs.get(prefix + name), float | int)
        ]
        if shown:
            what = (
                f"validation at step {state.global_step}:" if prefix else f"step {state.global_step}/{state.max_steps}"
            )
            print("  ".join([what, *shown]), file=sys.stderr, flush=True)


def run_preference(recipe: Recipe, force: bool = False) -> TrainResult:
    """Trains, on every rank of the run. Raises as `training.run.run` does."""
    ranks, folder = RankInfo.read(), Path(recipe.train.output_dir)
    lock, stop = RunLock(folder), StopRequest(ranks.launched)
    try:
        if ranks.rank == 0 and folder.is_dir():
            lock.take()
        check(recipe, ranks)
        resume, incomplete = choose_checkpoint(recipe, ranks, force)
        recipe = with_grouping(recipe, resume)
        if ranks.rank == 0:
            for each in incomplete:
                print(f"train: {each}", file=sys.stderr)
            lock.take()
        group_is_ours = ranks.init_process_group(recipe.train.timeout_seconds, uses_deepspeed(recipe.train, ranks))
        try:
            return _train(recipe, ranks, resume, stop, force)
        finally:
            if group_is_ours:
                destroy_process_group()
    finally:
        lock.release()


def check(recipe: Recipe, ranks: RankInfo) -> Any:
    """Everything that can be wrong and is cheap to find out. Returns the model on the meta device. Raises
    ValueError."""
    problems = ranks.problems(recipe.train.precision) + find_missing_packages(recipe)
    if not problems:
        from .arguments import find_trl_errors

        problems += find_trl_errors(recipe)
    try:
        load_rewards(recipe.preference.rewards)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    reset_deepspeed_state()
    meta_model = trainable_meta_model(recipe)
    check_initial_scorers(recipe, meta_model)
    return meta_model


def describe(recipe: Recipe) -> str:
    """`--dry-run`: what would be trained, without reading a weight."""
    ranks = RankInfo.read()
    model = check(recipe, ranks)
    processor = load_processor(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    rows = open_rows(recipe.data.train, recipe.data, processor, recipe.train.method == "dpo")
    counts = [f"  {part:9} {trained:>14,} {total:>14,}" for part, (trained, total) in count_parameters(model).items()]
    usable = f"rows: {len(rows.dataset):,} usable, {len(rows.skipped):,} left out"
    return "\n\n".join(
        [recipe.to_yaml().rstrip(), "\n".join(["parameters      trained            all", *counts]), usable]
    )


def build(
    recipe: Recipe,
    ranks: RankInfo,
    rows: PreferenceRows,
    validation: PreferenceRows | None,
    processor: Any,
    resume: Path | None = None,
) -> Any:
    """The trainer, ready to start."""
    from .arguments import preference_arguments
    from .trainers import ReducedDPOTrainer, ReducedGRPOTrainer

    arguments = preference_arguments(recipe, ranks, reads_universal(resume, recipe, ranks))
    model = load_model(recipe)
    set_seed(recipe.train.seed)
    adapters = freeze_parameters(model, recipe.parts)
    if not uses_deepspeed(recipe.train, ranks):
        upcast_trainable_to_fp32(model)
    place_initial_scorers(recipe, model)
    processor.tokenizer.padding_side = "left"
    common = {
        "model": model,
        "args": arguments,
        "train_dataset": rows.dataset,
        "eval_dataset": None if validation is None else validation.dataset,
        "processing_class": processor,
        "peft_config": adapters,
    }
    if recipe.train.method == "dpo":
        trainer: Any = ReducedDPOTrainer(**common)
    else:
        trainer = ReducedGRPOTrainer(reward_funcs=load_rewards(recipe.preference.rewards), **common)
    trainer.setup(recipe, CheckpointWriter(recipe, ranks, Path(recipe.train.output_dir), rows.fingerprint))
    return trainer


def _train(recipe: Recipe, ranks: RankInfo, resume: Path | None, stop: StopRequest, force: bool) -> TrainResult:
    folder, data, pairs = Path(recipe.train.output_dir), recipe.data, recipe.train.method == "dpo"
    processor = load_processor(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    rows = open_rows(data.train, data, processor, pairs)
    validation = open_rows(data.validation, data, processor, pairs) if data.validation else None
    check_same_rows(resume, rows.fingerprint, force)
    trainer = build(recipe, ranks, rows, validation, processor, resume)
    if ranks.rank == 0:
        write_run_record(folder, recipe, rows.fingerprint)
        prune(folder)
        remove_resharded(folder)
        for line in rows.skipped:
            print(f"train: left out {line}", file=sys.stderr)
    start = step_of(resume) if resume else 0
    for callback in [
        StepControl(trainer, recipe, stop),
        *make_early_stopping(recipe.train),
        *_reporters(recipe, ranks, start),
    ]:
        trainer.add_callback(callback)
    if has_stopped_early(resume, recipe.train):
        return TrainResult(folder, resume, start)
    monitor = RankMonitor(recipe.train.timeout_seconds)
    trainer.on_heartbeat = monitor.heartbeat
    with stop, monitor:
        try:
            trainer.train(resume_from_checkpoint=folder_to_load(resume, recipe, ranks, trainer))
        finally:
            if ranks.rank == 0:
                remove_resharded(folder)
    reason = (stop.reason or "another rank was requested to stop") if stop.agreed else None
    return TrainResult(folder, latest_complete(folder)[0], trainer.state.global_step, reason)


def _reporters(recipe: Recipe, ranks: RankInfo, start: int) -> Sequence[TrainerCallback]:
    if ranks.rank != 0:
        return ()
    folder, log = Path(recipe.train.output_dir), recipe.log
    run = TrackedRun(folder, log.project, log.name, log.group, log.tags, log.mode, recipe.to_dict())
    return [MetricsFile(folder, start), PreferenceProgress(), *make_trackers(log.report_to, run)]
