"""The card that lies beside the weights: what the model is, what it gets right, how it is made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.shapes import LEVELS

from .measure import Scores, table
from .recipe import Base

CARD = """# A small LLaVA for drawn shapes

`LlavaForConditionalGeneration`: a CLIP tower of {vision.layers} layers x {vision.width}, a projector, and a Llama of
{language.layers} layers x {language.width}; {millions:.2f} million parameters, {tokens} visual tokens a picture of
{size} x {size} pixels. It was trained from random weights on scenes of `data/shapes.py` (difficulty
`{pictures.difficulty}`, split `train`) and knows nothing else: no other pictures, no other words. It is a base to
try visual token reduction on, small enough for a CPU.

```python
from dart_train import DART, attach
from dart_train.models.processors import load_processor
from transformers import LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained("data/tiny_base")
processor = load_processor("data/tiny_base")
with attach(model, DART(keep=0.111, layer=2)):
    ...  # generate with a ninth of the visual tokens from layer 2 on
```

## How it learned

    {command}

{stages}

{blind}

## What it gets right

Percent of answers that are right in full (exact match, greedy), with Wilson's 95% intervals, on questions of the
split `{measure.split}`, whose scenes are in no other split. In training nothing was ever dropped between layers; the
columns behind `full` are DART, training-free, at layer K = {measure.layer}.

{table}
"""

BLIND = """\
One constraint is a decision of ours: while the language model learns alone, text does not look at the picture
in its first {count} layers (an attention mask, there and then only), so that the question is read in those and the
picture behind them, as large models do. A model of this size can answer within its first two layers, and tokens
dropped behind them would cost it nothing. The joint stage has no such mask, and the finished model is a plain
LLaVA."""

TOLD = {
    "vision": "the tower alone names each patch: item, colour, character, place, and whether it stands for its item",
    "language": "the language model alone answers, symbols in place of the picture's patches; keys start as queries",
    "projector": "from what the tower sees to those symbols, tower and language model frozen",
    "joint": "all weights, from pictures to answers",
}


def write_card(folder: Path, recipe: Base, scores: Scores, model: Any, source: str) -> None:
    """README.md, and the same figures as measured.json."""
    (folder / "README.md").write_text(_card(recipe, scores, model, source), encoding="utf-8")
    plain = {
        str(keep): {kind: {"right": one.right, "asked": one.asked} for kind, one in kinds.items()}
        for keep, kinds in scores.items()
    }
    (folder / "measured.json").write_text(json.dumps(plain, indent=1) + "\n")


def _card(recipe: Base, scores: Scores, model: Any, source: str) -> str:
    blind = max(stage.blind_layers for stage in recipe.stages.named().values())
    return CARD.format(
        vision=recipe.vision,
        language=recipe.language,
        pictures=recipe.pictures,
        measure=recipe.measure,
        millions=sum(weight.numel() for weight in model.parameters()) / 1e6,
        tokens=model.config.image_seq_length,
        size=LEVELS[recipe.pictures.difficulty].size,
        command=f"python -m dart_train base {source} output_dir=data/tiny_base",
        stages="\n".join(_told(recipe)),
        blind=BLIND.format(count=blind) if blind else "",
        table=table(scores),
    )


def _told(recipe: Base) -> list[str]:
    return [
        f"{number}. `{name}`: {TOLD[name]} ({stage.steps} steps of {stage.batch_size} pictures, learning rate "
        f"{stage.learning_rate:g})"
        for number, (name, stage) in enumerate(recipe.stages.named().items(), 1)
    ]
