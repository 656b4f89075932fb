"""The body of /v1/chat/completions, checked. What would change the answer and is not supported is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..reduction.budget import Keep, check_keep
from .errors import ApiError
from .limits import ServerSettings

READ = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "seed", "stop", "keep",
}  # fmt: skip
# They do not change the answer.
IGNORED_KEYS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Not supported; these values mean the same as leaving the key out.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_STOPS = 4


@dataclass(frozen=True)
class GenerationSettings:
    """Requests of equal settings may be generated together. keep: another budget of each stage than the server's;
    None: the server's. temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    keep: tuple[Keep, ...] | None = None

    @property
    def batchable(self) -> bool:
        """What a seed draws depends on the rows of the batch."""
        return self.temperature == 0 or self.seed is None

    def generate_options(self) -> dict[str, Any]:
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


@dataclass(frozen=True)
class ChatRequest:
    """messages: roles are system, user or assistant; content is a list of parts of type text or image_url."""

    messages: list[dict[str, Any]]
    settings: GenerationSettings
    max_tokens: int
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False


def read_chat_request(body: Any, server: ServerSettings, stages: int) -> ChatRequest:
    """stages: of the server's reduction. Raises one ApiError with everything that is wrong."""
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a {type(body).__name__}; expected a JSON object")
    if body.get("model") != server.name:
        what = f"the model {body.get('model')!r} does not exist; this server has {server.name!r}"
        raise ApiError(404, what, param="model", code="model_not_found")
    given = {key: value for key, value in body.items() if value is not None}
    problems = [*_unsupported(given)]
    messages = _messages(given.get("messages"), problems)
    settings = _settings(given, problems, stages)
    request = ChatRequest(
        messages,
        settings,
        _max_tokens(given, problems, server),
        _stops(given.get("stop", ()), problems),
        bool(_typed(given, "stream", bool, False, problems)),
        bool(_typed(given, "stream_options", dict, {}, problems).get("include_usage")),
    )
    if problems:
        raise ApiError(400, "; ".join(f"{key}: {what}" for key, what in problems), param=problems[0][0])
    return request


Problems = list[tuple[str, str]]  # the key of the body, and what is wrong with it


def _unsupported(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        if key in NEUTRAL and value not in NEUTRAL[key]:
            yield key, f"given {str(value)[:80]!r}, which this server does not support; leave it out"
        elif key not in READ and key not in IGNORED_KEYS and key not in NEUTRAL:
            yield key, "unknown"


def _messages(given: Any, problems: Problems) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not given:
        problems.append(("messages", "expected a list of at least one message"))
        return []
    messages = []
    for number, message in enumerate(given):
        place = f"messages.{number}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            problems.append((place, f"given role {str(role)[:40]!r}, expected one of {', '.join(ROLES)}"))
            continue
        role = ROLES[message["role"]]
        parts = [*_parts(message.get("content"), f"{place}.content", role, problems)]
        messages.append({"role": role, "content": parts})
    if messages and messages[-1]["role"] != "user":
        problems.append(("messages", "the last message must be of the user"))
    return messages


def _parts(content: Any, place: str, role: str, problems: Problems) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        problems.append((place, "expected text, or a list of parts"))
        return
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get(kind) if kind in ("text", "image_url") else None
        if kind == "text" and isinstance(value, str):
            yield {"type": "text", "text": value}
        elif kind == "image_url" and role == "user" and isinstance(value, dict) and isinstance(value.get("url"), str):
            yield {"type": "image_url", "url": value["url"]}
        elif kind == "image_url" and role != "user":
            problems.append((f"{place}.{number}", f"an image in a message of the {role}; only the user sends images"))
        else:
            what = "expected {type: text, text: ...} or {type: image_url, image_url: {url: ...}}"
            problems.append((f"{place}.{number}", f"given a part of type {str(kind)[:40]!r}; {what}"))


def _typed(given: Mapping[str, Any], key: str, kind: type, default: Any, problems: Problems) -> Any:
    value = given.get(key, default)
    if isinstance(value, kind):
        return value
    problems.append((key, f"given {str(value)[:80]!r}, expected a {kind.__name__}"))
    return default


def _number(given: Mapping[str, Any], key: str, low: float, high: float, default: Any, problems: Problems) -> Any:
    """Of the type of the default: an int where it is one or None."""
    value, whole = given.get(key, default), not isinstance(default, float)
    if value is default:
        return default
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if right and math.isfinite(value) and low <= value <= high:
        return value if whole else float(value)
    kind = "a whole number" if whole else "a number"
    limit = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    problems.append((key, f"given {str(value)[:80]!r}, expected {kind} {limit}"))
    return default


def _settings(given: Mapping[str, Any], problems: Problems, stages: int) -> GenerationSettings:
    temperature = _number(given, "temperature", 0, 2, 0.0, problems)
    top_p = _number(given, "top_p", 1e-6, 1, 1.0, problems)
    top_k = _number(given, "top_k", 0, math.inf, 0, problems)
    seed = _number(given, "seed", 0, 2**63 - 1, None, problems)
    keep = _keep(given["keep"], problems, stages) if "keep" in given else None
    if temperature == 0:  # what is only read when drawing must not separate batches
        return GenerationSettings(keep=keep)
    return GenerationSettings(temperature, top_p, top_k, seed, keep)


def _keep(given: Any, problems: Problems, stages: int) -> tuple[Keep, ...] | None:
    budgets = tuple(given) if isinstance(given, list) else (given,)
    wrong = [problem for each in budgets if (problem := check_keep(each))]
    if not stages:
        wrong.append("this server reduces nothing: it was started with full tokens")
    elif len(budgets) != stages:
        wrong.append(f"{len(budgets)} budgets for {stages} stages; give one for each stage")
    problems += [("keep", problem) for problem in wrong]
    return None if wrong else budgets


def _max_tokens(given: Mapping[str, Any], problems: Problems, server: ServerSettings) -> int:
    most = server.limits.max_tokens
    key = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    return int(_number(given, key, 1, most, min(server.default_tokens, most), problems))


def _stops(given: Any, problems: Problems) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (None,)
    if len(stops) <= MAX_STOPS and all(isinstance(stop, str) and stop for stop in stops):
        return stops
    problems.append(("stop", f"expected a text, or at most {MAX_STOPS} of them, none empty"))
    return ()
