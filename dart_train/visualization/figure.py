"""What a command line asks to be shown: opened, and everything wrong with it told in one message, before a model is
read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..checkpoints import ResolvedModel, resolve
from ..cli.show import METHODS
from ..config.told import Told
from ..data.chat_template import ChatTemplate
from ..hooks import attach
from ..models.geometry import Picture, geometry, supports_video
from ..models.loading import bones, read_config
from ..models.processors import NoVideo
from ..models.prompts import build_inputs, to_device, user_message
from ..reduction import Reducer, from_config
from ..reduction.budget import Keep, check_keep
from .draw import side_by_side
from .overlay import Choice, chosen, everything, overlay

# `show(model, processor, images, question, reducers)`: one forward for each method, one page for all.


def show(
    model: Any,
    processor: Any,
    images: Sequence[Picture],
    question: str,
    reducers: Sequence[Reducer],
    width: int = 336,
) -> Image.Image:
    """A page: the picture in full tokens, and what each reducer keeps of it under this question.

    images: pictures, in the order of the prompt; with a processor that takes videos, lists of frames.
    The model must have no reduction attached; it is left as it was found.
    """
    inputs = ask(processor, images, question)
    places = geometry(model, processor, inputs, [images])[0]
    panels = [overlay(images, places, everything(len(places)), "full tokens", width)]
    for reducer in reducers:
        choice = choose(model, processor, inputs, reducer, len(places))
        panels.append(overlay(images, places, choice, _title(reducer), width))
    return side_by_side(panels, question)


def ask(processor: Any, images: Sequence[Picture], question: str) -> dict[str, Any]:
    """The model's inputs for one question about some pictures, up to where it would answer."""
    return build_inputs(processor, [[user_message(question, images)]])


@torch.no_grad()
def choose(model: Any, processor: Any, inputs: Mapping[str, Any], reducer: Reducer, number: int) -> Choice:
    """What the reducer keeps in the prefill of these inputs, of `number` visual tokens."""
    training, there = model.training, to_device(inputs, model)
    model.eval()
    try:
        with attach(model, reducer) as attached:
            model(**there, use_cache=False)
            last = attached.last
    finally:
        model.train(training)
    if last is None:
        return everything(number)
    return chosen(last, 0, inputs["input_ids"][0], processor.tokenizer)


def _title(reducer: Reducer) -> str:
    """The method, and its options where they are not the usual ones."""
    usual, given = type(reducer)().to_dict(), reducer.to_dict()
    more = [f"{name}={value}" for name, value in given.items() if value != usual.get(name) and name != "keep"]
    return " ".join([type(reducer).name or type(reducer).__name__, *more])


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, checked and opened."""

    reducers: list[Reducer]
    images: list[Image.Image | list[Image.Image]]
    out: Path


def checked(options: argparse.Namespace) -> Asked:
    told = Told()
    reducers = _reducers(options, told.problems)
    images: list[Image.Image | list[Image.Image]] = [*_opened("--image", options.image, told.problems)]
    frames = _opened("--frames", options.frames, told.problems)
    if frames:
        images.append(frames)
        _check_sizes(frames, told.problems)
    if not images and not told.problems:
        told.problems.append(
            "nothing to look at: give --image FILE (several times for several pictures), or --frames FILES"
        )
    _check_words(options, told.problems)
    found = told.of(lambda: resolve(options.model, None, trust_remote_code=options.trust_remote_code))
    if found is not None:
        _check_fit(found, reducers, bool(options.frames), told)
    if told.problems:
        raise ValueError("\n".join(told.problems))
    return Asked(reducers, images, Path(options.out))


def _check_words(options: argparse.Namespace, wrong: list[str]) -> None:
    if not options.question.strip():
        wrong.append("--question is empty: what is kept depends on it; ask something")
    if Path(options.out).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        wrong.append(f"--out {options.out}: expected a name that ends with .png, .jpg or .webp")
    if options.width < 64:
        wrong.append(f"--width {options.width}: expected at least 64 pixels")


def _check_sizes(frames: Sequence[Image.Image], wrong: list[str]) -> None:
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        told = ", ".join(f"{width}x{height}" for width, height in sizes)
        wrong.append(f"--frames: given pictures of {told}, expected those of one video, all of one size")


def _check_fit(found: ResolvedModel, reducers: Sequence[Reducer], film: bool, told: Told) -> None:
    """Whether methods, a film and the model go together."""
    source, processor = found.source, found.processor
    model = bones(read_config(source.path, source.revision, source.trust_remote_code))
    told.of(lambda: ChatTemplate(processor))
    if film:
        told.of(lambda: _check_film(model, processor), "--frames")
    for reducer in reducers:
        told.of(lambda reducer=reducer: attach(model, reducer).remove(), f"--methods {reducer.name}")  # type: ignore[misc]


def _check_film(model: Any, processor: Any) -> None:
    kind = model.config.model_type
    if not supports_video(kind):
        raise ValueError(f"{kind} is not shown with videos, Qwen-VL is; give each frame as an --image")
    if type(getattr(processor, "video_processor", None)) is NoVideo:
        raise ValueError(
            "torchvision is not installed, which videos need; install it, or give each frame as an --image"
        )


def _reducers(options: argparse.Namespace, wrong: list[str]) -> list[Reducer]:
    keep, found = _budget(options.keep, wrong), []
    for name in [name.strip() for name in options.methods.split(",") if name.strip()]:
        if name == "fewer_pixels":
            wrong.append("--methods fewer_pixels: it drops no tokens, it makes the picture smaller; nothing to draw")
            continue
        try:
            found.append(from_config({"method": name, "keep": keep, "layer": options.layer}))
        except ValueError as error:
            wrong.append(f"--methods: {error}")
    if not found and not wrong:
        wrong.append(f"--methods {options.methods!r}: expected names of methods, such as {METHODS}")
    return found


def _budget(text: str, wrong: list[str]) -> Keep:
    """64 is a number of tokens, 0.111 a share of them; a wrong one is told here, once."""
    try:
        keep: Keep = float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        wrong.append(f"--keep {text!r}: expected a number of tokens such as 64, or a share of them such as 0.111")
        return 1.0
    if problem := check_keep(keep):
        wrong.append(f"--{problem}")
        return 1.0
    return keep


def _opened(option: str, files: Sequence[str], wrong: list[str]) -> list[Image.Image]:
    """Turned as the camera was held, in RGB: as a person sees them."""
    found = []
    for file in files:
        try:
            with Image.open(file) as picture:
                found.append(ImageOps.exif_transpose(picture).convert("RGB"))
        except FileNotFoundError:
            wrong.append(f"{option} {file}: there is no such file")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            wrong.append(f"{option} {file}: no picture that can be opened ({error})")
    return found
