"""A tiny tokenizer: a token for each byte, so that every text comes back exactly, and special tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

VOCABULARY = 320  # 256 bytes and room for special tokens; every tiny model has this many embeddings


def byte_tokenizer(
    bos: str | None, eos: str, pad: str, named: dict[str, str], others: tuple[str, ...], add_bos: bool = False
) -> PreTrainedTokenizerFast:
    """`named` tokens become attributes (`tokenizer.image_token`), as in the families' own tokenizers."""
    specials = list(dict.fromkeys([pad, eos, *([bos] if bos else []), *named.values(), *others]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*specials, *alphabet])}
    assert len(vocabulary) <= VOCABULARY
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if add_bos and bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=list(others),
        model_specific_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )
