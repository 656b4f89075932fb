"""The model from nothing: download, convert, assemble, and put in what was trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from dart_train.models.processors import load_processor

from .assemble import assemble
from .convert import check_readers, convert_language, convert_vision
from .parts import fetch_part

TRAINED = Path(__file__).with_name("weights")
PROJECTOR = "projector.safetensors"


def assembled(
    parts: Path, feature_layers: list[int], size: int
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model with a random projector; downloaded and converted once, then read from `parts`."""
    folder = parts / f"pretrained_{size}_{'_'.join(str(-layer) for layer in feature_layers)}"
    if not folder.exists():
        check_readers()
        language, tokenizer = convert_language(fetch_part("language", parts))
        vision = convert_vision(fetch_part("vision", parts))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the projector: the same whichever command makes this folder
            model, processor = assemble(language, tokenizer, vision, feature_layers, size)
        unfinished = folder.with_name(folder.name + ".writing")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        unfinished.rename(folder)
    return LlavaForConditionalGeneration.from_pretrained(folder), load_processor(str(folder))


def with_trained(model: LlavaForConditionalGeneration, trained: Path = TRAINED) -> LlavaForConditionalGeneration:
    """The same model with the trained projector, and the adapter merged into the language model's weights."""
    if not (trained / PROJECTOR).exists():
        raise ValueError(
            f"{trained} has no {PROJECTOR}: train first (python -m data.real_base train), or build with --untrained"
        )
    state = {name: weight.float() for name, weight in load_file(trained / PROJECTOR).items()}
    model.model.multi_modal_projector.load_state_dict(state)
    adapted = PeftModel.from_pretrained(model.model.language_model, str(trained))
    model.model.language_model = adapted.merge_and_unload()
    return model.eval()
