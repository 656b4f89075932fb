"""`python -m dart_train chat DIR --image cat.jpg "What is this?"`; without a question, lines of stdin are asked."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from ..chat import ChatSession, TimedStreamer
from ..checkpoints import Loaded, UntrainedBudget, load, resolve
from ..models.prompts import prompt_problems
from ..reduction.budget import Keep


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_intermixed_args(argv)
    images = _checked(options)
    loaded = _load(options)
    session = ChatSession(loaded)
    for text in [options.question] if options.question else _lines():
        stream = TimedStreamer(loaded.processor.tokenizer)
        new_images = [] if session.conversation else images
        answer = session.ask(text, new_images, max_new_tokens=options.max_new_tokens, streamer=stream)
        kept = f"{answer.kept_tokens} of {answer.visual_tokens} visual tokens kept"
        print(f"[{kept}; {stream.summary()}]", file=sys.stderr, flush=True)
    return 0


def _checked(options: argparse.Namespace) -> list[Image.Image]:
    """The pictures. Whatever is wrong with them or the model is told at once, before a weight is read."""
    images, wrong = [], []
    for name in options.image:
        try:
            images.append(ImageOps.exif_transpose(Image.open(name)).convert("RGB"))  # as the camera was held
        except (OSError, UnidentifiedImageError) as error:
            wrong.append(f"--image {name} cannot be read: {error}")
    try:
        wrong += prompt_problems(resolve(options.path, _reducer(options), **_where(options)).processor)
    except ValueError as error:
        wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))
    return images


def _load(options: argparse.Namespace) -> Loaded:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UntrainedBudget)
        loaded = load(options.path, _reducer(options), dtype=options.dtype, device=options.device, **_where(options))
    for each in told:
        if issubclass(each.category, UntrainedBudget):
            print(f"chat: {each.message}", file=sys.stderr)
    return loaded


def _reducer(options: argparse.Namespace) -> Any:
    return None if options.full else options.method or ...


def _where(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "keep": options.keep,
        "attn_implementation": options.attn,
        "checkpoint": options.checkpoint,
        "base": options.base,
    }


def _lines() -> Iterator[str]:
    """What is typed, until the end of it or an empty line."""
    asked = sys.stdin.isatty()
    while True:
        if asked:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _budget(text: str) -> Keep:
    return float(text) if "." in text else int(text)


def _which(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dart_train chat", description=__doc__)
    parser.add_argument("path", help="an exported folder, a run, a checkpoint, the folder of any model, or a hub id")
    parser.add_argument("question", nargs="?", help="answered once; without it, lines of stdin are a conversation")
    parser.add_argument("--image", action="append", default=[], help="a picture; may be given several times")
    parser.add_argument("--keep", type=_budget, help="visual tokens: 64, or 0.25 of them (as trained)")
    parser.add_argument("--method", help="another reduction, such as fastv (as trained)")
    parser.add_argument("--full", action="store_true", help="full tokens: no reduction")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--checkpoint", type=_which, help="of a run: a step, newest or best")
    parser.add_argument("--base", help="where an adapter's base model is now")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="what training computed in")
    parser.add_argument("--attn", default="auto", help="attn_implementation: sdpa, eager, flash_attention_2")
    parser.add_argument("--device", help="cpu, cuda, cuda:1")
    return parser
