"""Refusals and failures, as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any

INVALID = "invalid_request_error"


class ApiError(Exception):
    """Answered with this status and {"error": {message, type, param, code}}. param: the key of the body that is wrong.
    retry: a client may try again after so many seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry = retry

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry is None else {"retry-after": str(self.retry)}


def draining() -> ApiError:
    return ApiError(503, "the server is stopping: it finishes what it has accepted", "server_error", code="draining")


def overloaded(limit: int) -> ApiError:
    what = f"{limit} requests are waiting or running, which is the limit of this server; try again"
    return ApiError(429, what, "rate_limit_error", code="queue_full", retry=1)


def timed_out(seconds: float) -> ApiError:
    what = f"not answered within {seconds:g} s, the limit of this server; ask for fewer tokens, or try again"
    return ApiError(504, what, "server_error", code="timeout")


def generation_failed(error: Exception) -> ApiError:
    return ApiError(500, f"generation failed: {type(error).__name__}: {error}"[:500], "server_error")
