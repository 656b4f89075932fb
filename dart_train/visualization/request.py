"""What the command `show` requests: opened and checked, with all problems in one message, before weights are read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from ..checkpoints import ResolvedModel, resolve
from ..common.io import ProblemCollector
from ..config.yaml import parse
from ..hooks import attach
from ..models.loading import build_meta_model
from ..models.processors import NoVideo
from ..models.prompts import chat_template
from ..models.token_places import supports_video
from ..reduction import REDUCERS, Reducer, TowerDART, from_config, tower_from_config
from ..reduction.budget import Keep, check_keep

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class ShowRequest:
    """tower: the stage that was given, or else the one that the model was trained with. images: RGB images, and the
    frames of a video as a list."""

    reducers: list[Reducer]
    tower: TowerDART | None
    images: list[Image.Image | list[Image.Image]]
    out: Path


def check_request(options: argparse.Namespace) -> ShowRequest:
    """Raises one ValueError with everything that is wrong."""
    problems = ProblemCollector()
    budgets = [_parse_keep(text, problems) for text in _words(options.keep)] or [_parse_keep(options.keep, problems)]
    reducers = _reducers(options, budgets[0], problems)
    images: list[Image.Image | list[Image.Image]] = [*_open_images("--image", options.image, problems)]
    frames = _open_images("--frames", options.frames, problems)
    if frames:
        images.append(frames)
        sizes = sorted({frame.size for frame in frames})
        if len(sizes) > 1:
            given = ", ".join(f"{width}x{height}" for width, height in sizes)
            problems.add([f"images of {given} were given, expected frames of one video, all of one size"], "--frames")
    if not images and not problems.problems:
        problems.add(["no image: give --image FILE (several times for several images), or --frames FILES"])
    _check_values(options, problems)
    found = problems.collect(lambda: resolve(options.model, None, trust_remote_code=options.trust_remote_code))
    tower = None
    if options.tower is not None:
        tower = problems.collect(lambda: tower_from_config(_mapping(options.tower)), "--tower")
    elif found is not None:
        tower = found.trained_tower
    if found is not None:
        _check_model(found, reducers, tower, bool(options.frames), problems)
    if problems.problems:
        raise ValueError("\n".join(problems.problems))
    assert found is not None
    trained = {reducer.name: reducer for reducer in found.trained or ()}
    chosen = [replace(_as_trained(reducer, trained), keep=keep) for reducer in reducers for keep in budgets]
    return ShowRequest(chosen, tower, images, Path(options.out))


def _as_trained(reducer: Reducer, trained: Mapping[str, Reducer]) -> Reducer:
    """With the options that the model was trained with, where that was the same method."""
    same = trained.get(reducer.name)
    return reducer if same is None else replace(same, layer=reducer.layer)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _mapping(text: str) -> dict[str, Any]:
    given = parse(text)
    if not isinstance(given, dict):
        raise ValueError(f"{text!r} was given, expected a mapping such as '{{layer: 0, keep: 0.5}}'")
    return given


def _check_values(options: argparse.Namespace, problems: ProblemCollector) -> None:
    if not options.question.strip():
        problems.add(["--question is empty: the kept tokens depend on it; give a question"])
    if Path(options.out).suffix.lower() not in _SUFFIXES:
        problems.add([f"--out {options.out}: expected a file name that ends with .png, .jpg or .webp"])
    if options.width < 64:
        problems.add([f"--width {options.width}: expected at least 64 pixels"])


def _check_model(
    found: ResolvedModel, reducers: Sequence[Reducer], tower: TowerDART | None, video: bool, problems: ProblemCollector
) -> None:
    """Whether the model takes the methods, the stage in the vision tower, and the video where there is one."""
    source, processor = found.source, found.processor
    model = build_meta_model(source)
    problems.collect(lambda: chat_template(processor))
    if video:
        problems.collect(lambda: _check_video(model, processor), "--frames")
    if tower is not None:
        problems.collect(lambda: attach(model, tower).remove(), "--tower")
    for reducer in reducers:
        place = f"--methods {reducer.name}"
        problems.collect(lambda reducer=reducer: attach(model, reducer).remove(), place)  # type: ignore[misc]


def _check_video(model: Any, processor: Any) -> None:
    model_type = model.config.model_type
    if not supports_video(model_type):
        raise ValueError(
            f"videos of {model_type} models cannot be shown, those of Qwen-VL and LLaVA-OneVision can; give each frame "
            "as an --image"
        )
    if type(getattr(processor, "video_processor", None)) is NoVideo:
        raise ValueError(
            "torchvision is not installed, which videos need; install it, or give each frame as an --image"
        )


def _reducers(options: argparse.Namespace, keep: Keep, problems: ProblemCollector) -> list[Reducer]:
    reducers, names = list[Reducer](), _words(options.methods)
    for name in names:
        if name == "fewer_pixels":
            problems.add(["fewer_pixels drops no tokens, it makes the image smaller; nothing to draw"], "--methods")
            continue
        reducer = problems.collect(
            lambda name=name: from_config({"method": name, "keep": keep, "layer": options.layer}),  # type: ignore[misc]
            "--methods",
        )
        reducers += [] if reducer is None else [reducer]
    if not names:
        problems.add([f"{options.methods!r} was given, expected names of methods: {', '.join(REDUCERS)}"], "--methods")
    return reducers


def _parse_keep(text: str, problems: ProblemCollector) -> Keep:
    """64 is a number of tokens, 0.111 a ratio. A wrong one is reported here, and not again for each method."""
    try:
        keep: Keep = float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        problems.add([f"--keep {text!r}: expected a number of tokens such as 64, or a ratio such as 0.111"])
        return 1.0
    if problem := check_keep(keep):
        problems.add([f"--{problem}"])
        return 1.0
    return keep


def _open_images(option: str, files: Sequence[str], problems: ProblemCollector) -> list[Image.Image]:
    """In RGB, rotated as their EXIF data requires."""
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(ImageOps.exif_transpose(image).convert("RGB"))
        except FileNotFoundError:
            problems.add([f"{option} {file}: no such file"])
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            problems.add([f"{option} {file}: not an image that can be opened ({error})"])
    return images
