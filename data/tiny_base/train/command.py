"""All stages of a recipe, one after the other; then the model is evaluated and its card is written."""

from __future__ import annotations

from pathlib import Path

from transformers import LlavaForConditionalGeneration, set_seed

from dart_train.models.processors import load_processor

from .card import write_card
from .loop import train_stage
from .measure import measure, score_table
from .model import TrainingBundle
from .processor import make_processor
from .recipe import BaseRecipe, load_base
from .stages import StageLosses

__all__ = ["evaluate", "load_base", "train"]


def train(recipe: BaseRecipe, until: str | None = None) -> None:
    """Train all stages, or those up to `until`, and save the model and its processor in `output_dir`."""
    set_seed(recipe.seed)
    bundle = TrainingBundle(recipe)
    processor = make_processor(bundle.model.config.vision_config.image_size, recipe.vision.patch)
    losses, offset = StageLosses(recipe, bundle, processor.image_processor), 0
    for name, stage in recipe.stages.named().items():
        train_stage(name, stage, recipe, bundle, losses, offset)
        offset += stage.steps * stage.batch_size
        if name == until:
            break
    bundle.model.save_pretrained(recipe.output_dir)
    processor.save_pretrained(recipe.output_dir)


def evaluate(recipe: BaseRecipe, source: str) -> None:
    """Load the model in `output_dir` as users do, evaluate it, write its card and print the scores."""
    model = LlavaForConditionalGeneration.from_pretrained(recipe.output_dir)
    scores = measure(model, load_processor(recipe.output_dir), recipe)
    write_card(Path(recipe.output_dir), recipe, scores, model, source)
    print(score_table(scores))
