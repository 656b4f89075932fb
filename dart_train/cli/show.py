"""`python -m dart_train show MODEL --image cat.jpg --question "..."`: kept-token overlays on your own picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

METHODS = "dart,fastv,uniform"


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    from ..checkpoints import load
    from ..visualization import show
    from ..visualization.request import check_request

    request = check_request(options)
    loaded = load(options.model, reducer=None, device=options.device, trust_remote_code=options.trust_remote_code)
    page = show(loaded.model, loaded.processor, request.images, options.question, request.reducers, options.width)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    page.save(request.out)
    print(f"written to {request.out} ({page.width} x {page.height} pixels)")
    return 0


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
