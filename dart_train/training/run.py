"""The train verb: a recipe becomes a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from ..checkpoints import latest_complete, prune, step_of
from ..common.distributed import RankInfo, destroy_process_group
from ..common.trackers import trackers
from ..config import Recipe
from ..data.collator import dummy_inputs
from ..hooks import attach
from ..hooks.dummy_image import attach_dummy_image
from ..models.processors import load_processor
from .callbacks import MetricsFile, ProgressLine
from .checkpointing import start_from, write_record
from .data_feed import TrainFeed, Validation
from .deepspeed_config import deepspeed_config
from .liveness import Lock, RankMonitor, StopRequest
from .overlays import Overlays, Scene, scenes
from .trainable import choose_parameters, load_model, skeleton, upcast_trainable_to_fp32
from .trainer import DartTrainer, reset_deepspeed_state, training_arguments


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves."""

    run: Path
    checkpoint: Path | None  # the newest whole one
    steps: int
    stopped: str | None = None  # before the end, and at whose wish


@dataclass(frozen=True)
class Prepared:
    """All that is known of a run before a weight is read."""

    recipe: Recipe
    ranks: RankInfo
    processor: Any
    feed: TrainFeed
    validation: Validation | None
    skeleton: Any
    resume: Path | None
    scenes: Sequence[Scene] = ()  # validation samples to draw

    @property
    def start_step(self) -> int:
        return step_of(self.resume) if self.resume else 0


def prepare(recipe: Recipe, ranks: RankInfo, force: bool = False) -> Prepared:
    """Everything that can be wrong and is cheap to find out; raises ValueError."""
    wrong = [*ranks.problems(recipe.train.precision), *_unavailable(recipe)]
    if wrong:
        raise ValueError("\n".join(wrong))
    deepspeed_config(recipe.train)
    reset_deepspeed_state()
    bones = skeleton(recipe)
    processor = load_processor(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    feed, validation = TrainFeed.open(recipe, ranks, processor), Validation.open(recipe, ranks, processor)
    resume, passed = start_from(recipe, ranks, force)
    for damaged in passed:
        if ranks.rank == 0:
            print(f"train: {damaged}", file=sys.stderr)
    drawn = scenes(recipe, validation, processor, bones)
    return Prepared(recipe, ranks, processor, feed, validation, bones, resume, drawn)


def _unavailable(recipe: Recipe) -> list[str]:
    """What the recipe's words allow and this verb cannot do: refused rather than passed over."""
    wrong = []
    if recipe.train.liger and find_spec("liger_kernel") is None:
        wrong.append("train.liger: true needs the package liger-kernel, which is not installed; install it or leave it")
    return wrong


def run(recipe: Recipe, force: bool = False) -> TrainResult:
    ranks, lock = RankInfo.read(), Lock(Path(recipe.train.output_dir))
    stopping = StopRequest(ranks.launched)
    try:
        if ranks.rank == 0 and Path(recipe.train.output_dir).is_dir():
            lock.take()
        prepared = prepare(recipe, ranks, force)
        if ranks.rank == 0:
            lock.take()  # only now: a recipe that is refused leaves no folder
        train = recipe.train
        deepspeed = ranks.uses_deepspeed(train.zero_stage, train.requires_deepspeed)
        met = ranks.init_process_group(train.timeout_seconds, deepspeed)
        try:
            return _go(prepared, stopping)
        finally:
            if met:
                destroy_process_group()
    finally:
        lock.release()


def _go(prepared: Prepared, stopping: StopRequest) -> TrainResult:
    peers = RankMonitor(prepared.recipe.train.timeout_seconds)
    try:
        return _train(build(prepared), prepared, stopping, peers)
    except RuntimeError as error:
        lost = peers.explain(error)
        if lost is None:
            raise
        raise lost from error


def _train(trainer: DartTrainer, prepared: Prepared, stopping: StopRequest, peers: RankMonitor) -> TrainResult:
    if prepared.ranks.rank == 0:
        trainer.guard.rewind()
    with stopping, peers:
        trainer.stopping, trainer.beat = stopping, peers.beat
        trainer.train(resume_from_checkpoint=None if prepared.resume is None else str(prepared.resume))
    why = (stopping.why or "another rank was asked to") if stopping.done else None
    return TrainResult(trainer.saver.run, latest_complete(trainer.saver.run)[0], trainer.state.global_step, why)


def build(prepared: Prepared) -> DartTrainer:
    """The trainer, ready to start. The order matters: arguments before weights (ZeRO-3 reads them while loading),
    parts before the reduction, all of it before anything wraps the model."""
    recipe, ranks, folder = prepared.recipe, prepared.ranks, Path(prepared.recipe.train.output_dir)
    if ranks.rank == 0:
        write_record(folder, recipe)
        prune(folder)
    arguments = training_arguments(recipe, ranks, prepared.feed.steps)
    model = load_model(recipe)
    set_seed(recipe.train.seed)  # new adapters are the same on every rank, in whatever way the weights were loaded
    model = choose_parameters(model, recipe.parts)
    if not ranks.uses_deepspeed(recipe.train.zero_stage, recipe.train.requires_deepspeed):
        upcast_trainable_to_fp32(model)
    reducers = recipe.reduction.reducers()
    attached = attach(model, reducers, output="compact") if reducers else None
    attach_dummy_image(model, dummy_inputs(prepared.processor))
    told = _told(prepared) if ranks.rank == 0 else []
    trainer = DartTrainer(
        model,
        arguments,
        recipe,
        prepared.feed,
        attached,
        prepared.processor,
        prepared.validation,
        prepared.start_step,
        told,
    )
    if prepared.scenes:
        trainer.add_callback(Overlays(trainer, prepared.scenes, told))
    return trainer


def _told(prepared: Prepared) -> list[TrainerCallback]:
    """On the first rank alone: what is made here rewrites files as it is made."""
    recipe, folder = prepared.recipe, Path(prepared.recipe.train.output_dir)
    return [MetricsFile(folder, prepared.start_step), ProgressLine(), *trackers(recipe, folder)]
