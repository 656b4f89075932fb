"""Model folders as published on a hub, written from the tiny families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from tests.zoo.models import build
from tests.zoo.processors import processor_of
from tests.zoo.video import SQUARE_FRAMES, TINY_PATCHES


def save_folder(
    name: str, path: str | Path, older_layout: bool = False, config: PreTrainedConfig | None = None
) -> Path:
    """Model, tokenizer and processor of a family in one folder.

    `older_layout` is how most published repositories still look: the image processor in a file of its own,
    which also names the processor's class, the chat template in a JSON file, nothing about videos.
    """
    folder = Path(path)
    build(name, config=config).save_pretrained(folder)
    processor_of(name).save_pretrained(folder)
    if older_layout:
        _split(folder)
    return folder


def save_video_folder(name: str, path: str | Path) -> Path:
    """With a video processor for tiny frames, which needs no torchvision."""
    folder = save_folder(name, path)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    kind = settings["video_processor"]["video_processor_type"]
    own = SQUARE_FRAMES if name == "llava_onevision" else TINY_PATCHES
    _write(file, {**settings, "video_processor": {**own, "video_processor_type": kind}})
    return folder


def _split(folder: Path) -> None:
    settings = json.loads((folder / "processor_config.json").read_text())
    settings.pop("video_processor", None)
    images = {**settings.pop("image_processor"), "processor_class": settings["processor_class"]}
    _write(folder / "preprocessor_config.json", images)
    if set(settings) == {"processor_class"}:
        (folder / "processor_config.json").unlink()
    else:
        _write(folder / "processor_config.json", settings)
    template = folder / "chat_template.jinja"
    _write(folder / "chat_template.json", {"chat_template": template.read_text()})
    template.unlink()


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2))
