"""From a recipe to a finished run: prepare (everything that is checked before a weight is read), build (the trainer),
train."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from ..checkpoints import latest_complete, prune, step_of
from ..common.distributed import RankInfo, destroy_process_group, gather_objects
from ..common.trackers import TrackedRun, make_trackers
from ..config import Recipe
from ..data.collator import dummy_inputs
from ..hooks import attach
from ..hooks.dummy_image import attach_dummy_image
from ..hooks.packing import RowPacking, why_not_packed
from ..models.processors import load_processor, takes_pixel_limits, video_problem
from ..models.structure import find_parts, unwrap_model
from .arguments import reset_deepspeed_state, training_arguments
from .callbacks import MetricsFile, ProgressLine
from .data_feed import TrainFeed
from .deepspeed_config import deepspeed_config, uses_deepspeed, zero_stage
from .early_stopping import has_stopped_early, make_early_stopping
from .fully_sharded import shard_fully, uses_fsdp2
from .header import header, run_facts
from .liveness import RankMonitor, StopRequest
from .optional_packages import find_missing_packages
from .overlays import Overlays, OverlaySample, overlay_samples
from .resharding import remove_resharded
from .resume import (
    check_same_rows,
    choose_checkpoint,
    folder_to_load,
    reads_universal,
    was_surveyed,
    with_grouping,
)
from .row_guard import UnusableRowsError
from .run_lock import RunLock
from .run_record import write_run_record
from .scorer_training import check_initial_scorers, place_initial_scorers
from .trainable import choose_parameters, load_model, trainable_meta_model, upcast_trainable_to_fp32
from .trainer import DartTrainer
from .validation import Validation


@dataclass(frozen=True)
class TrainResult:
    """`checkpoint`: the newest complete one. `stopped`: why the run stopped before its last step, or None."""

    run: Path
    checkpoint: Path | None
    steps: int
    stopped: str | None = None


@dataclass(frozen=True)
class PreparedRun:
    """All that is known of a run before a weight is read. `resume`: the checkpoint to continue from."""

    recipe: Recipe
    ranks: RankInfo
    processor: Any
    feed: TrainFeed
    validation: Validation | None
    meta_model: Any
    resume: Path | None
    overlay_samples: Sequence[OverlaySample] = ()

    def resume_from(self, trainer: Any) -> str | None:
        """The folder for the Trainer. Collective."""
        return folder_to_load(self.resume, self.recipe, self.ranks, trainer)

    @property
    def start_step(self) -> int:
        return step_of(self.resume) if self.resume else 0


def run(recipe: Recipe, force: bool = False) -> TrainResult:
    """Trains, on every rank of the run. Raises ValueError before anything is written if the recipe cannot be run;
    NonFiniteStepError, CheckpointWriteError or LostRankError if the run has to end."""
    ranks, lock = RankInfo.read(), RunLock(Path(recipe.train.output_dir))
    stop = StopRequest(ranks.launched)
    try:
        if ranks.rank == 0 and Path(recipe.train.output_dir).is_dir():
            lock.take()
        prepared = prepare(recipe, ranks, force)
        if ranks.rank == 0:
            lock.take()  # a new folder is made only now: a refused recipe leaves none
            print(header(prepared.feed, prepared.meta_model, prepared.resume), file=sys.stderr, flush=True)
        deepspeed = uses_deepspeed(recipe.train, ranks)
        process_group_is_ours = ranks.init_process_group(recipe.train.timeout_seconds, deepspeed)
        try:
            check_ranks_agree(prepared.feed.fingerprint())
            monitor = RankMonitor(recipe.train.timeout_seconds)
            return train_prepared(prepared, build(prepared, stop), stop, monitor)
        finally:
            if process_group_is_ours:
                destroy_process_group()
    finally:
        lock.release()


def check_ranks_agree(rows: dict[str, Any]) -> None:
    """Collective. Raises ValueError on every rank if they would not read the same rows, as where machines have
    different copies of the data."""
    found = gather_objects(rows)
    others = [f"rank {rank} {each}" for rank, each in enumerate(found) if each != found[0]]
    if others:
        raise ValueError(f"data.train: the ranks do not see the same rows: rank 0 {found[0]}; {'; '.join(others[:3])}")


def prepare(recipe: Recipe, ranks: RankInfo, force: bool = False) -> PreparedRun:
    """Everything that can be wrong and is cheap to find out; raises ValueError."""
    problems = ranks.problems(recipe.train.precision)
    problems += find_missing_packages(recipe)
    if zero_stage(deepspeed_config(recipe.train)) == 3 and recipe.model.quantization != "none":
        problems.append(
            f"model.quantization: {recipe.model.quantization} weights cannot be partitioned, but "
            f"{recipe.train.deepspeed} has zero_optimization.stage 3; use stage 2, or quantization none"
        )
    if problems:
        raise ValueError("\n".join(problems))
    reset_deepspeed_state()
    meta_model = trainable_meta_model(recipe)
    check_initial_scorers(recipe, meta_model)
    check_packing(recipe, meta_model)
    processor = load_processor(
        recipe.model.path, trust_remote_code=recipe.model.trust_remote_code, template=recipe.data.template_text()
    )
    resume, incomplete = choose_checkpoint(recipe, ranks, force)
    recipe = with_grouping(recipe, resume)
    feed = TrainFeed.open(recipe, ranks, processor, was_surveyed(resume), len(find_parts(meta_model).layers))
    check_same_rows(resume, feed.fingerprint(), force)
    validation = Validation.open(recipe, ranks, processor)
    if ranks.rank == 0:
        for each in incomplete:
            print(f"train: {each}", file=sys.stderr)
        if (recipe.data.max_pixels or recipe.data.min_pixels) and not takes_pixel_limits(processor):
            print(
                "train: data.max_pixels and data.min_pixels scale the images of this training; "
                f"{type(processor.image_processor).__name__} does not resize to a number of pixels and cannot carry "
                "them: scale images in the same way when the model is used",
                file=sys.stderr,
            )
    samples = overlay_samples(recipe, validation, processor, meta_model)
    return PreparedRun(recipe, ranks, processor, feed, validation, meta_model, resume, samples)


def check_packing(recipe: Recipe, model: Any) -> None:
    """Raises ValueError if rows of this model cannot be laid end to end. model: on any device."""
    reason = why_not_packed(find_parts(model)) if recipe.train.padding_free else None
    if reason is not None:
        name = type(unwrap_model(model)).__name__
        raise ValueError(f"train.padding_free: not with {name}: {reason}; set it to false")


def build(prepared: PreparedRun, stop: StopRequest | None = None) -> DartTrainer:
    """The trainer, ready to start. The order matters: arguments before weights (ZeRO-3 reads them while loading),
    parameters before the reduction, all of it before anything wraps the model."""
    recipe, ranks, folder = prepared.recipe, prepared.ranks, Path(prepared.recipe.train.output_dir)
    if ranks.rank == 0:
        write_run_record(folder, recipe, prepared.feed.fingerprint())
        prune(folder)
        remove_resharded(folder)
    universal = reads_universal(prepared.resume, recipe, ranks)
    arguments = training_arguments(recipe, ranks, prepared.feed.steps, universal)
    model = load_model(recipe)
    set_seed(recipe.train.seed)  # new adapters are the same on every rank, however the weights were loaded
    model = choose_parameters(model, recipe.parts)
    if not uses_deepspeed(recipe.train, ranks):
        upcast_trainable_to_fp32(model)
    reducers = recipe.reduction.reducers()
    place_initial_scorers(recipe, model)
    attached = attach(model, recipe.reduction.all_stages(), output="compact") if reducers else None
    for scorer in attached.scorers.values() if attached is not None else ():
        scorer.requires_grad_(recipe.scorer.train)
    if attached is None and recipe.train.padding_free:
        RowPacking(find_parts(model)).register_hooks()
    attach_dummy_image(model, dummy_inputs(prepared.processor), videos=_may_have_videos(prepared))
    if uses_fsdp2(recipe.train, ranks):
        shard_fully(model, recipe.train, ranks)
    reporters = _reporters(prepared) if ranks.rank == 0 else []
    callbacks = [*make_early_stopping(recipe.train), *reporters]
    trainer = DartTrainer(
        model,
        arguments,
        recipe,
        prepared.feed,
        attached,
        prepared.processor,
        prepared.validation,
        prepared.start_step,
        stop,
        callbacks,
    )
    if trainer.trackers and prepared.validation is not None:
        prepared.validation.show_predictions(prepared.processor.tokenizer)
    if prepared.overlay_samples and attached is not None:
        tokenizer = prepared.processor.tokenizer
        overlays = Overlays(
            recipe, prepared.overlay_samples, attached, trainer.budgets, trainer.eval_mode, tokenizer, reporters
        )
        trainer.add_callback(overlays)
    return trainer


def _may_have_videos(prepared: PreparedRun) -> bool:
    """Whether a batch of some rank may have a video; equal on all ranks."""
    validation: Any = None if prepared.validation is None else prepared.validation.batches.dataset
    sources = [*prepared.feed.reader.sources, *([] if validation is None else validation.reader.sources)]
    return video_problem(prepared.processor) is None and any(source.may_have_videos() for source in sources)


def _reporters(prepared: PreparedRun) -> list[TrainerCallback]:
    """On the first rank alone: these rewrite their files when they are made."""
    recipe, folder = prepared.recipe, Path(prepared.recipe.train.output_dir)
    log = recipe.log
    config = {**recipe.to_dict(), "run": run_facts(prepared.feed, prepared.meta_model)}
    run = TrackedRun(folder, log.project, log.name, log.group, log.tags, log.mode, config)
    return [MetricsFile(folder, prepared.start_step), ProgressLine(), *make_trackers(log.report_to, run)]


def train_prepared(prepared: PreparedRun, trainer: DartTrainer, stop: StopRequest, monitor: RankMonitor) -> TrainResult:
    """Trains while signals, the launcher and the other ranks are watched."""
    if prepared.ranks.rank == 0:
        trainer.guard.rewind()
        trainer.row_guard.rewind()
    trainer.on_heartbeat = monitor.heartbeat
    if has_stopped_early(prepared.resume, prepared.recipe.train):
        return TrainResult(Path(prepared.recipe.train.output_dir), prepared.resume, prepared.start_step)
    with stop, monitor:
        try:
            trainer.train(resume_from_checkpoint=prepared.resume_from(trainer))
        except UnusableRowsError as error:
            trainer.save_before_error()
            saved = latest_complete(Path(prepared.recipe.train.output_dir))[0]
            note = f". Trained so far: {saved}" if saved else ""
            raise UnusableRowsError(f"{error}{note}") from error
        finally:
            if prepared.ranks.rank == 0:
                remove_resharded(Path(prepared.recipe.train.output_dir))
    reason = (stop.reason or "another rank was requested to stop") if stop.agreed else None
    folder = Path(prepared.recipe.train.output_dir)
    return TrainResult(folder, latest_complete(folder)[0], trainer.state.global_step, reason)
