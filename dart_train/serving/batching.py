"""Requests that wait together are one `generate`, and batches take turns.

A batch is the request that has waited longest and the ones of equal settings that wait with it, with their rows padded
on the left. A row ends for itself: at its own end token, stop text, number of tokens or deadline, or when its client
has gone. Requests that come while a batch runs wait for its end, and where that takes long, start next to it. No
request changes another's answer.
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
from .turns import GenerateState, Turns

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


@dataclass(eq=False)  # two requests are never the same, and their tensors cannot be compared
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
    alone: bool = False  # after an error of its batch: once more, while nothing else runs
    submitted: float = field(default_factory=time.monotonic)

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
    """Hands each new token to the request of its row; `generate` calls it once for every token. after: called then."""

    def __init__(self, jobs: Sequence[GenerationJob], after: Callable[[], None]) -> None:
        self.jobs, self.after = jobs, after

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        for job, token in zip(self.jobs, input_ids[:, -1].tolist(), strict=True):
            if not job.is_over():
                job.add_token(token)
        if not all(job.ended for job in self.jobs):
            self.after()
        return torch.tensor([job.is_over() for job in self.jobs], device=input_ids.device)


class BatchingWorker:
    """A thread that forms batches of the requests that wait, and one thread for each batch that runs."""

    def __init__(self, loaded: Loaded, builder: PromptBuilder, limits: ServerLimits, metrics: ServerMetrics) -> None:
        self.loaded, self.builder, self.limits, self.metrics = loaded, builder, limits, metrics
        # A copy, because a fast tokenizer refuses to decode while another thread encodes.
        self.tokenizer = copy.deepcopy(loaded.processor.tokenizer)
        self._turns, self._state = Turns(), GenerateState(loaded)
        self._waiting: deque[GenerationJob] = deque()
        self._batches: dict[threading.Thread, list[GenerationJob]] = {}  # that run
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """What waits is still answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        with self._changed:
            return sum(not job.ended for jobs in self._batches.values() for job in jobs)

    def submit(
        self, prompt: PreparedPrompt, request: ChatRequest, deadline: float, listener: Callable[[JobUpdate], None]
    ) -> GenerationJob:
        text = AnswerText(self.tokenizer, request.stops)
        seconds = self.limits.request_seconds
        job = GenerationJob(prompt, request, text, deadline, listener, self._end_tokens(), seconds)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def _end_tokens(self) -> frozenset[int]:
        ends = self.loaded.model.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def _run(self) -> None:
        """Until the worker is closed, and nothing waits or runs."""
        with self._changed:
            while self._waiting or self._batches or not self._closed:
                if jobs := self._next_batch():
                    thread = threading.Thread(target=self._answer, args=(jobs,), name="generate", daemon=True)
                    self._batches[thread] = jobs
                    thread.start()
                else:
                    self._changed.wait(self._until_due())

    def _next_batch(self) -> list[GenerationJob]:
        """The request that has waited longest and those of equal settings; none while they are to wait."""
        if not self._waiting or (self._batches and not self._may_start()):
            return []
        jobs: list[GenerationJob] = []
        for job in list(self._waiting):
            fits = not jobs or (job.settings == jobs[0].settings and job.settings.batchable)
            if len(jobs) < self.limits.batch and fits and (not jobs or not (job.alone or jobs[0].alone)):
                self._waiting.remove(job)
                jobs.append(job)
        return jobs

    def _may_start(self) -> bool:
        """While another batch runs. Requests that wait a little are generated together, which is cheaper."""
        return self._until_due() == 0.0

    def _until_due(self) -> float | None:
        """Seconds; None: nothing waits, or nothing can start before a batch ends."""
        if not self._waiting or len(self._batches) >= self.limits.batches or self._waiting[0].alone:
            return None
        return max(0.0, self._waiting[0].submitted + self.limits.wait_seconds - time.monotonic())

    def _answer(self, jobs: list[GenerationJob]) -> None:
        """An error of a batch may be that of one row, or of its size, or of the memory that others hold: each row that
        has no token yet is tried once more, alone."""
        again: list[GenerationJob] = []
        with self._turns.taken():
            waiting = [job for job in jobs if not job.is_over()]
            try:
                if waiting:
                    self.metrics.count_batch(len(waiting))
                    self._generate(waiting)
            except Exception as error:
                if len(waiting) > 1 or len(self._batches) > 1:
                    again = [job for job in waiting if job.first_token_at is None and not job.alone]
                for job in waiting:
                    if job not in again:
                        job.fail(generation_failed(error))
            finally:
                for job in waiting:
                    if not job.ended and job not in again:
                        job.fail(ApiError(500, "generation ended without an end of the answer", "server_error"))
        with self._changed:
            for job in reversed(again):
                job.alone = True
                self._waiting.appendleft(job)
            del self._batches[threading.current_thread()]
            self._changed.notify_all()

    @torch.inference_mode()
    def _generate(self, jobs: list[GenerationJob]) -> None:
        loaded, settings = self.loaded, jobs[0].settings
        inputs = to_device(self.builder.join([job.prompt for job in jobs]), loaded.model)
        if settings.seed is not None:
            torch.manual_seed(settings.seed)

        def let_others_go_on() -> None:
            if self._turns.wanted:
                before = self._state.suspend(draws=settings.seed is not None)
                self._turns.give()
                self._turns.take()
                self._state.resume(before)

        with _budgets(loaded.attached, settings.keep):
            loaded.model.generate(
                **inputs,
                **settings.generate_options(),
                max_new_tokens=max(job.request.max_tokens for job in jobs),
                stopping_criteria=StoppingCriteriaList(
                    [_KeptTokens(loaded.attached, jobs, self.metrics), RowProgress(jobs, let_others_go_on)]
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
