"""The train verb: a recipe becomes a run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..attach import attach
from ..attach.dummy_image import attach_dummy_image
from ..checkpoint import newest_whole, steps_of, sweep
from ..data.dummy import dummy_inputs
from ..processors import load_processor
from ..recipe import Recipe
from .arguments import forget_last_run, training_arguments
from .feed import Feed
from .loading import keep_masters, load_model, skeleton
from .log import MetricsFile, ProgressLine, trackers
from .parts import choose_parameters
from .ranks import Ranks, part
from .record import write_record
from .resume import start_from
from .trainer import DartTrainer
from .validate import Validation
from .zero import deepspeed_config


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves."""

    run: Path
    checkpoint: Path | None  # the newest whole one
    steps: int


@dataclass(frozen=True)
class Prepared:
    """All that is known of a run before a weight is read."""

    recipe: Recipe
    ranks: Ranks
    processor: Any
    feed: Feed
    validation: Validation | None
    skeleton: Any
    resume: Path | None

    @property
    def start_step(self) -> int:
        return steps_of(self.resume) if self.resume else 0


def prepare(recipe: Recipe, ranks: Ranks) -> Prepared:
    """Everything that can be wrong and is cheap to find out; raises ValueError."""
    wrong = [*ranks.problems(recipe.train), *_unavailable(recipe)]
    if wrong:
        raise ValueError("\n".join(wrong))
    deepspeed_config(recipe.train)
    forget_last_run()
    bones = skeleton(recipe)
    processor = load_processor(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
    feed, validation = Feed.open(recipe, ranks, processor), Validation.open(recipe, ranks, processor)
    resume, passed = start_from(recipe, ranks)
    for damaged in passed:
        if ranks.rank == 0:
            print(f"train: {damaged}", file=sys.stderr)
    return Prepared(recipe, ranks, processor, feed, validation, bones, resume)


def _unavailable(recipe: Recipe) -> list[str]:
    """What the recipe's words allow and this verb cannot do: refused rather than passed over."""
    wrong = []
    if recipe.train.on_nan == "skip":
        wrong.append(
            "train.on_nan: skip cannot be done, a step that is no number has no gradient to go on with; use stop"
        )
    if recipe.train.overlay_steps is not None:
        wrong.append("train.overlay_steps: pictures are not drawn during training; leave it out")
    return wrong


def run(recipe: Recipe) -> Outcome:
    ranks = Ranks.read()
    prepared = prepare(recipe, ranks)
    met = ranks.meet(recipe.train)
    try:
        trainer = build(prepared)
        trainer.train(resume_from_checkpoint=None if prepared.resume is None else str(prepared.resume))
        return Outcome(trainer.saver.run, newest_whole(trainer.saver.run)[0], trainer.state.global_step)
    finally:
        if met:
            part()


def build(prepared: Prepared) -> DartTrainer:
    """The trainer, ready to start. The order matters: arguments before weights (ZeRO-3 reads them while loading),
    parts before the reduction, all of it before anything wraps the model."""
    recipe, ranks, folder = prepared.recipe, prepared.ranks, Path(prepared.recipe.train.output_dir)
    if ranks.rank == 0:
        write_record(folder, recipe)
        sweep(folder)
    arguments = training_arguments(recipe, ranks, prepared.feed.steps)
    model = load_model(recipe)
    set_seed(recipe.train.seed)  # new adapters are the same on every rank, in whatever way the weights were loaded
    model = choose_parameters(model, recipe.parts)
    if not ranks.uses_deepspeed(recipe.train):
        keep_masters(model)
    reducers = recipe.reduction.reducers()
    attached = attach(model, reducers, output="compact") if reducers else None
    attach_dummy_image(model, dummy_inputs(prepared.processor))
    callbacks = [MetricsFile(folder, prepared.start_step), ProgressLine(), *trackers(recipe, folder)]
    return DartTrainer(
        model,
        arguments,
        recipe,
        prepared.feed,
        attached,
        prepared.processor,
        prepared.validation,
        prepared.start_step,
        callbacks if ranks.rank == 0 else [],
    )
