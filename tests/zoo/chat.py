"""Chat templates in the families' own styles, each marking the assistant's text as `generation`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turns:
    """The text around a turn. `assistant` is also the prompt to answer; `opening` begins the supervised text."""

    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str]
    image: str
    video: str = "<video>"
    start: str = ""
    opening: str = ""
    after: str = ""  # between the assistant's end token and the next turn; not supervised

    def template(self) -> str:
        slots = {
            "USER_OPEN": self.user[0],
            "USER_CLOSE": self.user[1],
            "ASSISTANT": self.assistant[0],
            "OPENING": self.opening,
            "END": self.assistant[1],
            "AFTER": self.after,
            "SYSTEM_OPEN": self.system[0],
            "SYSTEM_CLOSE": self.system[1],
            "IMAGE": self.image,
            "VIDEO": self.video,
            "START": self.start,
        }
        text = _TEMPLATE
        for slot, value in slots.items():
            text = text.replace(f"<{slot}>", _quoted(value))
        return text


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


_TEMPLATE = """
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ <IMAGE> }}
{%- elif part['type'] == 'video' -%}{{ <VIDEO> }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- <START> -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- <ASSISTANT> -}}
{%- generation -%}{{- <OPENING> -}}{{- parts(message['content']) -}}{{- <END> -}}{%- endgeneration -%}
{{- <AFTER> -}}
{%- elif message['role'] == 'system' -%}
{{- <SYSTEM_OPEN> -}}{{- parts(message['content']) -}}{{- <SYSTEM_CLOSE> -}}
{%- else -%}
{{- <USER_OPEN> -}}{{- parts(message['content']) -}}{{- <USER_CLOSE> -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- <ASSISTANT> -}}{%- endif -%}
"""
