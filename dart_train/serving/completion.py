"""The answer of /v1/chat/completions: complete, or as a stream of server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .batching import GenerationJob, JobUpdate
from .errors import ApiError

DONE = "data: [DONE]\n\n"


@dataclass
class ChatCompletion:
    """One answer of the model that requests call `model`."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def complete(self, job: GenerationJob, last: JobUpdate) -> dict[str, Any]:
        message = {"role": "assistant", "content": job.text.text()}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(job)}

    def first_events(self) -> str:
        return self._event({"role": "assistant", "content": ""})

    def events(self, update: JobUpdate) -> Iterator[str]:
        if update.text:
            yield self._event({"content": update.text})
        if update.finish_reason is not None:
            yield self._event({}, update.finish_reason)

    def usage_event(self, job: GenerationJob) -> str:
        return _data({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(job)})

    def _event(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _data({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def error_event(error: ApiError) -> str:
    """An error after the status was sent."""
    return _data(error.body())


def usage(job: GenerationJob) -> dict[str, Any]:
    """Prompt tokens are counted before the reduction, as OpenAI's clients expect; what it kept is in the details."""
    prompt, answer = job.prompt.tokens, len(job.text.ids)
    details = {"visual_tokens": job.prompt.visual_tokens, "kept_visual_tokens": job.kept_visual_tokens}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": details,
    }


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
