"""Chat prompts as model inputs: conversations through the model's own chat template and processor.

    inputs = build_inputs(processor, [[user_message("What is this?", [image])]])
    output = model.generate(**to_device(inputs, model))

Commands that answer, compare, check or draw build their prompts here, and training applies the same rule for the
beginning-of-sequence token, so that a model is served with the tokens it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

Message = dict[str, Any]  # role, and content: a list of parts of type text, image or video
Conversation = list[Message]
Frames = Sequence[Image.Image]


def user_message(text: str, images: Iterable[Image.Image | Frames] = ()) -> Message:
    """A turn of the user: images (or videos, each a sequence of frames), then the text."""
    return {"role": "user", "content": [*map(_visual_part, images), {"type": "text", "text": text}]}


def _visual_part(image: Image.Image | Frames) -> dict[str, Any]:
    kind = "video" if isinstance(image, list | tuple) else "image"
    return {"type": kind, kind: image}


def assistant_message(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def build_inputs(
    processor: Any, conversations: Sequence[Conversation], images: Sequence[Sequence[Image.Image]] | None = None
) -> dict[str, Tensor]:
    """A batch for `generate`, on the CPU: one row for each conversation, up to where the assistant's answer begins.
    Rows of different length are padded on the left.

    images: those of each conversation, in order; by default they are taken from the messages' parts.
    Every frame of a video is used; the video processor samples none of them.
    """
    texts = [render(processor, conversation) for conversation in conversations]
    given = [_parts(conversation, "image") for conversation in conversations] if images is None else images
    videos = [_parts(conversation, "video") for conversation in conversations]
    options: dict[str, Any] = special_tokens(processor, *texts)
    if any(given):
        options["images"] = [list(each) for each in given]
    if any(videos):
        options |= {"videos": [[list(frames) for frames in each] for each in videos], "do_sample_frames": False}
    if len(texts) > 1:
        options |= {"padding": True, "padding_side": "left"}
    return dict(processor(text=texts, return_tensors="pt", **options))


def render(processor: Any, conversation: Sequence[Message]) -> str:
    """The prompt as text, up to where the assistant's answer begins."""
    source = chat_template(processor)
    text: str = processor.apply_chat_template(
        list(conversation), chat_template=source, tokenize=False, add_generation_prompt=True
    )
    return text


def _parts(conversation: Sequence[Message], kind: str) -> list[Any]:
    contents = [message["content"] for message in conversation if not isinstance(message["content"], str)]
    return [part[kind] for content in contents for part in content if part["type"] == kind and kind in part]


def special_tokens(processor: Any, *texts: str) -> dict[str, bool]:
    """The tokenizer option for rendered texts: where the chat template writes the beginning-of-sequence token itself,
    the tokenizer must not add a second one."""
    begin = processor.tokenizer.bos_token
    return {"add_special_tokens": not (begin and all(text.startswith(begin) for text in texts))}


def to_device(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Tensors on the model's device; pixels and other floats in the dtype of its weights."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def chat_template(processor: Any) -> str:
    """The Jinja source. ValueError for a processor that has none."""
    source = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    if isinstance(source, dict):
        source = source.get("default")
    if not isinstance(source, str):
        raise ValueError(
            f"{type(processor).__name__} has no chat template; save one next to the model (chat_template.jinja), "
            "or use the instruction-tuned model, which has one"
        )
    return source


def prompt_problems(processor: Any) -> list[str]:
    """Why batches of prompts cannot be built with this processor; empty where they can."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        return [f"a {type(processor).__name__} was given, expected a processor for images and text"]
    problems = []
    if tokenizer.pad_token is None:
        problems.append("the tokenizer has no pad token; set tokenizer.pad_token, to its eos_token for example")
    try:
        chat_template(processor)
    except ValueError as error:
        problems.append(str(error))
    return problems
