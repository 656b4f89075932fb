"""Features of the frozen vision tower, computed once and kept on disk as float16."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.things import draw, scene

from .recipe import RealRecipe

BLOCK = 8  # images per forward


@dataclass(frozen=True)
class FeatureStore:
    """[images, patches, width] of the training scenes, and the mean and deviation of each feature."""

    array: np.ndarray
    mean: Tensor
    deviation: Tensor

    def batch(self, indices: list[int]) -> Tensor:
        """[B, patches, width], standardised."""
        return (torch.from_numpy(self.array[indices].astype(np.float32)) - self.mean) / self.deviation


def tower_features(model: Any, processor: Any, images: list[Any]) -> Tensor:
    """[B, patches, width] of the layers that the projector reads, in float32. Later layers are not computed."""
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    tower = model.model.vision_tower
    wanted = [len(tower.encoder.layer) + 1 + layer for layer in model.config.vision_feature_layer]
    with torch.no_grad():
        states = [tower.embeddings(pixels.to(tower.dtype))]
        for layer in tower.encoder.layer[: max(wanted)]:
            states.append(layer(states[-1]))
    return torch.cat([states[number][:, 1:] for number in wanted], dim=-1).float()


def compute_features(recipe: RealRecipe, model: Any, processor: Any) -> FeatureStore:
    """Of all training scenes; a new start continues where an interrupted one ended."""
    folder = Path(recipe.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    data, state = folder / "features.f16", folder / "features.json"
    side = recipe.pictures.size // model.config.vision_config.patch_size
    layers = recipe.pictures.feature_layers
    shape = (recipe.pictures.train, side * side, model.config.vision_config.hidden_size * len(layers))
    wanted = {"seed": recipe.pictures.seed, "layers": layers, "shape": list(shape[1:])}
    done = 0
    if state.exists():
        saved = json.loads(state.read_text())
        if {name: saved[name] for name in wanted} != wanted:
            raise ValueError(f"{state} is of other images or other layers: set work_dir to another folder")
        done = saved["done"]
    with data.open("ab") as file:
        file.truncate(max(done, recipe.pictures.train) * shape[1] * shape[2] * 2)
    array: Any = np.memmap(data, np.float16, "r+", shape=shape)
    bar = tqdm(total=recipe.pictures.train, initial=min(done, shape[0]), desc="features", unit=" images", mininterval=2)
    while done < recipe.pictures.train:
        last = min(done + BLOCK, recipe.pictures.train)
        images = [draw(scene(recipe.pictures.seed, "train", index)) for index in range(done, last)]
        array[done:last] = tower_features(model, processor, images).numpy().astype(np.float16)
        bar.update(last - done)
        done = last
        if done % (BLOCK * 16) == 0 or done == recipe.pictures.train:
            array.flush()
            unfinished = state.with_suffix(".writing")
            unfinished.write_text(json.dumps({**wanted, "done": done}))
            os.replace(unfinished, state)
    bar.close()
    some = torch.from_numpy(array[: min(200, shape[0])].astype(np.float32)).flatten(0, 1)
    return FeatureStore(array, some.mean(0), some.std(0).clamp_min(1e-3))
