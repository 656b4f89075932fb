"""The commands that use a model: `compare`, `calibrate`, `check`, `show` and `chat`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options as cli
from .model_options import (
    ATTENTION_HELP,
    DEVICE_HELP,
    add_loading,
    add_model,
    add_reduction,
    load_model,
    model_problems,
)

if TYPE_CHECKING:
    from PIL import Image


@cli.reports_errors("compare")
def compare(argv: Sequence[str]) -> int:
    parser = cli.parser_of("compare", "Evaluate and time checkpoints, methods and budgets.")
    cli.add_recipe(parser, "compare.budgets=[64,0.111]")
    cli.add_launcher_arguments(parser)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # of libraries; users cannot act on them
    from ..config import load_recipe

    if "torch" not in sys.modules:  # a misspelt key is reported before torch is imported
        load_recipe(options.recipe, options.overrides, needs=("compare.sets",))
    from ..evaluation.comparison import compare as run_comparison
    from ..evaluation.comparison_grid import open_recipe
    from ..evaluation.tables import quality_table

    results = run_comparison(open_recipe(options.recipe, options.overrides, progress=cli.rank() == 0))
    if results is not None:
        for name in results.prepared.sets:
            print(f"\n{name}\n\n{quality_table(results.scores, name)}")
        print(f"\ncompare: {len(results.records)} answers; the report is {results.folder / 'report.html'}")
    return cli.OK


@cli.reports_errors("calibrate")
def calibrate(argv: Sequence[str]) -> int:
    options = _calibrate_parser().parse_intermixed_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # of libraries; users cannot act on them
    from ..evaluation.calibrate_checkpoint import calibrate_checkpoint, summary
    from ..evaluation.calibration import CalibrationLevel
    from ..evaluation.comparison_grid import open_recipe
    from ..exporting.calibration_card import update_card

    level = CalibrationLevel(options.max_loss / 100, options.confidence)
    recipe = open_recipe(options.recipe, options.overrides, progress=cli.rank() == 0)
    found = calibrate_checkpoint(options.path, recipe, level, options.checkpoint, options.all_questions)
    if found is None:  # another rank reports
        return cli.OK
    update_card(found.folder)
    print(f"\n{summary(found)}")
    return cli.OK if found.result.chosen is not None else cli.FAILED


def _calibrate_parser() -> argparse.ArgumentParser:
    parser = cli.parser_of(
        "calibrate",
        "Find the smallest budget that loses at most so many points against full tokens, and serve the model at it.",
        "Questions, budgets (from the largest to the smallest) and the metric are those of the recipe's compare "
        "section. The budget is written into reducer.json. Exit code 1: no budget passed, and nothing was changed.",
    )
    parser.add_argument("path", help="a run, a checkpoint, or an exported folder, trained with a reduction")
    cli.add_recipe(parser, "compare.budgets=[0.5,0.222,0.111]")
    parser.add_argument("--max-loss", type=float, default=2.0, help="points that may be lost against full tokens (2)")
    parser.add_argument("--confidence", type=float, default=0.95, help="that no more are lost (0.95)")
    parser.add_argument("--checkpoint", type=cli.checkpoint, help="of a run: a step, newest or best")
    parser.add_argument(
        "--all-questions",
        action="store_true",
        help="use all questions about an image, as if they were independent (default: one of each image)",
    )
    cli.add_launcher_arguments(parser)
    return parser


@cli.reports_errors("check")
def check(argv: Sequence[str]) -> int:
    options = _check_parser().parse_args(argv)
    from ..reduction import from_config

    layer = {} if options.layer is None else {"layer": options.layer}
    reducers = [from_config({"method": name, "keep": options.keep, **layer}) for name in options.method]

    from transformers import AutoModelForImageTextToText

    from ..common.hub import cached_first
    from ..conformance import check as run_laws
    from ..conformance import default_reducers
    from ..models.loading import choose_device
    from ..models.processors import load_processor

    device = choose_device(options.device)
    processor = load_processor(options.path)
    model = cached_first(
        lambda: AutoModelForImageTextToText.from_pretrained(
            options.path, dtype=options.dtype, attn_implementation=options.attn
        ),
        options.path,
    ).to(device)
    if options.layer is None:
        reducers = [replace(reducer, layer=default_reducers(model)[0].layer) for reducer in reducers]
    reducers += _trained_scorers(Path(options.path), model, options.keep)
    return cli.OK if run_laws(model, processor, reducers).ok else cli.FAILED


def _trained_scorers(folder: Path, model: Any, keep: Any) -> list[Any]:
    """The stages of the folder's reducer.json that have a trained scorer, which the model gets."""
    from ..checkpoints.scorer_file import SCORER_FILE, load_scorers
    from ..reduction.reducer_file import read_reducers

    if not (folder / SCORER_FILE).is_file():
        return []
    load_scorers(folder, model)
    stages = read_reducers(folder) or []
    return [replace(stage, keep=keep) for stage in stages if "scorer" in stage.required_inputs()]


def _check_parser() -> argparse.ArgumentParser:
    parser = cli.parser_of("check", "Test the laws of the reduction on a model.")
    parser.add_argument("path", help="folder or hub id of the model")
    parser.add_argument("--method", nargs="+", default=["dart", "random"], help="methods to test (dart random)")
    parser.add_argument("--keep", type=cli.budget, default=0.25, help="visual tokens: 64, or 0.25 of them")
    parser.add_argument("--layer", type=int, help="first layer on the short sequence (2, or the middle)")
    parser.add_argument("--dtype", choices=("auto", *cli.DTYPES), default="auto")
    parser.add_argument("--attn", help=ATTENTION_HELP)
    parser.add_argument("--device", help=DEVICE_HELP)
    return parser


@cli.reports_errors("show")
def show(argv: Sequence[str]) -> int:
    options = _show_parser().parse_args(argv)
    from ..checkpoints import load
    from ..visualization import show as draw
    from ..visualization.request import check_request

    request = check_request(options)
    loaded = load(options.model, reducer=None, device=options.device, trust_remote_code=options.trust_remote_code)
    page = draw(
        loaded.model,
        loaded.processor,
        request.images,
        options.question,
        request.reducers,
        options.width,
        request.tower,
        options.answer,
    )
    request.out.parent.mkdir(parents=True, exist_ok=True)
    page.save(request.out)
    print(f"written to {request.out} ({page.width} x {page.height} pixels)")
    return cli.OK


def _show_parser() -> argparse.ArgumentParser:
    methods = "dart,fastv,uniform"
    parser = cli.parser_of("show", "Draw which visual tokens each method keeps of your image.")
    parser.add_argument("model", help="a run, a checkpoint, an exported folder, any model's folder or hub id")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="can be given several times")
    parser.add_argument("--frames", nargs="+", default=[], metavar="FILE", help="frames of a video, in order")
    parser.add_argument("--question", required=True)
    parser.add_argument("--methods", default=methods, help=f"separated by commas ({methods})")
    parser.add_argument("--keep", default="0.111", help="visual tokens: 64, or a ratio (0.111); several: 0.222,0.111")
    parser.add_argument("--layer", type=int, default=2, help="first layer on the short sequence (2)")
    parser.add_argument("--answer", action="store_true", help="with the answer to the question in each panel")
    parser.add_argument(
        "--tower", metavar="YAML", help="a stage in the vision tower: '{layer: 0, keep: 0.5}' (the model's own)"
    )
    parser.add_argument("--out", default="overlay.png", metavar="FILE", help="where to write the page (overlay.png)")
    parser.add_argument("--width", type=int, default=336, help="of each panel, in pixels (336)")
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return parser


@cli.reports_errors("chat")
def chat(argv: Sequence[str]) -> int:
    options = _chat_parser().parse_intermixed_args(argv)
    from ..chat import ChatSession, TimedStreamer

    images = _open_images(options)
    loaded = load_model("chat", options)
    session = ChatSession(loaded)
    for text in [options.question] if options.question else _lines():
        stream = TimedStreamer(loaded.processor.tokenizer)
        new_images = [] if session.conversation else images
        answer = session.ask(text, new_images, max_new_tokens=options.max_new_tokens, streamer=stream)
        kept = f"{answer.kept_tokens} of {answer.visual_tokens} visual tokens kept"
        print(f"[{kept}; {stream.summary()}]", file=sys.stderr, flush=True)
    return cli.OK


def _open_images(options: argparse.Namespace) -> list[Image.Image]:
    """The images. Raises ValueError with all that is wrong with them or with the model, before weights are read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    images, problems = [], []
    for name in options.image:
        try:
            images.append(ImageOps.exif_transpose(Image.open(name)).convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            problems.append(f"--image {name} cannot be read: {error}")
    problems += model_problems(options)
    if problems:
        raise ValueError("\n".join(problems))
    return images


def _lines() -> Iterator[str]:
    """Lines of stdin, up to its end or an empty line."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _chat_parser() -> argparse.ArgumentParser:
    parser = cli.parser_of("chat", "Ask a model about images. Without a question, lines of stdin are the questions.")
    add_model(parser)
    parser.add_argument("question", nargs="?", help="answered once; without it, lines of stdin are a conversation")
    parser.add_argument("--image", action="append", default=[], help="can be given several times")
    add_reduction(parser)
    parser.add_argument("--max-new-tokens", type=cli.positive_int, default=256)
    add_loading(parser)
    return parser
