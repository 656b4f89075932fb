"""The base model's processor: a tokenizer that spells plates character by character, and CLIP's image processor."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dart_train.models.transformers_compat import build_processor
from data.shapes import LABELS, LEVELS, vocabulary

PAD, START, END, UNKNOWN, IMAGE, USER, ASSISTANT = (
    "<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>",
)  # fmt: skip
SPECIALS = (PAD, START, END, UNKNOWN, IMAGE, USER, ASSISTANT)
CHARACTERS = LABELS["character"][1:]

TEMPLATE = """
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- '<s>' -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<assistant>' -}}
{%- generation -%}{{- parts(message['content']) -}}{{- '</s>' -}}{%- endgeneration -%}
{%- else -%}
{{- '<user>' -}}{{- parts(message['content']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


def vocabulary_words() -> list[str]:
    """All words of questions and answers of any difficulty; characters also in the form that continues a word."""
    known = [word for level in LEVELS for word in vocabulary(level)]
    return list(dict.fromkeys([*known, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; `742` is `7 ##4 ##2`."""
    table = {token: number for number, token in enumerate([*SPECIALS, *vocabulary_words()])}
    backend = Tokenizer(models.WordPiece(table, unk_token=UNKNOWN, continuing_subword_prefix="##"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        extra_special_tokens=[USER, ASSISTANT],
        model_specific_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_processor(size: int, patch: int) -> LlavaProcessor:
    """For images of `size` x `size` pixels and a vision tower with patches of `patch` x `patch`."""
    square = {"height": size, "width": size}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square)
    settings = {
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": TEMPLATE,
    }
    return build_processor(LlavaProcessor, [image_processor, make_tokenizer()], settings)
