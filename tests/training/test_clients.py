"""Somebody else's training script with two lines added: nothing else of this package is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from dart_train import DART, KeepAll, attach
from tests.zoo import FAMILIES, conversation, sentence

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # trl asks transformers by an old name


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def rows(number: int) -> Dataset:
    made = []
    for i in range(number):
        messages, images = conversation(1, sentence(4, i), sentence(2, 50 + i), i)
        text = [
            {"role": turn["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in turn["content"]]}
            for turn in messages
        ]
        made.append({"messages": text, "images": images})
    return Dataset.from_list(made)


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "lr_scheduler_type": "constant",
        **more,
    }


def sft(folder: Path, family: str, reducer: Any, **more: Any) -> tuple[list[float], Any]:
    model, processor, losses = FAMILIES[family].model(), FAMILIES[family].processor(), Losses()
    attached = None if reducer is None else attach(model, reducer)
    config = SFTConfig(**options(folder, **more), max_length=None)
    trainer = SFTTrainer(model, config, train_dataset=rows(12), processing_class=processor, callbacks=[losses])
    trainer.train()
    return losses.losses, attached


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_trl_sft_trainer_trains_with_two_lines_added(tmp_path: Path, family: str) -> None:
    losses, attached = sft(tmp_path, family, DART(keep=8))
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert attached.last is not None and set(attached.last.visual_after) == {8}


def test_trl_sft_trainer_with_keep_all_equals_the_plain_one(tmp_path: Path) -> None:
    """Small steps: rounding grows from step to step, and faster at a high learning rate."""
    plain, _ = sft(tmp_path, "llava", None, learning_rate=1e-4)
    kept, _ = sft(tmp_path, "llava", KeepAll(), learning_rate=1e-4)
    assert kept == pytest.approx(plain, rel=1e-4)


def bare(folder: Path, reducer: Any) -> tuple[list[float], Any]:
    model, processor, losses = FAMILIES["llava"].model(), FAMILIES["llava"].processor(), Losses()
    attached = None if reducer is None else attach(model, reducer)

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        texts = [processor.apply_chat_template(row["messages"]) for row in batch]
        made = processor(text=texts, images=[row["images"] for row in batch], padding=True, return_tensors="pt")
        labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
        return {**made, "labels": labels.masked_fill(labels == model.config.image_token_id, -100)}

    arguments = TrainingArguments(**options(folder))
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows(12), callbacks=[losses])
    trainer.train()
    return losses.losses, attached


def test_plain_trainer_trains_with_two_lines_added(tmp_path: Path) -> None:
    losses, attached = bare(tmp_path, DART(keep=8))
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert attached.last is not None and set(attached.last.visual_after) == {8}


def test_plain_trainer_with_keep_all_equals_the_plain_one(tmp_path: Path) -> None:
    assert bare(tmp_path, KeepAll())[0] == pytest.approx(bare(tmp_path, None)[0], rel=1e-4)
