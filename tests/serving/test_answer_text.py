"""Tokens to text: complete characters, spaces, stop texts."""

from __future__ import annotations

import random

import pytest

from dart_train.serving.answer_text import AnswerText


class ByteTokenizer:
    """One token for each byte, and 256 as a special token."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(number for number in ids if number < 256).decode(errors="replace")


def pieces(text: str, *stops: str) -> tuple[list[str], AnswerText]:
    """What is shown token by token, up to a stop text, and at the end."""
    answer = AnswerText(ByteTokenizer(), stops)
    shown = []
    for byte in text.encode():
        shown.append(answer.add(byte))
        if answer.stopped:
            break
    return [*shown, answer.finish()], answer


def test_characters_are_shown_once_they_are_complete() -> None:
    shown, answer = pieces("a\u00e9\U0001f600z")
    assert shown == ["a", "", "\u00e9", "", "", "", "\U0001f600", "z", ""] and answer.text() == "a\u00e9\U0001f600z"


def test_spaces_at_either_end_are_never_shown() -> None:
    shown, answer = pieces("  a b \n")
    assert shown == ["", "", "a", "", " b", "", "", ""] and answer.text() == "a b"


def test_a_stop_text_and_what_may_become_one_are_held_back() -> None:
    shown, answer = pieces("one END. more", "END.", "never")
    assert "".join(shown) == "one" == answer.text() and answer.stopped
    shown, answer = pieces("one END, more", "END.")
    assert "".join(shown) == "one END, more" == answer.text() and not answer.stopped
    assert all(piece != "E" for piece in shown)


@pytest.mark.parametrize("seed", range(40))
def test_pieces_are_the_complete_text(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choices("ab \n\u00e9\U0001f600", k=30))
    stops = ["".join(draw.choices("ab ", k=draw.randint(1, 3))) for _ in range(draw.randint(0, 2))]
    shown, answer = pieces(text, *stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    wanted = text[: min(ends)] if ends else text
    assert "".join(shown) == answer.text()
    # Reading ends at the stop text that is complete first, which may begin after another that is not complete yet.
    assert answer.text() == wanted.strip() or (ends and answer.text() in {text[:end].strip() for end in ends})
