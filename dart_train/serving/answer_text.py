"""Tokens to text, as they come: characters are shown once they are complete, and stop texts are never shown.

What was shown in pieces is, put together, the text of the complete answer: that of `chat`, which has no space at
either end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # the bytes so far are not a character yet


class AnswerText:
    """The text of one answer. `stopped`: a stop text has come."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.ids: list[int] = []
        self.stopped = False
        self._decoded = ""  # of the ids up to _read
        self._start = self._read = 0  # decoding begins a little earlier than what is new: spaces depend on it
        self._shown = 0  # characters of the text that were shown

    def add(self, token: int) -> str:
        """The text that can be shown now; often none."""
        self.ids.append(token)
        before = self._decode(self.ids[self._start : self._read])
        now = self._decode(self.ids[self._start :])
        if len(now) > len(before) and not now.endswith(_INCOMPLETE):
            self._decoded += now[len(before) :]
            self._start, self._read = self._read, len(self.ids)
        return self._show(self._visible(self._decoded, complete=False))

    def finish(self) -> str:
        """What has not been shown, after the last token."""
        return self._show(self.text())

    def text(self) -> str:
        """The complete answer so far."""
        return self._visible(self._decode(self.ids), complete=True)

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _visible(self, text: str, complete: bool) -> str:
        """Up to the first stop text, without spaces at either end. If more may come, without an end that may be the
        beginning of a stop text."""
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)].strip()
        if not complete:
            held = max((_overlap(text, stop) for stop in self.stops), default=0)
            text = text[: len(text) - held]
        return text.strip()

    def _show(self, visible: str) -> str:
        new, self._shown = visible[self._shown :], max(self._shown, len(visible))
        return new


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of the text that a stop text may begin with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
