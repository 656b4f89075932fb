"""`python -m dart_train base recipe.yaml key=value ...`: train the small base model from nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..base.recipe import Base, load_base


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    recipe = load_base(options.recipe, options.overrides)
    try:
        import data.shapes  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}: the pictures are drawn by data/shapes.py; start this in the checkout") from error
    train(recipe, options.until)
    if options.until is None:
        judge(recipe, options.recipe)
    return 0


def train(recipe: Base, until: str | None = None) -> None:
    """All stages, or those up to `until`; the model and its processor as they then are, in `output_dir`."""
    from transformers import set_seed

    from ..base.learn import learn
    from ..base.model import TrainingBundle
    from ..base.processor import processor
    from ..base.stages import Stages

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


def judge(recipe: Base, source: str) -> None:
    """Measures what lies in `output_dir`, as anybody would load it, and writes the card."""
    from transformers import LlavaForConditionalGeneration

    from ..base.card import write_card
    from ..base.measure import measure, table
    from ..models.processors import load_processor

    model = LlavaForConditionalGeneration.from_pretrained(recipe.output_dir)
    scores = measure(model, load_processor(recipe.output_dir), recipe)
    write_card(Path(recipe.output_dir), recipe, scores, model, source)
    print(table(scores))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dart_train base", description="Train a small base model on drawn shapes, from nothing."
    )
    parser.add_argument("recipe", help="recipe.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as stages.joint.steps=100")
    parser.add_argument("--until", choices=("vision", "language", "projector", "joint"), help="and no further")
    return parser
