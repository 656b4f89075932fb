"""`bench packing`: rows laid end to end against padded batches, on rows of mixed length, with the reduction on."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import Collator, DeterministicOrder, Encoded, PackingCollator, TokenBatches
from ..hooks import Attached, attach
from ..models.structure import find_parts
from ..profiling.device import DevicePeak
from ..profiling.timing import ratio, rounds
from ..reduction import DART
from ..training.objective import forward_supervised
from ..training.trainable import choose_parameters
from .cli import repeats_of, scale_of
from .comparison import each_shape
from .model_shapes import IMAGE, ModelShape
from .table import BenchTable, percent, ratio_text
from .workloads import LAYER, llava_processor, parts_of, random_model

ROWS, QUICK_ROWS, BATCH = 64, 8, 8
SHUFFLED, GROUPED = "padded, in random order", "padded, grouped by length"
PACKED, FILLED = "padding_free, the grouped batches", "padding_free, tokens_per_batch"
COLUMNS: dict[str, Any] = {
    "model": lambda row: row["model"],
    "batches": lambda row: row["way"],
    "real tokens a second, of grouped padding": lambda row: ratio_text(row["faster"]),
    "real tokens of all slots": lambda row: percent(row["real"]),
    "allowed by the slots": lambda row: f"{row['bound']:.3g}x",
    "forwards": lambda row: str(row["forwards"]),
}
NOTES = (
    f"{ROWS} rows of random text and noise, in batches of {BATCH}: a third text alone, half with one image, a sixth "
    "with two; 20 to 400 tokens of question, 10 to 200 supervised. Forward, loss at supervised positions, backward; "
    f"LoRA; DART from layer {LAYER}.",
    "Real tokens of all slots: as a mean over the decoder's layers, of which those after the reduction run on the kept "
    "tokens. Allowed by the slots: the ratio of these shares, were the time one of slots alone.",
    "tokens_per_batch: as many forwards as there are padded batches, filled to the same number of tokens.",
)


def bench_packing(options: argparse.Namespace) -> BenchTable:
    return BenchTable("Padding-free training", COLUMNS, each_shape(options, measure_packing, "llava"), NOTES)


def measure_packing(shape: ModelShape, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    if shape.key != "llava":
        raise ValueError(f"--models {shape.key}: bench packing is for llava")
    model = random_model(shape, scale_of(options), options.device, options.dtype)
    model = choose_parameters(model, parts_of("lora", scale_of(options))).to(options.dtype).train()
    rows = mixed_rows(shape, QUICK_ROWS if options.quick else ROWS, model)
    with attach(model, DART(keep=shape.kept, layer=LAYER), output="compact") as attached:
        depth = len(find_parts(model).layers)
        epochs = {
            name: Epoch(model, attached, batches, options.device, options.dtype)
            for name, batches in batches_of(rows, shape, depth).items()
        }
        _, times = rounds(epochs, options.device, repeats_of(options), options.seconds, shape.key)
    base = epochs[GROUPED]
    return [
        {
            "model": shape.name,
            "way": name,
            "faster": ratio(times[GROUPED] or [1.0], times[name] or [1.0]),
            "real": epoch.share(depth),
            "bound": epoch.share(depth) / base.share(depth),
            "forwards": len(epoch.batches),
            "seconds": times[name],
        }
        for name, epoch in epochs.items()
    ]


class Epoch:
    """Every row once, forward and backward; counts slots and real tokens, before and after the reduction."""

    def __init__(
        self,
        model: Any,
        attached: Attached,
        batches: Sequence[dict[str, Any]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.attached, self.batches = model, attached, batches
        self.device, self.dtype = device, dtype
        self.counts = torch.zeros(4)

    def __call__(self) -> None:
        self.counts.zero_()
        for host in self.batches:
            batch = {name: self._moved(value) for name, value in host.items()}
            output = forward_supervised(self.model, self.attached, batch, host)
            (output.loss() / output.targets.numel()).backward()
            ids, last = host["input_ids"], self.attached.last if "pixel_values" in host else None
            real = int(host["attention_mask"].sum()) if "attention_mask" in host else ids.numel()
            short = ids.numel() if last is None else last.length * len(ids)
            kept = real if last is None else int(last.mask.sum())
            self.counts += torch.tensor([real, ids.numel(), kept, short])
        self.model.zero_grad(set_to_none=True)

    def _moved(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else None)

    def share(self, depth: int) -> float:
        """Real tokens of all slots of all layers."""
        real, slots, kept, short = self.counts.tolist()
        return (LAYER * real + (depth - LAYER) * kept) / (LAYER * slots + (depth - LAYER) * short)


def mixed_rows(shape: ModelShape, number: int, model: Any) -> list[Encoded]:
    chance, config = random.Random(0), find_parts(model).top.config
    generator = torch.Generator().manual_seed(0)
    size, vocabulary = config.vision_config.image_size, config.text_config.vocab_size
    rows = []
    for _ in range(number):
        images = chance.choice((0, 0, 1, 1, 1, 2))
        question, answer = (round(low * (high / low) ** chance.random()) for low, high in ((20, 400), (10, 200)))
        ids = torch.randint(IMAGE + 3, vocabulary, (1, images * shape.tokens + question + answer), generator=generator)
        ids[:, 4 : 4 + images * shape.tokens] = IMAGE
        labels = ids.clone()
        labels[:, :-answer] = -100
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        if images:
            features["pixel_values"] = torch.rand(images, 3, size, size, generator=generator)
        rows.append(Encoded(features))
    return rows


def batches_of(rows: Sequence[Encoded], shape: ModelShape, depth: int) -> dict[str, list[dict[str, Any]]]:
    """Each way's batches of the same rows."""
    processor = llava_processor()
    padded, packed = Collator(processor), PackingCollator(processor)
    full = [row.length for row in rows]
    visual = [int((row.features["input_ids"] == IMAGE).sum()) for row in rows]
    reduced = [length - max(0, image - shape.kept) for length, image in zip(full, visual, strict=True)]
    mean = [(LAYER * a + (depth - LAYER) * b) / depth for a, b in zip(full, reduced, strict=True)]
    size = min(BATCH, max(1, len(rows) // 2))
    forwards = -(-len(rows) // size)
    plain, sorted_ = DeterministicOrder([len(rows)]), DeterministicOrder([len(rows)], lengths=reduced, group=size)
    grouped = [sorted_.rows(first, size) for first in range(0, len(rows), size)]
    shuffled = [plain.rows(first, size) for first in range(0, len(rows), size)]
    filled = TokenBatches(plain, mean, round(sum(mean) / forwards * 1.01)).epoch(0)
    ways = {
        SHUFFLED: (padded, shuffled),
        GROUPED: (padded, grouped),
        PACKED: (packed, grouped),
        FILLED: (packed, filled),
    }
    return {name: [collate([rows[n] for n in batch]) for batch in numbers] for name, (collate, numbers) in ways.items()}
