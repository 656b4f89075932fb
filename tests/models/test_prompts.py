"""The one prompt builder: equal to the processor's own tokenized chat template, one beginning-of-sequence token."""

from __future__ import annotations

import copy

import pytest
import torch

from dart_train.models.prompts import assistant_message, build_inputs, prompt_problems, special_tokens, user_message
from tests.zoo import FAMILIES, make_image


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_equals_apply_chat_template_of_the_processor(family: str) -> None:
    processor = FAMILIES[family].processor()
    conversations = [
        [user_message("what is red", [make_image(1)])],
        [user_message("which", [make_image(2), make_image(3)]), assistant_message("one"), user_message("and what")],
    ]
    inputs = build_inputs(processor, conversations)
    expected = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in inputs)


def test_images_given_separately_are_those_of_the_messages() -> None:
    processor = FAMILIES["llava"].processor()
    inputs = build_inputs(processor, [[user_message("what", [make_image(1)])]])
    bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}]
    separate = build_inputs(processor, [bare], [[make_image(1)]])
    assert all(torch.equal(inputs[name], separate[name]) for name in inputs)


def test_bos_written_by_the_template_is_not_added_again() -> None:
    processor = FAMILIES["gemma3"].processor()
    begin = processor.tokenizer.bos_token_id
    ids = build_inputs(processor, [[user_message("what", [make_image(1)])]])["input_ids"]
    assert int((ids == begin).sum()) == 1
    assert special_tokens(processor, f"{processor.tokenizer.bos_token}text") == {"add_special_tokens": False}
    assert special_tokens(processor, "text") == {"add_special_tokens": True}


def test_text_without_images() -> None:
    inputs = build_inputs(FAMILIES["llava"].processor(), [[user_message("what")]])
    assert inputs.keys() == {"input_ids", "attention_mask"}


def test_missing_pad_token_and_chat_template_are_reported_together() -> None:
    processor = copy.copy(FAMILIES["llava"].processor())
    assert prompt_problems(processor) == []
    processor.tokenizer = copy.deepcopy(processor.tokenizer)
    processor.tokenizer.pad_token = None
    processor.chat_template = processor.tokenizer.chat_template = None
    problems = prompt_problems(processor)
    assert "pad token" in problems[0] and "no chat template" in problems[1]
    assert "expected a processor for images and text" in prompt_problems(processor.tokenizer)[0]
