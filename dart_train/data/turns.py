"""One turn of a row: its role, its content, its weight in the loss, and calls of functions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .issues import BadRowError
from .media import check_text, read_content, shown
from .sample import Turn

ROLE_NAMES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "tool_response": "tool",
}  # fmt: skip
_CALLS = {"function_call", "tool_call"}  # ShareGPT: the call is the text of the turn
_MESSAGE_FIELDS = ("name", "tool_call_id")
# s: system, u: user, a: assistant, t: results of functions
_ORDER = re.compile(r"(s?ua(t+a)*)+")


def read_turn(turn: Any) -> Turn:
    """A turn of `conversations` or `messages`."""
    if not isinstance(turn, Mapping):
        raise BadRowError("bad_type", f"a turn is {type(turn).__name__}; expected a mapping")
    role = turn.get("from") if turn.get("from") is not None else turn.get("role")
    content = turn.get("value") if turn.get("value") is not None else turn.get("content")
    if not isinstance(role, str) or role.lower() not in ROLE_NAMES:
        raise BadRowError("unknown_role", f"role {shown(role)}; expected one of {', '.join(ROLE_NAMES)}")
    given, role = role.lower(), ROLE_NAMES[role.lower()]
    fields = {name: turn[name] for name in _MESSAGE_FIELDS if isinstance(turn.get(name), str)}
    calls = turn.get("tool_calls")
    if given in _CALLS:
        calls, content = _parsed(content, given), ""
    if calls:
        if role != "assistant":
            raise BadRowError("bad_tool_call", f"a {role} turn calls functions; only the assistant can")
        fields["tool_calls"] = [_read_call(call) for call in (calls if isinstance(calls, list) else [calls])]
        content = "" if content is None else content
    if content is None:
        raise BadRowError("empty_turn", f"a {role} turn has no content")
    return Turn(role, tuple(read_content(content)), _read_weight(turn, role), _as_json(fields) if fields else "")


def read_tools(row: Mapping[str, Any]) -> str:
    """The functions of a row's `tools`, a list or its JSON text -> JSON text; "" where there are none."""
    tools = row.get("tools")
    tools = _parsed(tools, "tools") if isinstance(tools, str) and tools.strip() else tools
    if not tools:
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRowError("bad_tool_call", f"tools is {shown(tools)}; expected a list of function descriptions")
    return _as_json(tools)


def check_order(turns: Sequence[Turn]) -> None:
    """Raises `BadRowError` for an empty turn, and for an order of roles that no conversation has."""
    for turn in turns:
        has_text = any(text.strip() for text in turn.texts) or "tool_calls" in turn.fields
        if not has_text and (turn.role not in ("user", "tool") or not turn.media):
            raise BadRowError("empty_turn", f"a {turn.role} turn is empty")
    if not _ORDER.fullmatch("".join(turn.role[0] for turn in turns)):
        roles = [turn.role for turn in turns]
        raise BadRowError("role_order", f"the roles are {', '.join(roles[:8]) or 'none'}")


def _read_weight(turn: Mapping[str, Any], role: str) -> float:
    """`weight` of OpenAI and others, or `loss: false` of ms-swift."""
    weight = turn.get("weight")
    if weight is None and isinstance(turn.get("loss"), bool):
        weight = int(turn["loss"])
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise BadRowError("bad_weight", f"weight {shown(weight)} of a {role} turn; expected a number, 0 or more")
    if role != "assistant":
        if weight:
            raise BadRowError("bad_weight", f"weight {weight} of a {role} turn; only answers are trained on")
        return 1.0
    return float(weight)


def _read_call(call: Any) -> dict[str, Any]:
    """{name, arguments}, or as OpenAI writes it with `function` around it and arguments as JSON text."""
    inner = call.get("function") if isinstance(call, Mapping) and call.get("function") is not None else call
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise BadRowError("bad_tool_call", "a call of a function has no name; expected {name, arguments}")
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"the arguments of {inner['name'][:40]!r}")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise BadRowError("bad_tool_call", f"the arguments of {inner['name'][:40]!r} are {shown(arguments)}")
    made = {"type": "function", "function": {"name": inner["name"], "arguments": arguments or {}}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def _parsed(text: Any, name: str) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError("bad_tool_call", f"{name} is not JSON: {str(error)[:120]}") from None


def _as_json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRowError("bad_tool_call", f"not JSON: {str(error)[:120]}") from None
    check_text(text)
    return text
