"""`python -m dart_train show MODEL --image cat.jpg --question "..."`: kept-token overlays on your own picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..budget import Keep, check_keep
from ..reducers import Reducer, from_config

METHODS = "dart,fastv,uniform"


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, checked and opened."""

    reducers: list[Reducer]
    images: list[Image.Image | list[Image.Image]]
    out: Path


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    asked = checked(options)
    from ..checkpoint import load
    from .run import show

    loaded = load(options.model, reducer=None, device=options.device, trust_remote_code=options.trust_remote_code)
    page = show(loaded.model, loaded.processor, asked.images, options.question, asked.reducers, options.width)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    page.save(asked.out)
    print(f"written to {asked.out} ({page.width} x {page.height} pixels)")
    return 0


def checked(options: argparse.Namespace) -> Asked:
    """Everything that is wrong, in one message, before a model is read."""
    wrong: list[str] = []
    reducers = _reducers(options, wrong)
    images: list[Image.Image | list[Image.Image]] = [*_opened("--image", options.image, wrong)]
    frames = _opened("--frames", options.frames, wrong)
    if frames:
        images.append([*frames])
    if not images and not wrong:
        wrong.append("nothing to look at: give --image FILE (several times for several pictures), or --frames FILES")
    if not options.question.strip():
        wrong.append("--question is empty: what is kept depends on it; ask something")
    out = Path(options.out)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        wrong.append(f"--out {options.out}: expected a name that ends with .png, .jpg or .webp")
    if options.width < 64:
        wrong.append(f"--width {options.width}: expected at least 64 pixels")
    if wrong:
        raise ValueError("\n".join(wrong))
    return Asked(reducers, images, out)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dart_train show", description="Draw which visual tokens each method keeps of your picture."
    )
    parser.add_argument("model", help="a run, a checkpoint, an exported folder, any model's folder or hub id")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="once for each picture")
    parser.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="frames of a video, in order (Qwen-VL)")
    parser.add_argument("--question", required=True)
    parser.add_argument("--methods", default=METHODS, help=f"separated by commas ({METHODS})")
    parser.add_argument("--keep", default="0.111", help="visual tokens: 64, or a share of them (0.111)")
    parser.add_argument("--layer", type=int, default=2, help="first layer on the short sequence (2)")
    parser.add_argument("--out", default="overlay.png", metavar="FILE", help="where to write the page (overlay.png)")
    parser.add_argument("--width", type=int, default=336, help="of each panel, in pixels (336)")
    parser.add_argument("--device", help="cpu, cuda, ... (a GPU where there is one)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser
