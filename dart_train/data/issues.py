"""What can be wrong with a row. Every fault has one short code, which the check, the log and the tests share."""

from __future__ import annotations

from dataclasses import dataclass

ERROR, WARNING = "error", "warning"

# code -> (severity, what it means and what to do). An error drops the row; a warning is only reported.
CODES: dict[str, tuple[str, str]] = {
    "bad_json": (ERROR, "the line is not a JSON object: correct the file"),
    "unknown_format": (
        ERROR,
        "no known format: give conversations, messages, question + answer, query + response, or instruction + output "
        "(see data/README.md)",
    ),
    "bad_type": (ERROR, "a field has the wrong type"),
    "bad_text": (ERROR, "text that is not valid Unicode (a lone surrogate)"),
    "bad_base64": (ERROR, "an embedded image is not valid base64"),
    "control_token": (ERROR, "the text contains a control token of the tokenizer, which would forge turns or images"),
    "empty_conversation": (ERROR, "the conversation has no turns"),
    "unknown_role": (ERROR, "a role that is neither system, user (human), assistant (gpt) nor tool (observation)"),
    "role_order": (
        ERROR,
        "turns must be user and assistant in turn, assistant last; a system turn may come before a user turn, tool "
        "turns between two assistant turns",
    ),
    "bad_weight": (ERROR, "the weight of a turn is not a number from 0 on, or is given for a turn that is no answer"),
    "bad_tool_call": (ERROR, "the call of a function, or the description of one, cannot be read"),
    "empty_turn": (ERROR, "a turn with neither text nor image, or an answer without text"),
    "mark_mismatch": (ERROR, "the number of <image> or <video> marks differs from the number of images or videos"),
    "unsupported_media": (ERROR, "audio, or video for a model or processor that takes none"),
    "missing_image": (ERROR, "the image file does not exist in the image folder"),
    "outside_folder": (
        ERROR,
        "the image path leaves the image folder, by .., an absolute path or a link: refused (data.follow_links allows "
        "links)",
    ),
    "url_refused": (ERROR, "an image is an http URL: download it, or set data.allow_urls: true"),
    "url_unreachable": (ERROR, "the image URL could not be read"),
    "unreadable_image": (ERROR, "the image is damaged, or in a format that is not supported"),
    "unreadable_video": (ERROR, "the video is damaged, empty, or in a format that is not supported"),
    "no_decoder": (ERROR, "a video file, for which no decoder is installed"),
    "truncated_image": (ERROR, "the image file ends early"),
    "bomb": (ERROR, "the image has more pixels than the limit (a decompression bomb?): resize it"),
    "extreme_shape": (ERROR, "the image is more than 200 times as wide as high, or the reverse"),
    "over_limit": (ERROR, "longer than max_length under on_too_long: error, which would end the run"),
    "template_failed": (ERROR, "the chat template or the processor refuses this row"),
    "nothing_supervised": (ERROR, "no token of an answer would be supervised"),
    "too_long": (WARNING, "dropped: longer than max_length, and not shortened, or not enough"),
    "truncated_text": (WARNING, "text is shortened to fit max_length; image tokens are never cut"),
    "animated_image": (WARNING, "an animated image: only the first frame is used"),
    "single_frame": (WARNING, "a video of one frame"),
    "mode_converted": (WARNING, "the image is not RGB (grey, palette, alpha, CMYK or 16 bit) and is converted"),
    "rotated_image": (WARNING, "the image is rotated according to its EXIF orientation"),
    "tiny_image": (WARNING, "the image is smaller than 8 pixels in one direction"),
    "lost_characters": (WARNING, "text with U+FFFD, which replaces bytes that were not valid UTF-8"),
    "duplicate": (WARNING, "the same turns and images as an earlier row"),
}


@dataclass(frozen=True)
class RowIssue:
    """One fault of one row."""

    code: str
    message: str = ""

    @property
    def severity(self) -> str:
        return CODES[self.code][0]


class BadRowError(ValueError):
    """A row that cannot be used, with the code of its fault. It is skipped and counted, or ends the run."""

    def __init__(self, code: str, message: str = "") -> None:
        assert code in CODES, code
        super().__init__(f"{code}: {message or CODES[code][1]}")
        self.code, self.message = code, message

    def __reduce__(self) -> tuple[type[BadRowError], tuple[str, str]]:  # workers send it across processes
        return BadRowError, (self.code, self.message)

    @property
    def issue(self) -> RowIssue:
        return RowIssue(self.code, self.message)
