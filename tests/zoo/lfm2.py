"""A tiny LFM2-VL with batches made by hand: its image processor needs torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

from tests.zoo.features import IMAGE, PAD, make_ids

GRIDS = ((8, 8), (8, 6), (4, 8))  # patches (rows, columns) of the images in turn; a token is 2 x 2 of them


def build_lfm2(attn: str = "sdpa") -> PreTrainedModel:
    """In eval mode; the same weights every time. Convolutions, and attention at layers 1 and 4."""
    kinds = ["conv", "full_attention", "conv", "conv", "full_attention"]
    text = {"model_type": "lfm2", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "layer_types": kinds}
    text |= {"num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    tower = {"model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "patch_size": 4, "num_patches": 64, "vision_use_head": False}
    config = hf.Lfm2VlConfig(
        text_config={**text, "pad_token_id": PAD, "eos_token_id": 2},
        vision_config=tower,
        image_token_id=IMAGE,
        projector_hidden_size=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.Lfm2VlForConditionalGeneration._from_config(config, attn_implementation=attn)
        with torch.no_grad():
            for name, weight in model.get_decoder().named_parameters():
                if "norm" in name and weight.ndim == 1:
                    weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def lfm2_batch(images: Sequence[int] = (1, 2, 0), side: str = "left", labels: bool = False) -> dict[str, Tensor]:
    """Row i has `images[i]` images, each followed by words; with labels, the last three words are supervised."""
    batch, used = make_ids(images, side, labels, [rows * columns // 4 for rows, columns in GRIDS])
    grids = [GRIDS[number % len(GRIDS)] for number in range(len(used))]
    chance = torch.Generator().manual_seed(1)
    if grids:
        pixels = torch.zeros(len(grids), 64, 3 * 4 * 4)
        there = torch.zeros(len(grids), 64, dtype=torch.long)
        for image, (height, width) in enumerate(grids):
            pixels[image, : height * width] = torch.randn(height * width, 48, generator=chance)
            there[image, : height * width] = 1
        batch |= {"pixel_values": pixels, "pixel_attention_mask": there, "spatial_shapes": torch.tensor(grids)}
    return batch
