"""Requests that wait together are one `generate`.

One thread generates. It takes the request that has waited longest and the ones of equal settings that wait with it, and
pads their rows on the left. A row ends for itself: at its own end token, stop text, number of tokens or deadline, or
when its client has gone. No row changes another's answer.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..checkpoints import Loaded
from ..hooks import Attached
from ..models.prompts import to_device
from ..reduction.budget import Keep
from .answer_text import AnswerText
from .chat_request import ChatRequest, GenerationSettings
from .errors import ApiError, generation_failed, timed_out
from .limits import ServerLimits
from .metrics import ServerMetrics
from .preparation import PreparedPrompt, PromptBuilder

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class JobUpdate:
    """New text, and at the end the reason or the error."""

    text: str = ""
    finish_reason: FinishReason | None = None
    error: ApiError | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass
class GenerationJob:
    """One request. deadline: by time.monotonic. listener: called with each update, from any thread."""

    prompt: PreparedPrompt
    request: ChatRequest
    text: AnswerText
    deadline: float
    listener: Callable[[JobUpdate], None]
    end_tokens: frozenset[int] = frozenset()
    seconds: float = 0.0  # of the deadline, for messages
    first_token_at: float | None = None
    kept_visual_tokens: int | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: bool = False

    @property
    def settings(self) -> GenerationSettings:
        return self.request.settings

    def add_token(self, token: int) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        if token in self.end_tokens:
            self.text.ids.append(token)
            self._end("stop")
            return
        shown = self.text.add(token)
        if self.text.stopped:
            self._end("stop", shown)
        elif len(self.text.ids) >= self.request.max_tokens:
            self._end("length", shown)
        elif shown:
            self.listener(JobUpdate(shown))

    def is_over(self) -> bool:
        """Also ends a request whose client has gone, or whose time is up."""
        if not self.ended and self.cancelled.is_set():
            self.ended = True
        if not self.ended and time.monotonic() > self.deadline:
            self.fail(timed_out(self.seconds))
        return self.ended

    def fail(self, error: ApiError) -> None:
        if not self.ended:
            self.ended = True
            self.listener(JobUpdate(error=error))

    def _end(self, reason: FinishReason, shown: str = "") -> None:
        self.ended = True
        self.listener(JobUpdate(shown + self.text.finish(), reason))


class RowProgress(StoppingCriteria):
    """Hands each new token to the request of its row; `generate` calls it once for every token."""

    def __init__(self, jobs: Sequence[GenerationJob]) -> None:
        self.jobs = jobs

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        for job, token in zip(self.jobs, input_ids[:, -1].tolist(), strict=True):
            if not job.is_over():
                job.add_token(token)
        return torch.tensor([job.is_over() for job in self.jobs], device=input_ids.device)


class BatchingWorker:
    """The thread that generates, and the requests that wait for it."""

    def __init__(self, loaded: Loaded, builder: PromptBuilder, limits: ServerLimits, metrics: ServerMetrics) -> None:
        self.loaded, self.builder, self.limits, self.metrics = loaded, builder, limits, metrics
        # A copy, because a fast tokenizer refuses to decode while another thread encodes.
        self.tokenizer = copy.deepcopy(loaded.processor.tokenizer)
        self.running = 0
        self._waiting: deque[GenerationJob] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """What waits is still answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(
        self, prompt: PreparedPrompt, request: ChatRequest, deadline: float, listener: Callable[[JobUpdate], None]
    ) -> GenerationJob:
        text = AnswerText(self.tokenizer, request.stops)
        seconds = self.limits.request_seconds
        job = GenerationJob(prompt, request, text, deadline, listener, self._end_tokens(), seconds)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _end_tokens(self) -> frozenset[int]:
        ends = self.loaded.model.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def _run(self) -> None:
        while jobs := self._next_batch():
            self._answer(jobs)

    def _next_batch(self) -> list[GenerationJob]:
        """Waits for requests; empty once the worker is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            jobs: list[GenerationJob] = []
            for job in list(self._waiting):
                fits = not jobs or (job.settings == jobs[0].settings and job.settings.batchable)
                if len(jobs) < self.limits.batch and fits:
                    self._waiting.remove(job)
                    jobs.append(job)
            self.running = len(jobs)
            return jobs

    def _answer(self, jobs: list[GenerationJob]) -> None:
        """An error of a batch may be that of one row, or of its size: each row that has no token yet is tried alone."""
        waiting = [job for job in jobs if not job.is_over()]
        try:
            if waiting:
                self.metrics.count_batch(len(waiting))
                self._generate(waiting)
        except Exception as error:
            for job in waiting:
                if len(waiting) > 1 and job.first_token_at is None:
                    self._answer([job])
                job.fail(generation_failed(error))
        finally:
            for job in waiting:
                if not job.ended:
                    job.fail(ApiError(500, "generation ended without an end of the answer", "server_error"))
            self.running = 0

    @torch.inference_mode()
    def _generate(self, jobs: list[GenerationJob]) -> None:
        loaded, settings = self.loaded, jobs[0].settings
        inputs = to_device(self.builder.join([job.prompt for job in jobs]), loaded.model)
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        with _budgets(loaded.attached, settings.keep):
            loaded.model.generate(
                **inputs,
                **settings.generate_options(),
                max_new_tokens=max(job.request.max_tokens for job in jobs),
                stopping_criteria=StoppingCriteriaList(
                    [_KeptTokens(loaded.attached, jobs, self.metrics), RowProgress(jobs)]
                ),
            )


class _KeptTokens(StoppingCriteria):
    """Reads what the prefill kept of each row, and counts it, before the first token is reported."""

    def __init__(self, attached: Attached | None, jobs: Sequence[GenerationJob], metrics: ServerMetrics) -> None:
        self.attached, self.jobs, self.metrics, self.read = attached, jobs, metrics, False

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        if not self.read:
            self.read = True
            last = None if self.attached is None else self.attached.last
            for row, job in enumerate(self.jobs):
                job.kept_visual_tokens = job.prompt.visual_tokens if last is None else last.visual_after[row]
            kept = sum(job.kept_visual_tokens or 0 for job in self.jobs)
            visual = sum(job.prompt.visual_tokens for job in self.jobs)
            self.metrics.count_prompts(sum(job.prompt.tokens for job in self.jobs), visual, kept)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def _budgets(attached: Attached | None, keep: tuple[Keep, ...] | None) -> Iterator[None]:
    """Other budgets than the server's, inside this context."""
    if attached is None or keep is None:
        yield
        return
    before = [reducer.keep for reducer in attached.reducers]
    attached.set_keep(*keep)
    try:
        yield
    finally:
        attached.set_keep(*before)
