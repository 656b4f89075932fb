"""scorer.safetensors: the weights of trained scorers, next to reducer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..models.structure import SCORERS, unwrap_model
from ..reduction.scorer import TokenScorer

SCORER_FILE = "scorer.safetensors"
SCORER_FORMAT = 1  # raise it when the file changes in a way that older readers would misread


def split_state_dict(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the model's tensors, the scorers' by the names that the file has); names may be those inside PEFT."""
    marker = f"{SCORERS}."
    own = {name: tensor for name, tensor in state.items() if marker not in name}
    return own, {name.split(marker, 1)[1]: tensor for name, tensor in state.items() if marker in name}


def write_scorers(folder: Path, scorers: Mapping[str, Tensor], model: Any) -> None:
    """scorers: as `split_state_dict` returns them; model: whose states they look at."""
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in scorers.items()}
    save_file(tensors, folder / SCORER_FILE, {"format": str(SCORER_FORMAT), "model": json.dumps(_describe(model))})


def check_scorers(folder: Path, scorers: Mapping[int, nn.Module], model: Any) -> None:
    """Raises a ValueError where the file does not fit the scorers (which may be on the meta device)."""
    path = folder / SCORER_FILE
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: the method was trained with scorers, and their weights are in this file; copy it from "
            "the run or the export, or load with another reducer"
        )
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") != str(SCORER_FORMAT):
        raise ValueError(f"{path}: format {metadata.get('format')!r}, expected {SCORER_FORMAT}; update dart_train")
    trained_on, given = json.loads(metadata["model"]), _describe(model)
    if trained_on != given:
        raise ValueError(f"{path} was trained on another model: {_words(trained_on)}; this model has {_words(given)}")
    layers = sorted({name.split(".")[0].removeprefix("layer_") for name in saved})
    for layer, scorer in scorers.items():
        expected = {f"layer_{layer}.{name}": tuple(tensor.shape) for name, tensor in scorer.state_dict().items()}
        found = {name: shape for name, shape in saved.items() if name.startswith(f"layer_{layer}.")}
        if not found:
            raise ValueError(f"{path} has scorers of layers {', '.join(layers)}, not of layer {layer}")
        if found != expected:
            raise ValueError(
                f"{path}: the scorer of layer {layer} has other weights than the reduction expects (its guidance?); "
                "load it with the options it was trained with"
            )


def load_scorers(folder: Path, model: Any) -> None:
    """Puts the file's scorers on the model as its submodule, where `attach` finds them; without a file, none."""
    if not (folder / SCORER_FILE).is_file():
        return
    found, top = nn.ModuleDict(), unwrap_model(model)
    tensors = load_file(folder / SCORER_FILE, device=str(model.device))
    for layer in dict.fromkeys(name.split(".")[0] for name in tensors):
        found[layer] = TokenScorer.from_state(
            {name.removeprefix(f"{layer}."): tensor for name, tensor in tensors.items() if name.startswith(f"{layer}.")}
        )
    top.add_module(SCORERS, found)


def _describe(model: Any) -> dict[str, Any]:
    """The properties in which two models must agree to share a scorer."""
    text = model.config.get_text_config()
    names = ("hidden_size", "num_hidden_layers", "vocab_size")
    return {"model_type": model.config.model_type, **{name: getattr(text, name, None) for name in names}}


def _words(description: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in description.items())
