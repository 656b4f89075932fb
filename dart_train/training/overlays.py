"""Every N steps a few validation samples, with what the model keeps of them at the budget that is served: written to
the run folder, and shown to W&B and TensorBoard.

    overlays/step-000100/sample-0.png

All ranks run the same forwards together, as ZeRO-3 needs it; the first draws. What could go wrong with a picture goes
wrong before the run: the samples are read, encoded and laid out on every rank when it is prepared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers import TrainerCallback

from ..common.trackers import TensorBoard, Wandb
from ..config import Recipe
from ..data.collator import Collator
from ..data.dataset import RowDataset
from ..data.encoder import Encoded
from ..models.families import TokenPlace
from ..models.token_places import locate_tokens
from ..visualization import choice_of_row, overlay_panel, side_by_side
from .objective import tell

if TYPE_CHECKING:
    from .data_feed import Validation
    from .trainer import DartTrainer

log = logging.getLogger(__name__)

SAMPLES = 4
LOOKED_AT = 64  # rows, in search of some with pictures
WIDTH = 336


@dataclass(frozen=True)
class Scene:
    """One validation sample, ready to be looked at."""

    batch: dict[str, Tensor]
    pictures: list[Image.Image]
    places: list[TokenPlace]
    question: str


def scenes(recipe: Recipe, validation: Validation | None, processor: Any, bones: Any) -> list[Scene]:
    """The first validation samples with pictures, the same on every rank. bones: the model, with or without weights.
    Raises ValueError where pictures are wanted and none can be drawn."""
    if recipe.train.overlay_steps is None or not recipe.reduction.reducers() or validation is None:
        return []
    rows: Any = validation.batches.dataset
    collator, found = Collator(processor, recipe.data.pad_to_multiple_of), list[Scene]()
    for number in range(min(len(rows), LOOKED_AT)):
        scene = _scene(rows, number, collator, processor, bones)
        if scene is not None:
            found.append(scene)
        if len(found) == SAMPLES:
            break
    if not found:
        raise ValueError(
            f"train.overlay_steps: none of the first {LOOKED_AT} rows of data.validation has a picture to draw on; "
            "leave it out, or validate on rows with pictures"
        )
    return found


def _scene(rows: RowDataset, number: int, collator: Collator, processor: Any, bones: Any) -> Scene | None:
    encoded = rows[number]
    if not isinstance(encoded, Encoded):
        return None
    source, index = rows.locate(number)
    sample = source.sample(source.rows[index], index)
    pictures = [source.store.open(ref) for ref in sample.images]
    if not pictures:
        return None
    batch = collator([encoded])
    question = " ".join(text for turn in sample.turns if turn.role == "user" for text in turn.texts)
    return Scene(batch, pictures, locate_tokens(bones, processor, batch, [pictures])[0], question.strip())


class Overlays(TrainerCallback):
    """On every rank. told: the callbacks of the first rank; trackers among them are shown the pictures."""

    def __init__(self, trainer: DartTrainer, scenes: Sequence[Scene], told: Sequence[TrainerCallback] = ()) -> None:
        self.trainer, self.scenes = trainer, scenes
        self.shown = [callback for callback in told if isinstance(callback, Wandb | TensorBoard)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        every = trainer.recipe.train.overlay_steps
        if trainer.attached is None or every is None or state.global_step % every:
            return
        folder = Path(trainer.recipe.train.output_dir) / "overlays" / f"step-{state.global_step:06d}"
        model, drawn = trainer.model_wrapped, list[Image.Image]()
        model.eval()
        try:
            for scene in self.scenes:
                page = self._look(model, scene, state.is_world_process_zero)
                drawn += [] if page is None else [page]
        finally:
            model.train()
        if drawn:
            _write(folder, drawn)
            for tracker in self.shown:
                tracker.show("overlays", drawn, state.global_step)

    @torch.no_grad()
    def _look(self, model: Any, scene: Scene, draw: bool) -> Image.Image | None:
        trainer = self.trainer
        assert trainer.attached is not None
        with trainer.budgets.set_to(*trainer.budgets.served):
            tell(model, trainer.attached, trainer._prepare_inputs(dict(scene.batch)), scene.batch)
            last = trainer.attached.last
        if not draw or last is None:
            return None
        choice = choice_of_row(last, 0, scene.batch["input_ids"][0], trainer.processing_class.tokenizer)
        title = " + ".join(type(reducer).name or type(reducer).__name__ for reducer in trainer.attached.reducers)
        return side_by_side([overlay_panel(scene.pictures, scene.places, choice, title, WIDTH)], scene.question)


def _write(folder: Path, pages: Sequence[Image.Image]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, page in enumerate(pages):
            page.save(folder / f"sample-{number}.png")
    except OSError as error:  # a full disk: no reason to end a run, and the first rank's alone
        log.warning("%s: the pictures could not be written: %s", folder, error)
