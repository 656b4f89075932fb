"""The routes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ..checkpoints import Loaded
from .batching import BatchingWorker, GenerationJob, JobUpdate
from .chat_request import ChatRequest, read_chat_request
from .completion import DONE, ChatCompletion, error_event
from .errors import ApiError, draining, overloaded, timed_out
from .limits import ServerSettings
from .metrics import CONTENT_TYPE, ServerMetrics
from .preparation import PromptBuilder

GONE = 499  # in metrics: the client has closed the connection
COMPLETIONS = "/v1/chat/completions"
_Message = MutableMapping[str, Any]


class ModelServer:
    """The application, and the state that its requests share. `in_flight`: requests that were accepted and are not
    answered completely."""

    def __init__(self, loaded: Loaded, settings: ServerSettings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.metrics = ServerMetrics()
        self.builder = PromptBuilder(loaded, settings)
        self.worker = BatchingWorker(loaded, self.builder, self.limits, self.metrics)
        self.stages = 0 if loaded.attached is None else len(loaded.attached.reducers)
        self.started = int(time.time())
        self.draining = False
        self.in_flight = 0
        self.routes = Starlette(
            routes=[
                Route(COMPLETIONS, self.chat_completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/health", self.health),
                Route("/metrics", self.metrics_page),
            ],
            exception_handlers={ApiError: _refused, HTTPException: _http_error, Exception: _failed},
        )

    async def __call__(self, scope: _Message, receive: Any, send: Any) -> None:
        """The ASGI application. A request to generate is in flight until its last byte was sent."""
        counted = scope["type"] == "http" and scope["path"] == COMPLETIONS and scope["method"] == "POST"
        error = self._refusal(scope, counted) if scope["type"] == "http" else None
        if error is not None:
            if counted:
                self.metrics.count_answer(error.status, 0, 0.0, None)
            await _response(error)(scope, receive, send)
            return
        self.in_flight += counted
        try:
            await self.routes(scope, receive, send)
        finally:
            self.in_flight -= counted

    def _refusal(self, scope: _Message, counted: bool) -> ApiError | None:
        """What is refused before the body is read."""
        if scope["path"].startswith("/v1/") and not self._has_key(scope):
            what = "the API key is wrong or missing; send it as `Authorization: Bearer KEY`"
            return ApiError(401, what, "authentication_error", code="invalid_api_key")
        if not counted:
            return None
        if self.draining:
            return draining()
        most = self.limits.batch + self.limits.waiting
        return overloaded(most) if self.in_flight >= most else None

    def _has_key(self, scope: _Message) -> bool:
        if self.settings.api_key is None:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, f"Bearer {self.settings.api_key}".encode())

    async def health(self, request: Request) -> Response:
        if self.draining or not self.worker.alive:
            return JSONResponse({"status": "stopping" if self.draining else "failed"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics_page(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.page(self.worker.waiting, self.worker.running), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.settings.name:
            raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.settings.name, "object": "model", "created": self.started, "owned_by": "dart_train"}

    async def chat_completions(self, request: Request) -> Response:
        answer = _Answer(self, request)
        try:
            return await answer.respond()
        except ApiError as error:
            answer.count(error.status)
            raise
        except ClientDisconnect:
            answer.count(GONE)
            return Response(status_code=GONE)
        except Exception:
            answer.count(500)
            raise


class _Answer:
    """One request to generate, from its arrival to its end."""

    def __init__(self, server: ModelServer, request: Request) -> None:
        self.server, self.request = server, request
        self.arrived = time.monotonic()
        self.deadline = self.arrived + server.limits.request_seconds
        self.updates: asyncio.Queue[JobUpdate] = asyncio.Queue()
        self.completion = ChatCompletion(server.settings.name)
        self.job: GenerationJob | None = None
        self.counted = False

    async def respond(self) -> Response:
        server, limits = self.server, self.server.limits
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                body = await _read_json(self.request, limits.body_bytes)
                chat = read_chat_request(body, server.settings, server.stages)
                prompt = await run_in_threadpool(server.builder.prepare, chat)
        except TimeoutError:
            raise timed_out(limits.request_seconds) from None
        self.job = server.worker.submit(prompt, chat, self.deadline, self._listen())
        if chat.stream:
            events = self._stream(self.job, chat)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        last = await self._wait(self.job)
        self.count(200)
        return JSONResponse(self.completion.complete(self.job, last))

    def _listen(self) -> Callable[[JobUpdate], None]:
        """Called by the thread that generates. The loop may be closed already, when the server was stopped by force."""
        loop = asyncio.get_running_loop()

        def listener(update: JobUpdate) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.updates.put_nowait, update)

        return listener

    async def _next(self) -> JobUpdate:
        """A request that waits after others for longer than its time is not waited for."""
        assert self.job is not None
        try:
            async with asyncio.timeout(max(0.0, self.deadline - time.monotonic()) + 1.0):
                update = await self.updates.get()
        except TimeoutError:
            self.job.cancelled.set()
            raise timed_out(self.server.limits.request_seconds) from None
        if update.error is not None:
            raise update.error
        return update

    async def _wait(self, job: GenerationJob) -> JobUpdate:
        """The last update; a client that goes away meanwhile cancels the request."""
        gone = asyncio.create_task(_disconnected(self.request))
        try:
            while True:
                step = asyncio.create_task(self._next())
                await asyncio.wait({step, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    step.cancel()
                    raise ClientDisconnect
                if step.result().is_last:
                    return step.result()
        finally:
            gone.cancel()
            job.cancelled.set()

    async def _stream(self, job: GenerationJob, chat: ChatRequest) -> AsyncIterator[str]:
        """Starlette closes this iterator when the client goes away."""
        status = GONE
        try:
            yield self.completion.first_events()
            is_last = False
            while not is_last:
                update = await self._next()
                is_last = update.is_last
                for event in self.completion.events(update):
                    yield event
            if chat.include_usage:
                yield self.completion.usage_event(job)
            yield DONE
            status = 200
        except ApiError as error:
            status = error.status
            yield error_event(error)
        finally:
            job.cancelled.set()
            self.count(status)

    def count(self, status: int) -> None:
        """Once, in the metrics."""
        if self.counted:
            return
        self.counted = True
        first = None if self.job is None else self.job.first_token_at
        waited = None if first is None else first - self.arrived
        tokens = 0 if self.job is None else len(self.job.text.ids)
        self.server.metrics.count_answer(status, tokens, time.monotonic() - self.arrived, waited)


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_json(request: Request, limit: int) -> Any:
    """Raises ApiError. The content type is required, because a page in a browser can send any other one to a server on
    the loopback address without being stopped by its same-origin policy."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type {kind!r}; expected application/json")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise ApiError(413, f"the body has more than {limit} bytes; send fewer or smaller images")
        parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {str(error)[:200]}") from None


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _response(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))


async def _failed(request: Request, error: Exception) -> Response:
    return _response(ApiError(500, f"{type(error).__name__}: {error}"[:500], "server_error"))
