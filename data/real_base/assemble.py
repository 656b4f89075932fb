"""The parts as one `LlavaForConditionalGeneration` with its processor; the projector has random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Dinov2Model,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from dart_train.models.transformers_compat import build_processor

IMAGE = "<image>"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained

# ChatML as SmolLM2 was trained, without its default system prompt, with images, and with the answers marked.
TEMPLATE = """
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- parts(message['content']) -}}{{- '<|im_end|>' -}}{%- endgeneration -%}{{- '\n' -}}
{%- else -%}
{{- parts(message['content']) -}}{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""


def assemble(
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    vision: Dinov2Model,
    feature_layers: list[int],
    size: int,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model in float32, without a copy of its parts' weights, and its processor for square images.

    feature_layers: the layers of the vision tower that the projector reads, counted from the end (-1 is the last).
    size: of the images, in pixels; a multiple of the patch size. The tower's positions are interpolated to it once."""
    patch = vision.config.patch_size
    if size % patch:
        raise ValueError(f"size: got {size}, expected a multiple of the patch size {patch}")
    _interpolate_positions(vision, size)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.image_token, tokenizer.image_token_id = IMAGE, tokenizer.convert_tokens_to_ids(IMAGE)
    tokenizer.padding_side = "left"
    tokenizer.chat_template = None  # the processor has the template
    if len(tokenizer) > (words := language.config.vocab_size):
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():  # in place of random numbers: the embedding of the image token is never read
            language.get_input_embeddings().weight[words:] = 0
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_id=tokenizer.image_token_id,
        image_seq_length=(size // patch) ** 2,
        vision_feature_layer=feature_layers,
        vision_feature_select_strategy="default",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = vision
    model.model.language_model = language.model
    model.lm_head = language.lm_head
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model.eval().to(torch.float32), make_processor(tokenizer, size, patch)


@torch.no_grad()
def _interpolate_positions(vision: Dinov2Model, size: int) -> None:
    """The tower's position embeddings for images of this size, so that `image_size` is the size of its images: what
    reads the grid of the visual tokens reads it from there."""
    embeddings, tokens = vision.embeddings, (size // vision.config.patch_size) ** 2 + 1
    positions = embeddings.interpolate_pos_encoding(torch.empty(1, tokens, vision.config.hidden_size), size, size)
    embeddings.position_embeddings = torch.nn.Parameter(positions.clone())
    vision.config.image_size = size


def make_processor(tokenizer: Any, size: int, patch: int) -> LlavaProcessor:
    square = {"height": size, "width": size}
    images = BitImageProcessorPil(
        size=square, do_center_crop=False, image_mean=list(MEAN), image_std=list(DEVIATION), do_convert_rgb=True
    )
    settings = {
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the class token, which the select strategy drops
        "chat_template": TEMPLATE,
    }
    processor: LlavaProcessor = build_processor(LlavaProcessor, [images, tokenizer], settings)
    return processor
