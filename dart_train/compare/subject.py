"""A checkpoint that is asked: loaded once, its reductions put on and taken off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attach import Attached, attach
from ..attach.tower import interpolated_positions
from ..checkpoint import load
from ..pixels import fewer_pixels
from ..pixels.families import Square, shrink_of
from ..recipe import Recipe
from ..reducers import FewerPixels
from .cells import Cell
from .prompts import Prompts
from .ticks import Ticks


@dataclass
class Asked:
    """A subject as one cell asks it."""

    model: Any
    prompts: Prompts
    attached: Attached | None

    def generate(self, batch: Mapping[str, Any], most: int, least: int = 0, ticks: Ticks | None = None) -> Tensor:
        """[B, new] what the model writes, greedily. ticks: notes when each token came."""
        made = self.model.generate(
            **batch,
            stopping_criteria=None if ticks is None else [ticks],
            max_new_tokens=most,
            min_new_tokens=least or None,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=_pad(self.prompts.processor, self.model),
        )
        written: Tensor = made[:, batch["input_ids"].shape[1] :]
        return written


class Subject:
    def __init__(self, recipe: Recipe, path: str, device: torch.device) -> None:
        say = recipe.model
        loaded = load(
            path,
            reducer=None,
            dtype=None if say.dtype == "auto" else getattr(torch, say.dtype),
            attn_implementation=say.attn_implementation,
            device=device,
            revision=say.revision if path == say.path else None,
            trust_remote_code=say.trust_remote_code,
        )
        self.model, self.processor, self.device = loaded.model, loaded.processor, device
        self.prompts = Prompts(self.processor)

    @contextmanager
    def at(self, cell: Cell) -> Iterator[Asked]:
        reducer = cell.reducer
        if not cell.stages:
            yield Asked(self.model, self.prompts, None)
            return
        with ExitStack() as stack:
            if isinstance(reducer, FewerPixels):
                if isinstance(shrink_of(self.processor), Square):
                    stack.enter_context(interpolated_positions(self.model))
                yield Asked(self.model, Prompts(fewer_pixels(self.processor, reducer.keep)), None)
                return
            attached = stack.enter_context(attach(self.model, cell.stages))
            yield Asked(self.model, self.prompts, attached)

    def moved(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """To the device, pictures in the dtype of the weights."""
        dtype = self.model.dtype
        return {
            name: value.to(self.device, dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in batch.items()
        }


def _pad(processor: Any, model: Any) -> int | None:
    tokenizer = processor.tokenizer
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, model.generation_config.eos_token_id)
    number = next((each for each in known if each is not None), None)
    return number[0] if isinstance(number, list) else number
