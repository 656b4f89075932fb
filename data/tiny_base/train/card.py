"""The model card next to the weights: what the model is, what it gets right, how it is trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.shapes import LEVELS

from .measure import Scores, score_table
from .recipe import BaseRecipe

CARD = """# A small LLaVA for drawn shapes

`LlavaForConditionalGeneration`: a CLIP tower of {vision.layers} layers x {vision.width}, a projector, and a Llama of
{language.layers} layers x {language.width}; {millions:.2f} million parameters, {tokens} visual tokens per image of
{size} x {size} pixels. It was trained from random weights on scenes of `data/shapes.py` (difficulty
`{pictures.difficulty}`, split `train`) and nothing else: it has no other images and no other words. It is a base model
for visual token reduction that is small enough for a CPU.

```python
from dart_train import DART, attach, load_processor
from transformers import LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained("data/tiny_base")
processor = load_processor("data/tiny_base")
with attach(model, DART(keep=0.111, layer=2)):
    ...  # generate with a ninth of the visual tokens from layer 2 on
```

## Training

    {command}

{stages}

{blind}

## Accuracy

Exact match in percent, greedy decoding, with 95% Wilson intervals, on questions of the split `{measure.split}`, whose
scenes are in no other split. Nothing was dropped in training. The columns after `full` are DART without training, at
layer K = {measure.layer}.

{table}
"""

BLIND = """\
One constraint is deliberate. While the language model is trained alone, text does not attend to the image in its first
{count} layers (an attention mask, only in this stage). These layers read the question and the later ones read the
image, as in large models. A model of this size could answer within its first two layers, and tokens dropped after them
would cost nothing. The joint stage has no such mask, and the finished model is a plain LLaVA."""

DESCRIPTIONS = {
    "vision": "the vision tower alone classifies each patch: item, colour, character, place, and whether it "
    "represents its item",
    "language": "the language model alone answers, with symbols in place of the patches; keys start as queries",
    "projector": "from the features of the tower to those symbols, tower and language model frozen",
    "joint": "all weights, from images to answers",
}


def write_card(folder: Path, recipe: BaseRecipe, scores: Scores, model: Any, source: str) -> None:
    """README.md, and the same figures as measured.json."""
    (folder / "README.md").write_text(_card(recipe, scores, model, source), encoding="utf-8")
    plain = {
        str(keep): {kind: {"right": score.right, "asked": score.questions} for kind, score in kinds.items()}
        for keep, kinds in scores.items()
    }
    (folder / "measured.json").write_text(json.dumps(plain, indent=1) + "\n")


def _card(recipe: BaseRecipe, scores: Scores, model: Any, source: str) -> str:
    blind_layers = max(stage.blind_layers for stage in recipe.stages.named().values())
    return CARD.format(
        vision=recipe.vision,
        language=recipe.language,
        pictures=recipe.pictures,
        measure=recipe.measure,
        millions=sum(weight.numel() for weight in model.parameters()) / 1e6,
        tokens=model.config.image_seq_length,
        size=LEVELS[recipe.pictures.difficulty].size,
        command=f"python -m dart_train base {source} output_dir=data/tiny_base",
        stages="\n".join(_describe_stages(recipe)),
        blind=BLIND.format(count=blind_layers) if blind_layers else "",
        table=score_table(scores),
    )


def _describe_stages(recipe: BaseRecipe) -> list[str]:
    return [
        f"{number}. `{name}`: {DESCRIPTIONS[name]} ({stage.steps} steps of {stage.batch_size} images, learning rate "
        f"{stage.learning_rate:g})"
        for number, (name, stage) in enumerate(recipe.stages.named().items(), 1)
    ]
