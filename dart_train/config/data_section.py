"""The section `data`: rows, their images and videos, and how they are batched."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from .fields import Count, Fraction, NotNegativeInt, Positive, Section, Sections, Several, Text


class SourceConfig(Section):
    """Rows of data."""

    path: Text = Field(description="a file, a folder or a hub id")
    name: str | None = Field(default=None, description="in reports; null: from the path")
    images: str | None = Field(
        default=None, description="folder that image names are relative to; null: the folder of the file"
    )
    format: Literal["auto", "llava", "messages", "openai", "qa", "query", "alpaca", "datasets"] = Field(
        default="auto", description="format of the rows; auto: detected"
    )
    split: str = Field(default="train", description="of a datasets folder or hub id that has several")
    columns: dict[str, str] = Field(
        default_factory=dict, description="names of columns: the expected name, and the name in the data"
    )
    streaming: bool = Field(
        default=False, description="read rows as they come, without loading or indexing all of them"
    )
    limit: Count | None = Field(default=None, description="number of rows used at most")
    weight: Positive = Field(default=1.0, description="share of rows, relative to the other sources")


class VideoConfig(Section):
    """Which frames of a video are used."""

    frames: Count = Field(default=16, description="most frames of a video, evenly spaced")
    fps: Positive | None = Field(
        default=None,
        description="frames for each second of the video, at most `frames`; null: `frames`, however long it is",
    )
    max_pixels: Count | None = Field(
        default=None, description="larger frames are scaled down; null: as the processor does"
    )


class Data(Section):
    """The training and validation data."""

    train: Sections[SourceConfig] = Field(default=(), description="training sources, mixed by their weights")
    validation: Sections[SourceConfig] = Field(
        default=(), description="validation sources, evaluated every train.eval_steps"
    )
    max_length: Count = Field(
        default=2048, description="largest number of tokens of a sample, visual ones included, before the reduction"
    )
    on_too_long: Literal["drop", "error", "truncate_text"] = Field(
        default="drop", description="what happens to longer samples; image tokens are never cut"
    )
    turns: Literal["together", "apart"] = Field(
        default="together",
        description="together: a conversation is one row, and an image is reduced as for the first answer after it; "
        "apart: one row for each answer, with the turns before it as its prompt, reduced as for that answer",
    )
    template: Text | None = Field(
        default=None,
        description="chat template in place of the model's own: a Jinja file, or its text; saved with the processor",
    )
    on_bad_row: Literal["skip", "error"] = Field(default="skip", description="skipped rows are logged and counted")
    max_bad_fraction: Fraction = Field(default=0.01, description="a larger share of bad rows ends the run")
    allow_urls: bool = Field(default=False, description="fetch images from the network")
    follow_links: bool | Several[Text] = Field(
        default=False,
        description="whether links may lead out of the image folder: false, true, or the folders they may lead to",
    )
    max_pixels: Count | None = Field(
        default=None, description="larger images are scaled down; null: as the processor does"
    )
    min_pixels: Count | None = Field(default=None, description="smaller images are scaled up")
    video: VideoConfig = Field(default_factory=VideoConfig, description="frames of videos")
    group_by_length: bool | None = Field(
        default=None,
        description="batches of similar length after the reduction; null: true, but false where rows are streamed or "
        "images are fetched",
    )
    pad_to_multiple_of: Count | None = Field(
        default=None, description="batches are padded to a multiple of this; null: to the longest sample"
    )
    workers: NotNegativeInt = Field(default=2, description="loader processes for each rank")
    seed: NotNegativeInt = Field(default=0, description="of the order of rows")

    def template_text(self) -> str | None:
        """The Jinja source of `template`. Raises ValueError where its file cannot be read."""
        given = self.template
        if given is None or "{{" in given or "{%" in given:
            return given
        try:
            return Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{given!r} is neither the text of a Jinja template nor a file that can be read: {error}"
            ) from None

    @property
    def groups_by_length(self) -> bool:
        """`group_by_length` of a new run. Lengths of streamed rows are not known in advance, and the size of an image
        that is fetched would be a download."""
        if self.group_by_length is not None:
            return self.group_by_length
        return not (self.allow_urls or any(source.streaming for source in self.train))
