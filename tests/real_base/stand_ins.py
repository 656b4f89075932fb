"""Stand-ins for the pretrained parts: models of the same classes with small random weights, and a recipe for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.real_base.train.recipe import RealRecipe
from data.things import things
from data.things.scene import LABELS, NOTES

SIZE = 224


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words, and characters for everything else; control tokens as SmolLM2 has them."""
    words = {word for thing in things() for word in thing.name.split()} | {"the", "yes", "no", "What", "is", "at"}
    words |= {word for text in (*LABELS, *NOTES) for word in text.split()}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(alphabet), *sorted(words)]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(dict.fromkeys(tokens))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )


def make_parts() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Dinov2Model]:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    language = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            pad_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    vision = Dinov2Model(
        Dinov2Config(hidden_size=64, num_hidden_layers=4, num_attention_heads=1, image_size=518, patch_size=14)
    )
    return language, tokenizer, vision


def make_recipe(folder: Path, **more: Any) -> RealRecipe:
    stage = {"steps": 2, "batch_size": 2, "naming": 2, "others": 2}
    return RealRecipe.model_validate(
        {
            "stages": {
                "projector": {"steps": 2, "batch_size": 2},
                "few": {**stage, "patches": 32},
                "all": {**stage, "decay": 1},
            },
            "pictures": {"train": 6, "feature_layers": [-3, -2]},
            "measure": {"images": 1},
            "work_dir": str(folder / "work"),
            "output_dir": str(folder / "out"),
            "save_steps": 1,
            "precision": "float32",
            **more,
        }
    )
