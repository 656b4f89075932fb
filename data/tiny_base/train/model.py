"""The model: CLIP's tower, LLaVA's projector, a Llama; and what stands beside it while it learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from data.shapes import LABELS, LEVELS

from .processor import CHARACTERS, END, IMAGE, PAD, START, tokenizer
from .recipe import Base

SPREAD = 0.05  # of initial weights
WORDS = 0.15  # of embeddings: a word is not drowned on its way up by
QUIET = 0.2  # times SPREAD of what the feed-forward layers add
ALIKE = 0.1  # of queries, which the keys start equal to


def kinds_of_labels(across: int) -> dict[str, int]:
    """What the tower learns to say of each of `across` x `across` patches, and how many answers there are."""
    return {**{name: len(labels) for name, labels in LABELS.items()}, "anchor": 2, "row": across, "column": across}


def build(recipe: Base) -> LlavaForConditionalGeneration:
    """With random weights; but like looks at like from the start (keys are queries) and takes over what it sees (each
    head's output undoes its values), which is most of what answering is about."""
    model = LlavaForConditionalGeneration(configuration(recipe)).float()
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.q_proj.weight.data.mul_(ALIKE / SPREAD)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight.data)
        attention.o_proj.weight.data.copy_(attention.v_proj.weight.data.T)
        layer.mlp.down_proj.weight.data.mul_(QUIET)
    model.get_input_embeddings().weight.data.mul_(WORDS / SPREAD)
    ids = {f"{name}_token_id": getattr(model.config.text_config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.generation_config = GenerationConfig(**ids, do_sample=False, max_new_tokens=8)
    return model


def configuration(recipe: Base) -> LlavaConfig:
    words, size = tokenizer(), LEVELS[recipe.pictures.difficulty].size
    seen, said = recipe.vision, recipe.language
    vision = CLIPVisionConfig(
        hidden_size=seen.width,
        intermediate_size=seen.mlp,
        num_hidden_layers=seen.layers,
        num_attention_heads=seen.heads,
        image_size=size,
        patch_size=seen.patch,
        projection_dim=seen.width,
    )
    number = words.convert_tokens_to_ids
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=said.width,
        intermediate_size=said.mlp,
        num_hidden_layers=said.layers,
        num_attention_heads=said.heads,
        num_key_value_heads=said.heads,
        max_position_embeddings=said.positions,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        bos_token_id=number(START),
        eos_token_id=number(END),
        pad_token_id=number(PAD),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=number(IMAGE),
        image_seq_length=(size // seen.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


class SymbolicPatchEmbedding(nn.Module):
    """A picture as the language model would like to have it: each patch the sum of the words for what it shows."""

    what_ids: Tensor
    colour_ids: Tensor
    first_ids: Tensor
    later_ids: Tensor

    def __init__(self, width: int, across: int) -> None:
        super().__init__()
        self.row, self.column = (nn.Parameter(WORDS * torch.randn(across, width)) for _ in range(2))
        self.marks = nn.Parameter(WORDS * torch.randn(2, width))  # nothing is here; an item's chosen patch
        number = tokenizer().convert_tokens_to_ids
        lists = {name: [0, *number(list(labels[1:]))] for name, labels in LABELS.items()}
        lists |= {"first": lists["character"], "later": [0, *number([f"##{one}" for one in CHARACTERS])]}
        for name, ids in lists.items():
            self.register_buffer(f"{name}_ids", torch.tensor(ids), persistent=False)

    def forward(self, labels: Tensor, words: Tensor) -> Tensor:
        """labels [B, rows, columns, 6] as in `kinds_of_labels`, words [V, D] -> [B, rows * columns, D]"""
        what, colour, character, anchor, row, column = labels.unbind(-1)
        spelled = torch.where(anchor.bool(), self.first_ids[character], self.later_ids[character])
        found = [self.what_ids[what], self.colour_ids[colour], spelled]
        total = sum(words[ids] * (ids > 0).unsqueeze(-1) for ids in found)
        total = total + anchor.unsqueeze(-1) * self.marks[1] + (what == 0).unsqueeze(-1) * self.marks[0]
        return (total + self.row[row] + self.column[column]).flatten(1, 2)


class TrainingBundle(nn.Module):
    """The model, and what only its training needs: heads that name patches, symbols in place of them."""

    def __init__(self, recipe: Base) -> None:
        super().__init__()
        self.model = build(recipe)
        across = LEVELS[recipe.pictures.difficulty].size // recipe.vision.patch
        self.symbols = SymbolicPatchEmbedding(recipe.language.width, across)
        self.look = nn.LayerNorm(recipe.vision.width)
        heads = {name: nn.Linear(recipe.vision.width, kinds) for name, kinds in kinds_of_labels(across).items()}
        self.heads = nn.ModuleDict(heads)

    def seen(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, patches, vision width]"""
        return self.model.model.vision_tower(pixels).last_hidden_state[:, 1:]

    def symbolic(self, labels: Tensor) -> Tensor:
        return self.symbols(labels, self.model.get_input_embeddings().weight)
