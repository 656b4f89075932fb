"""How each family writes a conversation: its special tokens and its chat template."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from tests.zoo.chat import Turns
from tests.zoo.tokenizers import byte_tokenizer


@dataclass(frozen=True)
class Dialect:
    """`named` are the special tokens that the family's own tokenizer has as attributes."""

    turns: Turns
    eos: str
    pad: str
    bos: str | None = None
    add_bos: bool = False
    named: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return byte_tokenizer(self.bos, self.eos, self.pad, self.named, self.others, self.add_bos)


def _chatml(image: str, video: str = "<video>", **tokens: object) -> Dialect:
    turns = Turns(
        user=("<|im_start|>user\n", "<|im_end|>\n"),
        assistant=("<|im_start|>assistant\n", "<|im_end|>"),
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        after="\n",
        image=image,
        video=video,
    )
    return Dialect(turns, eos="<|im_end|>", pad="<|endoftext|>", **tokens)  # type: ignore[arg-type]


def _idefics(start: str, others: tuple[str, ...], pad: str) -> Dialect:
    turns = Turns(
        user=("User:", "<end_of_utterance>\n"),
        assistant=("Assistant:", "<end_of_utterance>"),
        system=("System: ", "<end_of_utterance>\n"),
        opening=" ",
        after="\n",
        image="<image>",
        start=start,
    )
    grid = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    marks = ("<fake_token_around_image>", "<image>", "<global-img>")
    return Dialect(turns, eos="<end_of_utterance>", pad=pad, bos=start, others=(*others, *marks, *grid))


def _llama(user: tuple[str, str], answer_begins: str, system_ends: str) -> Dialect:
    turns = Turns(
        user=user, assistant=(answer_begins, "</s>"), system=("", system_ends), opening=" ", image="<image>\n"
    )
    return Dialect(turns, bos="<s>", eos="</s>", pad="<pad>", add_bos=True, named={"image_token": "<image>"})


_LLAVA = _llama(("USER: ", " "), "ASSISTANT:", " ")
_LLAVA_NEXT = _llama(("[INST] ", " [/INST]"), "", "\n")

_QWEN_VL = _chatml(
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
    others=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)

_GEMMA = Dialect(
    Turns(
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=("<start_of_turn>model\n", "<end_of_turn>"),
        system=("<start_of_turn>user\n", "<end_of_turn>\n"),
        after="\n",
        image="<start_of_image>",
        start="<bos>",
    ),
    bos="<bos>",
    eos="<end_of_turn>",
    pad="<pad>",
    add_bos=True,
    named={
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    others=("<start_of_turn>",),
)

DIALECTS: dict[str, Dialect] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA_NEXT,
    "llava_onevision": _chatml("<image>\n", others=("<|im_start|>", "<image>", "<video>")),
    "qwen2_vl": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen3_vl": _QWEN_VL,
    "qwen3_5": _QWEN_VL,
    "internvl": _chatml(
        "<IMG_CONTEXT>\n",
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        others=("<|im_start|>",),
    ),
    "idefics3": _idefics("<|begin_of_text|>", ("<|end_of_text|>",), pad="<|finetune_right_pad_id|>"),
    "smolvlm": _idefics("<|im_start|>", ("<|endoftext|>",), pad="<|im_end|>"),
    "gemma3": _GEMMA,
}


@functools.cache
def token_ids(name: str) -> dict[str, int]:
    """Special tokens of a family and their ids, for the model's configuration."""
    return dict(DIALECTS[name].tokenizer().get_added_vocab())
