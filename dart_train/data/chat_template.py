"""The model's own chat template: the text of a conversation, and the spans of the assistant's answers in it.

If the template marks answers (`{% generation %}`), its marks are used. If it does not, as in most vision models, an
answer is the difference between the conversation rendered up to the prompt and rendered up to the answer. Text is
never searched for. A template that allows neither is refused before training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ..models.prompts import assistant_message, chat_template, user_message
from .issues import BadRowError

Messages = Sequence[dict[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None  # descriptions of functions
Span = tuple[int, int]
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


# A conversation on which the template is tried before training.
_PROBE = [
    user_message("Is it?"),
    assistant_message("Yes, 3."),
    user_message("And now"),
    assistant_message("No!"),
]
_NOT_SEPARABLE = "the chat template cannot separate the assistant's turns"
_REMEDY = "Put {% generation %} ... {% endgeneration %} around the answer in processor.chat_template"


class ChatTemplate:
    """`answers` gives the rendered text and the character spans that are supervised."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.source = chat_template(processor)
        self.marked = _MARK.search(self.source) is not None
        self.control = control_tokens(processor)
        self._first_characters = {token[0] for token in self.control}
        self._rendered: dict[str, bool] = {}  # what the template writes, of that which it may leave out
        self.end, self.appends_end = "", False
        self._find_end()
        self._check_prompt_tokens()

    def render(self, messages: Messages, prompt: bool = False, tools: Tools = None) -> str:
        return self._render(messages, prompt, tools=tools)[0]

    def answers(self, messages: Messages, tools: Tools = None) -> tuple[str, list[Span]]:
        """The text, and one (start, end) for each assistant turn, with its end-of-turn token."""
        self._refuse_left_out(messages, tools)
        text, spans = self._answer_spans(messages, tools)
        if self.appends_end:
            start, end = spans[-1]
            return text[:end] + self.end, [*spans[:-1], (start, end + len(self.end))]
        return text, [(start, end + len(self.end) * text.startswith(self.end, end)) for start, end in spans]

    def find_control_token(self, text: str) -> str | None:
        """A control token inside text that should be plain, or None. Most texts have no opening bracket at all, and
        some tokenizers have thousands of control tokens, so first characters are compared first."""
        if self._first_characters.isdisjoint(text):
            return None
        return next((token for token in self.control if token in text), None)

    def _refuse_left_out(self, messages: Messages, tools: Tools) -> None:
        """Many templates of vision models silently leave out turns of a tool, for example."""
        for name, (probe, probe_tools) in _left_out_probes(messages, tools).items():
            if name not in self._rendered:
                try:
                    self._rendered[name] = _WORD in self.render(probe, tools=probe_tools)
                except BadRowError:
                    self._rendered[name] = False
            if not self._rendered[name]:
                raise BadRowError(
                    "template_failed", f"the chat template leaves out or refuses {name}; data.template can replace it"
                )

    def _render(
        self, messages: Messages, prompt: bool = False, marks: bool = False, tools: Tools = None
    ) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.source,
                tools=tools,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadRowError("template_failed", f"the chat template refuses the conversation: {error}") from None
        return texts[0], spans[0] if marks else []

    def _answer_spans(self, messages: Messages, tools: Tools = None) -> tuple[str, list[Span]]:
        text, marks = self._render(messages, marks=self.marked, tools=tools)
        spans = marks if self.marked else self._spans_by_prefix(messages, text, tools)
        return text, [(start, start + len(text[start:end].rstrip())) for start, end in spans]

    def _spans_by_prefix(self, messages: Messages, text: str, tools: Tools = None) -> list[Span]:
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:i], prompt=True, tools=tools)
            after = self.render(messages[: i + 1], tools=tools).rstrip()
            if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
                raise BadRowError("template_failed", f"turn {i + 1} is rendered differently when turns follow it")
            spans.append((len(before), len(after)))
        return spans

    def _find_end(self) -> None:
        """Find what ends a turn. It is inside the span already, directly after the template's mark, or missing; then
        the tokenizer's EOS token is added after the last answer, or the model would never learn to stop."""
        try:
            text, spans = self._answer_spans(_PROBE)
        except BadRowError as bad:
            raise ValueError(f"{_NOT_SEPARABLE}: {bad.message}. {_REMEDY}") from None
        if len(spans) != 2 or any(start >= end for start, end in spans):
            raise ValueError(f"{_NOT_SEPARABLE}: it marks {len(spans)} spans for two answers. {_REMEDY}")
        start, end = spans[-1]
        rest = text[end:].strip()
        if any(text[start:end].endswith(token) for token in self.control):
            return
        self.end = next((token for token in self.control if rest == token), "")
        if not self.end and rest:
            raise ValueError(f"{_NOT_SEPARABLE}: {rest!r} follows the last answer and is not an end token. {_REMEDY}")
        if not self.end:
            self.end, self.appends_end = self.tokenizer.eos_token or "", True
        if not self.end:
            raise ValueError("the chat template ends no turn and the tokenizer has no eos_token; set one of the two")

    def _check_prompt_tokens(self) -> None:
        """The prompt that generation starts from must be, token by token, the start of the training text."""
        if self.marked:
            return
        text, _ = self.answers(_PROBE)
        full = self._ids(text)
        for i in (1, 3):
            prompt = self._ids(self.render(_PROBE[:i], prompt=True))
            if full[: len(prompt)] != prompt:
                ending = self.tokenizer.decode(prompt[-3:])
                raise ValueError(
                    f"{_NOT_SEPARABLE}: the prompt ends in {ending!r}, whose tokens change when an answer follows. "
                    f"{_REMEDY}"
                )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


_WORD = "qxzvw"  # in no template


def _left_out_probes(messages: Messages, tools: Tools) -> dict[str, tuple[Messages, Tools]]:
    """For everything in the conversation that a template may leave out: its name, and a conversation with `_WORD` in
    its place."""
    question, answer, word = user_message("Is it?"), assistant_message("Yes."), [{"type": "text", "text": _WORD}]
    call = {"type": "function", "function": {"name": _WORD, "arguments": {}}}
    calling, system = {**answer, "tool_calls": [call]}, {"role": "system", "content": word}
    result = {"role": "tool", "content": word}
    answered = [question, {**calling, "tool_calls": [{**call, "function": {"name": "f", "arguments": {}}}]}]
    describes = {"type": "function", "function": {"name": _WORD, "description": "", "parameters": {}}}
    found: dict[str, tuple[Messages, Tools]] = {}
    if any(message["role"] == "system" for message in messages[:1]):
        found["a system turn"] = [system, question, answer], None
    if any(message["role"] == "system" for message in messages[1:]):
        found["a system turn after the first turn"] = [question, answer, system, question, answer], None
    if any(message["role"] == "tool" for message in messages):
        found["turns of a tool"] = [*answered, result, answer], None
    if any("tool_calls" in message for message in messages):
        found["calls of functions (tool_calls)"] = [question, calling, {**result, "content": answer["content"]}], None
    if tools:
        found["the functions of the row (tools)"] = [question, answer], [describes]
    return found


def control_tokens(processor: Any) -> list[str]:
    """Every token with a meaning other than its letters, longest first."""
    tokenizer = processor.tokenizer
    tokens = {*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)}
    tokens |= {getattr(processor, name, None) for name in ("image_token", "video_token")}
    return sorted((token for token in tokens if token), key=lambda token: (-len(token), token))
