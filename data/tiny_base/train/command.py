"""All stages of a recipe, one after the other; then the model is measured and its card is written."""

from __future__ import annotations

from pathlib import Path

from transformers import LlavaForConditionalGeneration, set_seed

from dart_train.models.processors import load_processor

from .card import write_card
from .loop import learn
from .measure import measure, table
from .model import TrainingBundle
from .processor import processor
from .recipe import Base, load_base
from .stages import Stages

__all__ = ["evaluate", "load_base", "train"]


def train(recipe: Base, until: str | None = None) -> None:
    """All stages, or those up to `until`; the model and its processor as they then are, in `output_dir`."""
    set_seed(recipe.seed)
    workshop = TrainingBundle(recipe)
    made = processor(workshop.model.config.vision_config.image_size, recipe.vision.patch)
    stages, offset = Stages(recipe, workshop, made.image_processor), 0
    for name, stage in recipe.stages.named().items():
        learn(name, stage, recipe, workshop, stages, offset)
        offset += stage.steps * stage.batch_size
        if name == until:
            break
    workshop.model.save_pretrained(recipe.output_dir)
    made.save_pretrained(recipe.output_dir)


def evaluate(recipe: Base, source: str) -> None:
    """Measure the model in `output_dir`, as users would load it, and write its card."""
    model = LlavaForConditionalGeneration.from_pretrained(recipe.output_dir)
    scores = measure(model, load_processor(recipe.output_dir), recipe)
    write_card(Path(recipe.output_dir), recipe, scores, model, source)
    print(table(scores))
