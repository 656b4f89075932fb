"""The model's own chat template: what a conversation looks like, and where in it the assistant speaks.

Where the template marks answers (`{% generation %}`), its marks are used. Where it does not, as most templates of
vision models do not, an answer is what rendering the conversation up to and with it adds to rendering it up to the
prompt to answer. Text is never searched for. A template that allows neither is refused before training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ..models.prompts import chat_template
from .issues import BadRowError

Messages = Sequence[dict[str, Any]]
Span = tuple[int, int]
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def _say(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


_PROBE = [_say("user", "Is it?"), _say("assistant", "Yes, 3."), _say("user", "And now"), _say("assistant", "No!")]


class ChatTemplate:
    """`answers` gives the rendered text and the character spans of what the model must learn to write."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.source = chat_template(processor)
        self.marked = _MARK.search(self.source) is not None
        self.control = control_tokens(processor)
        self._openers = {token[0] for token in self.control}
        self.end, self.appends_end = "", False
        self._find_end()
        self._check_tokens()

    def render(self, messages: Messages, prompt: bool = False) -> str:
        return self._render(messages, prompt)[0]

    def answers(self, messages: Messages) -> tuple[str, list[Span]]:
        """The text, and one (start, end) for each assistant turn, its end-of-turn token included."""
        text, spans = self._spans(messages)
        if self.appends_end:
            start, end = spans[-1]
            return text[:end] + self.end, [*spans[:-1], (start, end + len(self.end))]
        return text, [(start, end + len(self.end) * text.startswith(self.end, end)) for start, end in spans]

    def find_control_token(self, text: str) -> str | None:
        """A control token that stands in what should be plain text. Most texts hold no opening bracket at all, and
        some tokenizers have thousands of control tokens."""
        if self._openers.isdisjoint(text):
            return None
        return next((token for token in self.control if token in text), None)

    def _render(self, messages: Messages, prompt: bool = False, marks: bool = False) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.source,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadRowError("template_failed", f"the chat template refuses the conversation: {error}") from None
        return texts[0], spans[0] if marks else []

    def _spans(self, messages: Messages) -> tuple[str, list[Span]]:
        text, marks = self._render(messages, marks=self.marked)
        spans = marks if self.marked else self._spans_by_prefix(messages, text)
        return text, [(start, start + len(text[start:end].rstrip())) for start, end in spans]

    def _spans_by_prefix(self, messages: Messages, text: str) -> list[Span]:
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self.render(messages[:i], prompt=True), self.render(messages[: i + 1]).rstrip()
            if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
                raise BadRowError("template_failed", f"turn {i + 1} is rendered in another way once turns follow it")
            spans.append((len(before), len(after)))
        return spans

    def _find_end(self) -> None:
        """What ends a turn: inside the span already, right behind the template's mark, or nothing at all; then
        the tokenizer's end token is put behind the last answer, or the model would never learn to stop."""
        try:
            text, spans = self._spans(_PROBE)
        except BadRowError as bad:
            raise ValueError(f"{_CANNOT}: {bad.message}. {_REMEDY}") from None
        if len(spans) != 2 or any(start >= end for start, end in spans):
            raise ValueError(f"{_CANNOT}: it marks {len(spans)} stretches of two answers. {_REMEDY}")
        start, end = spans[-1]
        rest = text[end:].strip()
        if any(text[start:end].endswith(token) for token in self.control):
            return
        self.end = next((token for token in self.control if rest == token), "")
        if not self.end and rest:
            raise ValueError(f"{_CANNOT}: {rest!r} follows the last answer and is no end token. {_REMEDY}")
        if not self.end:
            self.end, self.appends_end = self.tokenizer.eos_token or "", True
        if not self.end:
            raise ValueError("the chat template ends no turn and the tokenizer has no eos_token; set one of the two")

    def _check_tokens(self) -> None:
        """The prompt that generation starts from must be, token by token, how the training text begins."""
        if self.marked:
            return
        text, _ = self.answers(_PROBE)
        whole = self._ids(text)
        for i in (1, 3):
            prompt = self._ids(self.render(_PROBE[:i], prompt=True))
            if whole[: len(prompt)] != prompt:
                shown = self.tokenizer.decode(prompt[-3:])
                raise ValueError(f"{_CANNOT}: the prompt ends in {shown!r}, whose tokens change when an answer "
                                 f"follows. {_REMEDY}")  # fmt: skip

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


_CANNOT = "the chat template cannot tell the assistant's turns apart"
_REMEDY = "Put {% generation %} ... {% endgeneration %} round the answer in processor.chat_template"


def control_tokens(processor: Any) -> list[str]:
    """Every token that means something else than its letters, longest first."""
    tokenizer = processor.tokenizer
    tokens = {*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)}
    tokens |= {getattr(processor, name, None) for name in ("image_token", "video_token")}
    return sorted((token for token in tokens if token), key=lambda token: (-len(token), token))
