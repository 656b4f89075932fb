"""All stages of a recipe, one after the other; what was learned is written to `output_dir`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import set_seed

from dart_train.common.environment import cpu_has_bf16
from data.scenes.rng import PortableRandom
from data.things import draw, scene

from ..build import PROJECTOR, assembled
from .features import FeatureStore, compute_features, tower_features
from .loop import train_stage
from .model import TrainedParts, folded
from .recipe import LanguageStage, RealRecipe
from .rows import RowMaker
from .words import WordTargets

BACKGROUND = 0.3  # share of the background's patches that the projector stage uses


def train(recipe: RealRecipe, until: str | None = None) -> None:
    """Train all stages, or those up to `until`."""
    if recipe.precision == "bfloat16" and not cpu_has_bf16():
        print("precision: bfloat16, which this CPU emulates several times slower than float32; give precision=float32")
    model, processor = assembled(Path(recipe.parts_dir), recipe.pictures.feature_layers, recipe.pictures.size)
    model.model.vision_tower.to(getattr(torch, recipe.precision))
    store = compute_features(recipe, model, processor)
    set_seed(recipe.seed)  # of the adapter; here, after what a resumed training does not do again
    stages = RealStages(recipe, model, processor, store)
    for name in ("projector", "few", "all"):
        stages.train(name)
        stages.write(Path(recipe.output_dir))
        if name == until:
            break


class RealStages:
    """The losses of the stages, and the weights that each one trains."""

    def __init__(self, recipe: RealRecipe, model: Any, processor: Any, store: FeatureStore) -> None:
        self.recipe, self.store = recipe, store
        self.patch = model.config.vision_config.patch_size
        side = recipe.pictures.size // self.patch
        embeddings = model.get_input_embeddings().weight.detach().float()
        self.targets = WordTargets(processor.tokenizer, embeddings, side, recipe.stages.projector.position)
        self.rows = RowMaker(processor.tokenizer, self.patch, model.config.image_token_id)
        seen = [scene(recipe.pictures.seed, "validation", index) for index in range(recipe.validation_images)]
        features = tower_features(model, processor, [draw(one) for one in seen])
        self.validation = seen, (features - store.mean) / store.deviation
        self.parts = TrainedParts(recipe, model)

    def train(self, name: str) -> None:
        stage, parts = getattr(self.recipe.stages, name), self.parts
        projector = list(parts.projector.parameters())
        if name == "projector":
            groups = [(projector, stage.learning_rate)]
            train_stage(name, stage, self.recipe, parts, groups, self.word_loss, self.validate_words)
            return
        rates: list[tuple[list[nn.Parameter], float]] = [
            (list(parts.adapter().values()), stage.learning_rate),
            (projector, stage.projector_learning_rate),
        ]
        offset = self.recipe.stages.few.steps * self.recipe.stages.few.batch_size if name == "all" else 0
        train_stage(
            name,
            stage,
            self.recipe,
            parts,
            rates,
            lambda step: self.answer_loss(stage, step, offset),
            lambda: self.validate_answers(stage),
        )

    def word_loss(self, step: int) -> tuple[Tensor, float]:
        source, rng = self.recipe.pictures, PortableRandom(f"projector-{step}")
        indices = [rng.below(source.train) for _ in range(self.recipe.stages.projector.batch_size)]
        labels = torch.stack([self.targets.labels(scene(source.seed, "train", i), self.patch) for i in indices])
        # Background is most of an image, and all of it has the same target.
        used = (labels > 0) | (torch.rand(labels.shape, generator=torch.Generator().manual_seed(step)) < BACKGROUND)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            projected = self.parts.projector(self.store.batch(indices)[used])
        return self.targets.loss(projected.float(), labels[used], used.nonzero()[:, 1])

    def answer_loss(self, stage: LanguageStage, step: int, offset: int) -> tuple[Tensor, float]:
        batch = self.rows.batch(stage, self.recipe.pictures.seed, self.recipe.pictures.train, step, offset)
        loss, right = self.parts.answer_loss(batch, self.store.batch(batch.indices))
        return loss, float(right.float().mean())

    @torch.no_grad()
    def validate_words(self) -> dict[str, float]:
        scenes, features = self.validation
        labels = torch.stack([self.targets.labels(one, self.patch) for one in scenes])
        projected = self.parts.projector(features).flatten(0, 1)
        places = torch.arange(labels.shape[1]).repeat(len(scenes))
        return {"validation_right": self.targets.loss(projected, labels.flatten(), places)[1]}

    @torch.no_grad()
    def validate_answers(self, stage: LanguageStage) -> dict[str, float]:
        """Share of the tokens of answers that are right, of naming questions and of all, on the validation scenes."""
        scenes, features = self.validation
        found = {}
        for name in ("naming", "others"):
            if not getattr(stage, name):
                continue
            counts = {"naming": 0, "others": 0, name: 4}
            asked = stage.model_copy(update={"batch_size": len(scenes), **counts})
            batch = self.rows.batch(asked, self.recipe.pictures.seed, len(scenes), 0, 0, "validation")
            loss, right = self.parts.answer_loss(batch, features)
            found |= {f"validation_{name}_loss": float(loss), f"validation_{name}_right": float(right.float().mean())}
        return found

    def write(self, folder: Path) -> None:
        """Projector in float32 and adapter in bfloat16: together what the model needs besides its pretrained parts."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = folded(self.parts.projector, self.store.mean, self.store.deviation)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / PROJECTOR)
        language = self.parts.language_model
        state = {name: w.to(torch.bfloat16).contiguous() for name, w in get_peft_model_state_dict(language).items()}
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = language.peft_config["default"]
        settings.inference_mode = True
        settings.base_model_name_or_path = None
        settings.save_pretrained(str(folder))
