"""The model: CLIP's vision tower, LLaVA's projector and a Llama; and the modules that only its training needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from data.shapes import LABELS, LEVELS

from .processor import CHARACTERS, END, IMAGE, PAD, START, make_tokenizer
from .recipe import BaseRecipe

INIT_STD = 0.05
EMBED_INIT_STD = 0.15  # larger than INIT_STD so that embeddings dominate the residual stream
MLP_OUT_SCALE = 0.2  # factor on INIT_STD for the output of the feed-forward layers
QUERY_INIT_STD = 0.1  # of query weights; the key weights start equal to them


def label_counts(across: int) -> dict[str, int]:
    """The labels of each of `across` x `across` patches, and the number of classes of each."""
    return {**{name: len(labels) for name, labels in LABELS.items()}, "anchor": 2, "row": across, "column": across}


def build_model(recipe: BaseRecipe) -> LlavaForConditionalGeneration:
    """With random weights, except that attention starts as a similarity search (keys equal queries) that copies what
    it finds (each head's output inverts its values), which is most of what answering needs."""
    model = LlavaForConditionalGeneration(build_config(recipe)).float()
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.data.mul_(QUERY_INIT_STD / INIT_STD)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.data.T)
        layer.mlp.down_proj.weight.data.mul_(MLP_OUT_SCALE)
    model.get_input_embeddings().weight.data.mul_(EMBED_INIT_STD / INIT_STD)
    ids = {f"{name}_token_id": getattr(model.config.text_config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.generation_config = GenerationConfig(**ids, do_sample=False, max_new_tokens=8)
    return model


def build_config(recipe: BaseRecipe) -> LlavaConfig:
    tokenizer, size = make_tokenizer(), LEVELS[recipe.pictures.difficulty].size
    vision, language = recipe.vision, recipe.language
    token_id = tokenizer.convert_tokens_to_ids
    vision_config = CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.mlp,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        image_size=size,
        patch_size=vision.patch,
        projection_dim=vision.width,
    )
    text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=language.width,
        intermediate_size=language.mlp,
        num_hidden_layers=language.layers,
        num_attention_heads=language.heads,
        num_key_value_heads=language.heads,
        max_position_embeddings=language.positions,
        initializer_range=INIT_STD,
        tie_word_embeddings=True,
        bos_token_id=token_id(START),
        eos_token_id=token_id(END),
        pad_token_id=token_id(PAD),
    )
    return LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=token_id(IMAGE),
        image_seq_length=(size // vision.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


class SymbolicPatchEmbedding(nn.Module):
    """The ideal image for the language model: each patch is the sum of the word embeddings of its labels."""

    what_ids: Tensor
    colour_ids: Tensor
    first_ids: Tensor
    later_ids: Tensor

    def __init__(self, width: int, across: int) -> None:
        super().__init__()
        self.row, self.column = (nn.Parameter(EMBED_INIT_STD * torch.randn(across, width)) for _ in range(2))
        self.marks = nn.Parameter(EMBED_INIT_STD * torch.randn(2, width))  # an empty patch; the anchor of an item
        token_id = make_tokenizer().convert_tokens_to_ids
        lists = {name: [0, *token_id(list(labels[1:]))] for name, labels in LABELS.items()}
        lists |= {"first": lists["character"], "later": [0, *token_id([f"##{one}" for one in CHARACTERS])]}
        for name, ids in lists.items():
            self.register_buffer(f"{name}_ids", torch.tensor(ids), persistent=False)

    def forward(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """labels [B, rows, columns, 6] as in `label_counts`, embeddings [V, D] -> [B, rows * columns, D]"""
        what, colour, character, anchor, row, column = labels.unbind(-1)
        spelled = torch.where(anchor.bool(), self.first_ids[character], self.later_ids[character])
        tokens = [self.what_ids[what], self.colour_ids[colour], spelled]
        total = sum(embeddings[ids] * (ids > 0).unsqueeze(-1) for ids in tokens)
        total = total + anchor.unsqueeze(-1) * self.marks[1] + (what == 0).unsqueeze(-1) * self.marks[0]
        return (total + self.row[row] + self.column[column]).flatten(1, 2)


class TrainingBundle(nn.Module):
    """The model, and the modules that only its training needs: heads that classify patches, and symbolic patches."""

    def __init__(self, recipe: BaseRecipe) -> None:
        super().__init__()
        self.model = build_model(recipe)
        across = LEVELS[recipe.pictures.difficulty].size // recipe.vision.patch
        self.symbols = SymbolicPatchEmbedding(recipe.language.width, across)
        self.patch_norm = nn.LayerNorm(recipe.vision.width)
        heads = {name: nn.Linear(recipe.vision.width, classes) for name, classes in label_counts(across).items()}
        self.heads = nn.ModuleDict(heads)

    def patch_features(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, patches, vision width]"""
        return self.model.model.vision_tower(pixels).last_hidden_state[:, 1:]

    def symbolic_patches(self, labels: Tensor) -> Tensor:
        """[B, rows, columns, 6] -> [B, patches, language width]"""
        return self.symbols(labels, self.model.get_input_embeddings().weight)
