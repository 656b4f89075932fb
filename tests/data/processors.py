"""Processors that differ from the zoo's in what matters to supervision: unmarked templates, merging tokenizers."""

import copy
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from tests.zoo import FAMILIES

WORDS = [
    "USER: What is it? ASSISTANT: A red cat and a blue dog.",
    "answer the question shortly: Yes No! \n\n three",
] * 40


def unmarked(processor):
    """The same processor, whose chat template does not mark the assistant's text."""
    stripped = copy.copy(processor)
    stripped.chat_template = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", processor.chat_template)
    assert "generation -" not in stripped.chat_template
    return stripped


def metaspace_tokenizer():
    """As Llama's: a word carries the blank before it, so the blank after an answer belongs to the next word."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    specials = ["<unk>", "<s>", "</s>", "<image>"]
    backend.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=600, special_tokens=specials))
    vocabulary = backend.get_vocab()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>",
        extra_special_tokens=["<image>"],
    )  # fmt: skip


# In the manner of LLaVA-1.5's: images first, a blank after every text, no token that ends a turn.
_HEAD = "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
_IMAGES = "{% for p in m['content'] if p['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
_TEXTS = "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}"
_TAIL = "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
LLAVA_STYLE = _HEAD + _IMAGES + _TEXTS + _TAIL
LLAVA_STYLE_MARKED = (
    _HEAD + _IMAGES + "{% if m['role'] == 'assistant' %}{% for p in m['content'] %}"
    "{% generation %}{{ p['text'] + ' ' }}{% endgeneration %}{% endfor %}{% else %}" + _TEXTS + "{% endif %}" + _TAIL
)


def llava_with(template, tokenizer=None):
    image_processor = FAMILIES["llava"].processor().image_processor
    return LlavaProcessor(
        image_processor, tokenizer or metaspace_tokenizer(), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
