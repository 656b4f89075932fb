"""The page next to the weights: what the model is, how it was trained, what it gets right."""

from __future__ import annotations

from pathlib import Path

from dart_train.common.tables import markdown_table

from ..parts import PARTS
from .recipe import LanguageStage, RealRecipe
from .scores import Scores, percent

CARD = """# A LLaVA of pretrained parts

`LlavaForConditionalGeneration` of 157 million parameters that names things and reads texts in images of {size} x {size}
pixels ({tokens} visual tokens). Two parts were trained by others and come from packages of the Python index:

{parts}

Neither had seen the other. The projector between them, and an adapter (LoRA, rank {rank}) of the language model, were
trained here on `data.things`: scenes of 4 to 12 emoji with labels, price tags and notes. These two files are all that
this folder contains; `config.json` and the other weights are made by

    pip install .[real]
    python -m data.real_base build --out runs/real_base/model   # downloads 180 MB, about a minute

```python
from dart_train import DART, attach, load_processor
from transformers import LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained("runs/real_base/model")
processor = load_processor("runs/real_base/model")
with attach(model, DART(keep=0.111, layer=2)):
    ...  # generate with 28 of the 256 visual tokens from layer 2 on
```

## Training

    python -m data.real_base train

{stages}

The vision tower is frozen; the projector reads layers {layers} of its 12: texts are told apart best by layer 5, things
by layer 8, and the last layers were tuned by the package's author to predict salient regions. In the first stage the
targets are the language model's own input embeddings: of the word that names what a patch shows (zero for background),
plus {position:g} times those of *top*, *middle*, *bottom* and *left*, *center*, *right*, mixed by where the patch is.
How the settings were found, what the run cost, and accuracy with fewer tokens:
[data/results/real](../../results/real/README.md).

## Accuracy

Exact match in percent at full tokens in {precision}, with 95% Wilson intervals, on scenes of the split `{split}`
({images} a column, at most {each} questions of each kind). *unseen*: things that no training image shows. *other
style*: the things of training, drawn by others. *without the image*: to all questions of *seen* the most frequent
answer of their kind. The bar was set before training: at least 80% of seen things named (`what`, `seen`).

{table}
"""


def write_card(recipe: RealRecipe, scores: Scores) -> str:
    text = CARD.format(
        size=recipe.pictures.size,
        tokens=(recipe.pictures.size // 14) ** 2,
        parts="\n".join(f"- `{part.requirement}` ({part.licence}): {part.contents}" for part in PARTS.values()),
        precision=recipe.precision,
        rank=recipe.adapter.rank,
        layers=" and ".join(str(13 + layer) for layer in recipe.pictures.feature_layers),
        stages="\n".join(_describe(recipe)),
        position=recipe.stages.projector.position,
        split=recipe.measure.split,
        images=recipe.measure.images,
        each=recipe.measure.each,
        table=score_table(scores),
    )
    (Path(recipe.output_dir) / "README.md").write_text(text, encoding="utf-8")
    return score_table(scores)


def _describe(recipe: RealRecipe) -> list[str]:
    first = recipe.stages.projector
    lines = [
        f"1. `projector`: the projector alone, from patches to words ({first.steps} steps of {first.batch_size} "
        f"images, learning rate {first.learning_rate:g})"
    ]
    for number, name in enumerate(("few", "all"), 2):
        stage: LanguageStage = getattr(recipe.stages, name)
        lines.append(
            f"{number}. `{name}`: projector and adapter, on up to {stage.naming + stage.others} questions an image, "
            f"with {stage.patches} of its patches ({stage.steps} steps of {stage.batch_size} images, learning rates "
            f"{stage.projector_learning_rate:g} and {stage.learning_rate:g})"
        )
    return lines


def score_table(scores: Scores) -> str:
    kinds = list(scores["seen"])
    rows = [[kind, *(_cell(scores[group], kind) for group in scores)] for kind in kinds]
    return markdown_table(["kind", *scores], rows)


def _cell(found: dict[str, tuple[int, int]], kind: str) -> str:
    return f"{percent(found[kind])}, n = {found[kind][1]}" if kind in found else "-"
