"""Packed rows of other trainers, with a reduction attached: as padded rows, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from dart_train import DART, attach
from dart_train.data.collator import Collator
from dart_train.data.encoder import Encoded, Encoder
from tests.data.test_collate import rows_of
from tests.training.test_clients import Losses, options, rows
from tests.zoo import FAMILIES, sentence

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # trl asks transformers by an old name


class FlatteningCollator:
    """transformers' collator for text, and the images of all rows in one list: what a script would write."""

    def __init__(self, flash: bool) -> None:
        self.flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=flash)

    def __call__(self, given: list[Encoded]) -> dict[str, Any]:
        text = [{name: row.features[name][0].tolist() for name in ("input_ids", "labels")} for row in given]
        batch = dict(self.flatten(text))
        names = {name for row in given for name in row.features} - {"input_ids", "labels", "attention_mask"}
        for name in names - {"mm_token_type_ids"}:
            batch[name] = torch.cat([row.features[name] for row in given if name in row.features])
        return batch


@pytest.mark.parametrize(("family", "flash"), [("llava", False), ("llava", True), ("qwen2_5_vl", False)])
def test_flattened_rows_train_as_padded_ones(tmp_path: Path, family: str, flash: bool) -> None:
    encoder = Encoder(FAMILIES[family].processor())
    encoded = [encoder.encode(*row) for row in rows_of((1, 0, 2, 1, 1, 0))]
    found = []
    for collator in (Collator(encoder.processor), FlatteningCollator(flash)):
        model, losses = FAMILIES[family].model(), Losses()
        arguments = TrainingArguments(**options(tmp_path, max_steps=2, learning_rate=1e-4))
        with attach(model, DART(keep=8)) as attached:
            Trainer(model, arguments, collator, encoded, callbacks=[losses]).train()  # type: ignore[arg-type]
            assert attached.last is not None and max(attached.last.visual_after) <= 8
        found.append(losses.losses)
    assert len(found[0]) == 2 and found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("packing", [{"padding_free": True, "max_length": None}, {"packing": True, "max_length": 64}])
def test_trl_packs_text_under_attach(tmp_path: Path, packing: dict[str, Any]) -> None:
    """Rows of text alone, which TRL packs, with the reduction attached: what the plain model trains."""
    texts = Dataset.from_list([{"text": sentence(4 + i % 5, i)} for i in range(12)])
    found = []
    for reduced in (False, True):
        model, losses = FAMILIES["llava"].model(), Losses()
        attached = attach(model, DART(keep=8)) if reduced else None
        arguments = options(tmp_path, max_steps=2, learning_rate=1e-4)
        config = SFTConfig(**arguments, **packing)
        tokenizer = FAMILIES["llava"].processor().tokenizer
        SFTTrainer(model, config, train_dataset=texts, processing_class=tokenizer, callbacks=[losses]).train()
        assert attached is None or attached._engine.packing.handles[3:]  # the layers of a packed forward were hooked
        found.append(losses.losses)
    assert len(found[0]) == 2 and found[1] == pytest.approx(found[0], rel=1e-4)


def test_trl_refuses_to_pack_images(tmp_path: Path) -> None:
    model, processor = FAMILIES["llava"].model(), FAMILIES["llava"].processor()
    config = SFTConfig(**options(tmp_path), padding_free=True, max_length=None)
    with attach(model, DART(keep=8)), pytest.raises(ValueError, match="not supported for vision datasets"):
        SFTTrainer(model, config, train_dataset=rows(4), processing_class=processor)
