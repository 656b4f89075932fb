"""Every `train.overlay_steps` steps, images of a few validation samples with the tokens that the model keeps at the
served budget: written to the run folder, and sent to W&B and TensorBoard.

    overlays/step-000100/sample-0.png

All ranks run the same forwards together, because ZeRO-3 needs it; the first rank draws. The samples are read, encoded
and laid out when the run is prepared, so that a problem with an image is found before the training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import TrainerCallback

from ..common.trackers import Tracker
from ..config import Recipe
from ..data.collator import Collator
from ..data.dataset import RowDataset
from ..data.encoder import Encoded
from ..hooks import Attached
from ..models.families import TokenPlace
from ..models.token_places import locate_tokens
from ..visualization import choice_of_row, overlay_panel, side_by_side
from ..visualization.draw import legend
from .objective import StepBudgets
from .validation import EvalForward, EvalMode, Validation

log = logging.getLogger(__name__)

SAMPLES = 4
SEARCHED_ROWS = 64  # for samples with images
WIDTH = 336


@dataclass(frozen=True)
class OverlaySample:
    """One validation sample: its batch, its images, and the place of each visual token in them."""

    batch: dict[str, Tensor]
    images: list[Image.Image]
    places: list[TokenPlace]
    question: str


def overlay_samples(recipe: Recipe, validation: Validation | None, processor: Any, model: Any) -> list[OverlaySample]:
    """The first validation samples with images, the same on every rank. model: with or without weights. Raises
    ValueError if overlays are requested and there is no such sample."""
    if recipe.train.overlay_steps is None or not recipe.reduction.reducers() or validation is None:
        return []
    rows: Any = validation.batches.dataset
    collator, found = Collator(processor, recipe.data.pad_to_multiple_of), list[OverlaySample]()
    for number in range(min(len(rows), SEARCHED_ROWS)):
        sample = _sample(rows, number, collator, processor, model)
        if sample is not None:
            found.append(sample)
        if len(found) == SAMPLES:
            break
    if not found:
        raise ValueError(
            f"train.overlay_steps: none of the first {SEARCHED_ROWS} rows of data.validation has an image; leave it "
            "out, or validate on rows with images"
        )
    return found


def _sample(rows: RowDataset, number: int, collator: Collator, processor: Any, model: Any) -> OverlaySample | None:
    encoded = rows[number]
    if not isinstance(encoded, Encoded):
        return None
    source, index = rows.locate(number)
    sample = source.sample(source.rows[index], index)
    images = [source.store.open(ref) for ref in sample.images]
    if not images or sample.videos:
        return None
    batch = collator([encoded])
    question = " ".join(text for turn in sample.turns if turn.role == "user" for text in turn.texts)
    return OverlaySample(batch, images, locate_tokens(model, processor, batch, [images])[0], question.strip())


class Overlays(TrainerCallback):
    """On every rank. reporters: the other callbacks of the first rank; the trackers among them receive the images."""

    def __init__(
        self,
        recipe: Recipe,
        samples: Sequence[OverlaySample],
        attached: Attached,
        budgets: StepBudgets,
        eval_mode: EvalMode,
        tokenizer: Any,
        reporters: Sequence[TrainerCallback] = (),
    ) -> None:
        self.every = recipe.train.overlay_steps
        self.folder = Path(recipe.train.output_dir) / "overlays"
        self.samples, self.attached, self.budgets, self.tokenizer = samples, attached, budgets, tokenizer
        self.eval_mode = eval_mode
        self.trackers = [callback for callback in reporters if isinstance(callback, Tracker)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is None or state.global_step % self.every:
            return
        with self.eval_mode() as forward, self.budgets.temporarily(*self.budgets.served):
            drawn = [self._draw(forward, sample, state.is_world_process_zero) for sample in self.samples]
        found = [each for each in drawn if each is not None]
        if found:
            images, captions = [image for image, _ in found], [caption for _, caption in found]
            _write(self.folder / f"step-{state.global_step:06d}", images)
            for tracker in self.trackers:
                tracker.show("overlays", images, captions, state.global_step)

    def _draw(self, forward: EvalForward, sample: OverlaySample, draw: bool) -> tuple[Image.Image, str] | None:
        """The image and its caption."""
        forward(sample.batch)
        last = self.attached.last
        if not draw or last is None:
            return None
        choice = choice_of_row(last, 0, sample.batch["input_ids"][0], self.tokenizer)
        title = " + ".join(type(reducer).name or type(reducer).__name__ for reducer in self.attached.reducers)
        panel = overlay_panel(sample.images, sample.places, choice, title, WIDTH)
        image = side_by_side([panel], sample.question, bottom=legend(scorer=choice.scored is not None))
        before, after = last.visual_before[0], last.visual_after[0]
        return image, f"{title}, {after} of {before} visual tokens kept: {sample.question}"


def _write(folder: Path, images: Sequence[Image.Image]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            image.save(folder / f"sample-{number}.png")
    except OSError as error:  # a full disk of the first rank alone: not a reason to end the run
        log.warning("%s: the overlays could not be written: %s", folder, error)
